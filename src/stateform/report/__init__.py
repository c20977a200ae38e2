"""What a comparison found, for people: tables for the terminal and one self-contained page with interactive figures.

Both read the plain dict that a comparison produces (and that its JSON file holds), so that a report can be made again
from the file alone.
"""

from .html import render_html
from .table import tables

__all__ = ["render_html", "tables"]
