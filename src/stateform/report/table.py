"""A comparison or an analysis in the terminal: sentences, and small tables that each answer one question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import analysis, content
from .content import Column, Grid
from .units import MISSING

WIDTH = 80
_LONGEST_NAME, _SHORTEST_NAME = 24, 12
_NOTES = 5


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """The comparison as tables for a terminal of 80 columns or more.

    Args:
        result: what a comparison found, as plain values (the content of its JSON file). Missing parts are left out.

    Returns:
        Renderables for `rich.console.Console.print`, to be printed one after the other: the headline, one table and
        a line of explanation for each question that the result answers, and what to remember of it all.
    """
    parts: list[RenderableType] = [Text.assemble(("Stateform comparison", "bold"), ": ", content.subject(result))]
    stopped = content.interrupted(result)
    if stopped:
        parts.append(Text(stopped, style="bold yellow"))
    for grid in content.grids(result):
        parts += _answer(grid)
    found = content.headlines(result)
    if found:
        parts += [Text(), Text("In short", style="bold")]
        summary = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        summary.add_column(no_wrap=True, style="dim")
        summary.add_column(overflow="fold")
        for headline in found:
            summary.add_row(Text(headline.label), Text.assemble((headline.value, "bold"), "  ", headline.detail))
        parts.append(summary)
    return parts


def analysis_tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """The analysis for a terminal of 80 columns or more: what is remarkable, most of all first, and a table of layers.

    Args:
        result: what an analysis found, as plain values (the content of its JSON file). Missing parts are left out.
    """
    parts: list[RenderableType] = [Text.assemble((analysis.title(result), "bold"), ": ", analysis.subject(result))]
    stopped = analysis.interrupted(result)
    if stopped:
        parts.append(Text(stopped, style="bold yellow"))
    if (proof := analysis.certified(result)) is not None:
        parts += [Text(), Text(proof, style="bold red" if "NOT" in proof or "No System" in proof else "green")]
    said = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    said.add_column(justify="right", style="dim", no_wrap=True)
    said.add_column(overflow="fold")
    for k, sentence in enumerate(analysis.findings(result), 1):
        said.add_row(f"{k}.", Text(sentence))
    parts += [Text(), said]
    notes = [note for name, _ in analysis.questions(result) for note in analysis.refused(result, name)]
    parts += [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in dict.fromkeys(notes)]
    grid = analysis.overview(result)
    return parts + (_answer(grid) if grid else [])


def _answer(grid: Grid) -> list[RenderableType]:
    """A grid with its title and notes."""
    notes = list(grid.notes[:_NOTES])
    if len(grid.notes) > _NOTES:
        notes.append(f"{len(grid.notes) - _NOTES} more such notes are in the report.")
    padded = [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in notes]
    return [Text(), Text(grid.title, style="bold"), _table(grid), *padded]


def _table(grid: Grid) -> Table:
    """One grid; numbers keep their width, long names break where names have joints, and only words wrap."""
    shown = [k for k, column in enumerate(grid.columns) if not column.page_only]
    widest = {k: max(len(t) for t in (grid.columns[k].heading, *(row.cells[k] for row in grid.rows))) for k in shown}
    labels = [k for k in shown if _is_name(grid.columns[k])]
    words = [k for k in shown if k not in labels and not grid.columns[k].numeric and widest[k] > 16]
    taken = sum(widest[k] for k in shown if k not in labels and k not in words) + 20 * len(words)
    rooms = {k: min(widest[k], _LONGEST_NAME) for k in labels}
    gap = 2 if taken + sum(rooms.values()) + 2 * len(shown) <= WIDTH else 1
    while taken + sum(rooms.values()) + gap * len(shown) > WIDTH and max(rooms.values(), default=0) > _SHORTEST_NAME:
        rooms[max(rooms, key=rooms.__getitem__)] -= 1

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))  # + the box
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
    """`name` in lines of at most `room` characters, broken after the last joint that fits, if there is one."""
    lines = []
    while len(name) > room:
        joints = [k + 1 for k, character in enumerate(name[:room]) if character in "/:.(,_-= "]
        cut = joints[-1] if joints and joints[-1] >= room // 3 else room
        lines.append(name[:cut])
        name = name[cut:]
    return "\n".join([*lines, name])


def _style(cell: str) -> str:
    return {"DIFFER": "bold red", "agree": "green", "yes": "green", MISSING: "dim"}.get(cell, "")
