"""The kit that results are told with: figures, tables, numbers and words as people read them, pages, notebooks.

It knows no result. What a study, a benchmark or a sweep has to say stands beside it; `stateform.result` puts the two
together. A page itself (`report.page`) is imported when one is written: its libraries are slow to import.
"""

from . import units
from .figure import Figure, Panel, View
from .notebook import cell, library
from .table import Column, Grid, GridRow, Headline, answer
from .words import at, listing, visible

__all__ = [
    "Column", "Figure", "Grid", "GridRow", "Headline", "Panel", "View", "answer", "at", "cell", "library", "listing",
    "units", "visible",
]  # fmt: skip
