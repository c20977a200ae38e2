"""Small tables that each answer one question, and their layout for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .units import MISSING

WIDTH = 80
_LONGEST_NAME, _SHORTEST_NAME = 24, 12
_NOTES = 5


@dataclass(frozen=True)
class Column:
    """A column of a grid: its heading, whether it holds numbers, and whether only the page has room for it."""

    heading: str
    numeric: bool = False
    page_only: bool = False


@dataclass(frozen=True)
class GridRow:
    """A row of a grid, with the position of the layer that it is about (None: not about one layer)."""

    cells: tuple[str, ...]
    layer: int | None = None


@dataclass(frozen=True)
class Grid:
    """A small table that answers the question in its title."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[GridRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """One finding: what it is about, the answer, and a sentence around it."""

    label: str
    value: str
    detail: str
    layer: int | None = None


def opening(title: str, subject: str, stopped: str | None) -> list[RenderableType]:
    """Lay out the first line, title and subject, then a warning if the work was stopped before its end."""
    parts: list[RenderableType] = [Text.assemble((title, "bold"), ": ", subject)]
    return parts + ([Text(stopped, style="bold yellow")] if stopped else [])


def notes(texts: Sequence[str]) -> list[RenderableType]:
    """Lay out notes below a table."""
    return [Padding(Text(text, style="dim"), (0, 0, 0, 2)) for text in texts]


def answer(grid: Grid) -> list[RenderableType]:
    """Lay out a grid for a terminal, with its title and notes, to be printed one after the other."""
    texts = list(grid.notes[:_NOTES])
    if len(grid.notes) > _NOTES:
        texts.append(f"{len(grid.notes) - _NOTES} more such notes are in the report.")
    return [Text(), Text(grid.title, style="bold"), _table(grid), *notes(texts)]


def _table(grid: Grid) -> Table:
    """Lay out one grid: numbers keep their width, long names break where names have joints, and only words wrap."""
    shown = [k for k, column in enumerate(grid.columns) if not column.page_only]
    widest = {k: max(len(t) for t in (grid.columns[k].heading, *(row.cells[k] for row in grid.rows))) for k in shown}
    labels = [k for k in shown if _is_name(grid.columns[k])]
    words = [k for k in shown if k not in labels and not grid.columns[k].numeric and widest[k] > 16]
    taken = sum(widest[k] for k in shown if k not in labels and k not in words) + 20 * len(words)
    rooms = {k: min(widest[k], _LONGEST_NAME) for k in labels}
    gap = 2 if taken + sum(rooms.values()) + 2 * len(shown) <= WIDTH else 1
    while taken + sum(rooms.values()) + gap * len(shown) > WIDTH and max(rooms.values(), default=0) > _SHORTEST_NAME:
        rooms[max(rooms, key=rooms.__getitem__)] -= 1

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))  # the box adds 1
    for k in shown:
        table.add_column(
            grid.columns[k].heading,
            justify="right" if grid.columns[k].numeric else "left",
            no_wrap=k not in words,
            overflow="fold",
            style="bold" if k in labels else "",
            header_style="dim",
        )
    for row in grid.rows:
        cells = [_broken(row.cells[k], rooms[k]) if k in rooms else row.cells[k] for k in shown]
        table.add_row(*(Text(cell, style=_style(cell)) for cell in cells))
    return table


def _is_name(column: Column) -> bool:
    return column.heading in ("Layer", "and")


def _broken(name: str, room: int) -> str:
    """Break `name` into lines of at most `room` characters, after the last joint that fits, if there is one."""
    lines = []
    while len(name) > room:
        joints = [k + 1 for k, character in enumerate(name[:room]) if character in "/:.(,_-= "]
        cut = joints[-1] if joints and joints[-1] >= room // 3 else room
        lines.append(name[:cut])
        name = name[cut:]
    return "\n".join([*lines, name])


def _style(cell: str) -> str:
    return {"DIFFER": "bold red", "agree": "green", "yes": "green", MISSING: "dim"}.get(cell, "")
