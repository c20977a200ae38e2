"""The comparison in the terminal: several small tables, each the answer to one question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import content
from .content import Grid

NAME_WIDTH = 24


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """The comparison as tables for a terminal of 80 columns or more.

    Args:
        result: what a comparison found, as plain values (the content of its JSON file). Missing parts are left out.

    Returns:
        Renderables for `rich.console.Console.print`, to be printed one after the other: the headline, one table and
        a line of explanation for each question that the result answers, and what to remember of it all.
    """
    top = Text.assemble(("Stateform comparison", "bold"), ": ", content.subject(result))
    parts: list[RenderableType] = [top]
    stopped = content.interrupted(result)
    if stopped:
        parts.append(Text(stopped, style="bold yellow"))
    for grid in content.grids(result):
        parts.append(_table(grid))
        parts.extend(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in grid.notes)
    found = content.headlines(result)
    if found:
        parts.append(Padding(Text("In short", style="bold"), (1, 0, 0, 0)))
        summary = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        summary.add_column(no_wrap=True, style="dim")
        summary.add_column(overflow="fold")
        for headline in found:
            summary.add_row(Text(headline.label), Text.assemble((headline.value, "bold"), "  ", headline.detail))
        parts.append(summary)
    return parts


def _table(grid: Grid) -> Table:
    """One grid; numbers keep their width, and only words wrap."""
    table = Table(
        title=Text(grid.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0)
    )
    shown = [k for k, column in enumerate(grid.columns) if not column.page_only]
    for k in shown:
        column = grid.columns[k]
        widest = max((len(row.cells[k]) for row in grid.rows), default=0)
        name = column.heading in ("Layer", "and")
        fixed = column.numeric or widest <= (NAME_WIDTH if name else 12)
        table.add_column(
            column.heading,
            justify="right" if column.numeric else "left",
            no_wrap=fixed,
            max_width=NAME_WIDTH if name else None,
            overflow="fold",
            style="bold" if name else "",
            header_style="dim",
        )
    for row in grid.rows:
        table.add_row(*(Text(row.cells[k], style=_style(row.cells[k])) for k in shown))
    return table


def _style(cell: str) -> str:
    return {"DIFFER": "bold red", "agree": "green", "yes": "green", content.MISSING: "dim"}.get(cell, "")
