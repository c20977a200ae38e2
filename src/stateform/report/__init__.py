"""What a comparison or an analysis found, for people: tables for the terminal, one self-contained interactive page.

Both read the plain dict that was produced (and that its JSON file holds), so that a report can be made again
from the file alone.
"""

from .html import render_analysis, render_html
from .notebook import cell, library
from .table import analysis_tables, tables

__all__ = ["analysis_tables", "cell", "library", "render_analysis", "render_html", "tables"]
