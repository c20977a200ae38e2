"""The kit for showing results: figures, tables, numbers and words as people read them, pages, notebooks.

It knows no result. A study, a benchmark or a sweep keeps its own sentences and figures; `stateform.result` joins them
with the kit. `report.page` is imported only when a page is written, as its libraries are slow to import.
"""

from . import units
from .figure import Figure, Panel, View
from .notebook import cell, library
from .table import Column, Grid, GridRow, Headline, answer
from .words import dig, listing, visible

__all__ = [
    "Column", "Figure", "Grid", "GridRow", "Headline", "Panel", "View", "answer", "cell", "dig", "library", "listing",
    "units", "visible",
]  # fmt: skip
