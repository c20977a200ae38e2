"""Writing a page to its file, and the plotting library beside it if that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import require
from ..files import write_atomically


def write_page(path: Path, render: Callable[[str], str], plotlyjs: str) -> None:
    """Write a page. With "directory" the plotting library is written beside it first: no page is ever without.

    Raises:
        StateformError: `plotlyjs` is another word (before anything is written), or see `write_atomically`.
    """
    beside = library_of(path, plotlyjs)
    if beside is not None:
        from plotly.offline import get_plotlyjs

        write_atomically(beside, get_plotlyjs().encode())
    write_atomically(path, render(plotlyjs).encode())


def library_of(path: Path, plotlyjs: str) -> Path | None:
    """Name the file of the plotting library that is written with a page; None where the page holds it."""
    known = ("inline", "directory")
    require(plotlyjs in known, f"plotlyjs is {plotlyjs!r}; expected {' or '.join(known)}")
    return path.with_name("plotly.min.js") if plotlyjs == "directory" else None
