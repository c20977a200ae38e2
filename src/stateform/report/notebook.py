"""Pages in the cells of a notebook: one cell holds the plotting library (5 MB), and the others use it.

A page is a frame in the output of a cell. The first cell that shows one also puts the library, as a text, into the
window that all cells share, each time that it is run. The frames look for it there, and wait until it is.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable
from typing import Any

_holder: str | None = None
"""The cell that has the library in its output."""


class Library:
    """The plotting library for the window of the notebook, as the output of a cell."""

    def _repr_html_(self) -> str:
        from plotly.offline import get_plotlyjs

        text = json.dumps(get_plotlyjs()).replace("<", "\\u003c")
        return f"<script>window.stateformPlotly = {text};</script>"


def library() -> Library:
    """Give the plotting library as a cell's output, for a notebook whose cell with the library is gone."""
    global _holder
    _holder = _cell() or _holder
    return Library()


def cell(render: Callable[[str], str]) -> str:
    """Show a page as the output of a cell, with the plotting library if no other cell has it.

    Args:
        render: writes the page, with the library in it ("inline") or without ("notebook").

    Returns:
        HTML: a frame that holds the page. Where cells have no identity, or no window in common, each page is whole.
    """
    global _holder
    here = _cell()
    if here is None:
        return _frame(render("inline"))
    _holder = _holder or here
    return (Library()._repr_html_() if here == _holder else "") + _frame(render("notebook"))


def _frame(page: str) -> str:
    text = html.escape(page, quote=False).replace("'", "&#39;")  # a page has many double quotes
    return f"<iframe srcdoc='{text}' style=\"width:100%;height:85vh;border:0\"></iframe>"


def _cell() -> str | None:
    """Identify the cell that is run; None if the front end does not tell it, or its cells share no window."""
    interactive: Any = sys.modules.get("IPython")
    if interactive is None or "google.colab" in sys.modules:  # Colab has a window for each cell
        return None
    parent: dict[str, Any] | None = getattr(interactive.get_ipython(), "get_parent", dict)()
    found = (parent or {}).get("metadata", {}).get("cellId")
    return None if found is None else str(found)
