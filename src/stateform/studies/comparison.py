"""What a comparison says: its headlines, tables, figures and page, from the dict alone.

Every value of the dict may be missing (a comparison that was interrupted, a layer without this or that), so nothing
here assumes more than a layer's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..report import Figure, Grid, Headline, answer
from ..report.table import opening
from ..result import Paged, Record
from .questions import BESIDE
from .words import layers, names, with_source, wording

if TYPE_CHECKING:
    from ..report.page import Page

SECTIONS = {
    "what": "What they are",
    "speed": "What they cost",
    "dynamics": "What they do on this text",
    "same": "Which are the same",
}
"""The parts of the page, in order, and their headings; a section that is not among them comes last, by its name."""


class Comparison(Record, Paged):
    """What `compare` found: `print(comparison)` for tables, `.html()` and `.to_dict()` for the rest."""

    def page(self) -> Page:
        return page(self.result)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from tables(self.result)


def subject(result: Mapping[str, Any]) -> str:
    """Say in one line how many layers were put on which text."""
    n = len(layers(result))
    return with_source(f"{n} layer{'' if n == 1 else 's'}", result, " ")


def interrupted(result: Mapping[str, Any]) -> str | None:
    """Say that a comparison was stopped before its end."""
    if result.get("complete", True):
        return None
    return "This comparison was stopped before its end: it shows what was finished by then."


def grids(result: Mapping[str, Any], lengths: int = 5) -> list[Grid]:
    """Make every table that the result has something for, in order; times at `lengths` lengths at most."""
    return wording(result)([grid for one in BESIDE for grid in one.tables(result, lengths) if grid is not None])


def figures(result: Mapping[str, Any]) -> list[Figure]:
    """Draw every figure that the result has data for, in order."""
    return wording(result)([figure for one in BESIDE for figure in one.figures(result) if figure is not None])


def headlines(result: Mapping[str, Any]) -> list[Headline]:
    """List the findings that a reader wants first; none for what was not measured."""
    return wording(result)([headline for one in BESIDE for headline in one.headlines(result)])


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Lay out the comparison for a terminal of 80 columns or more.

    Args:
        result: what a comparison found, as plain values (the content of its JSON file). Missing parts are left out.

    Returns:
        Renderables for `rich.console.Console.print`, to be printed one after the other: the headline, one table and
        a line of explanation for each question that the result answers, and what to remember of it all.
    """
    parts = opening("Stateform comparison", subject(result), interrupted(result))
    for grid in grids(result):
        parts += answer(grid)
    found = headlines(result)
    if found:
        parts += [Text(), Text("In short", style="bold")]
        summary = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
        summary.add_column(no_wrap=True, style="dim")
        summary.add_column(overflow="fold")
        for headline in found:
            summary.add_row(Text(headline.label), Text.assemble((headline.value, "bold"), "  ", headline.detail))
        parts.append(summary)
    return parts


def page(result: Mapping[str, Any]) -> Page:
    """Put the comparison on a page, each question in its section."""
    from ..report.page import Page

    said = wording(result)
    drawn: list[Figure] = []
    made: list[Grid] = []
    sections: dict[str, list[tuple[int, str, list[str]]]] = {key: [] for key in SECTIONS}
    for one in BESIDE:
        own = [figure for figure in one.figures(result) if figure is not None]
        listed = [grid for grid in one.tables(result, 12) if grid is not None]
        places = sections.setdefault(one.section, [])
        places.append((one.order, "figure", [figure.key for figure in own]))
        places.append((one.tables_order or one.order, "table", [grid.key for grid in listed]))
        drawn, made = drawn + own, made + listed
    shown = {
        section: [(kind, key) for _, kind, keys in sorted(places, key=lambda place: place[0]) for key in keys]
        for section, places in sections.items()
    }
    words = {
        "subject": subject(result),
        "interrupted": interrupted(result),
        "names": names(result),
        "headlines": headlines(result),
        "sections": [{"key": k, "title": said(SECTIONS.get(k, k)), "shown": keys} for k, keys in shown.items() if keys],
    }
    return Page("studies/templates/comparison.html.j2", result, said(drawn), said(made), words)
