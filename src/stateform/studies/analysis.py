"""What an analysis says: its sentences, its table of layers, its figures and its page, from the dict alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..report import Column, Figure, Grid, GridRow, answer, dig, listing, units, visible
from ..report.table import notes, opening
from ..report.units import MISSING
from ..report.words import thinned
from ..result import Paged, Record
from .drawing import depth_figure, heads_figure
from .questions import QUESTIONS
from .words import layers, name_of, with_source, wording

if TYPE_CHECKING:
    from ..report.page import Page

REMARKABLE = 0.2
"""The weight from which on a finding stands on top of the page too, and not in its section alone."""
_ROWS = 12


class Analysis(Record, Paged):
    """What `analyze` found: `print(analysis)` for sentences and tables, `.html()` and `.to_dict()` for the rest."""

    @property
    def sentences(self) -> list[str]:
        """The findings, most remarkable first."""
        return [finding["text"] for finding in self.result["findings"]]

    def page(self) -> Page:
        return page(self.result)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from tables(self.result)


def subject(result: Mapping[str, Any]) -> str:
    """Say in one line what was read, and how large it is."""
    kind, many = dig(result, "subject", "kind"), dig(result, "subject", "layers") or 0
    heads = sum(int(layer.get("heads") or 0) for layer in layers(result))
    one = kind != "model" or many == 1
    parts = ["one layer" if one else f"{many} layers", f"{units.count(heads)} head{'' if heads == 1 else 's'}",
             f"{units.count(dig(result, 'subject', 'parameters'))} weights"]  # fmt: skip
    return with_source(", ".join(parts), result, ", ")


def title(result: Mapping[str, Any]) -> str:
    """Name what was analysed."""
    return visible(str(dig(result, "subject", "name") or "unnamed"))


def interrupted(result: Mapping[str, Any]) -> str | None:
    """Say that an analysis was stopped before its end."""
    if result.get("complete", True):
        return None
    done, many = len(layers(result)), dig(result, "subject", "layers") or 0
    return (
        f"This analysis was stopped before its end: it shows what was finished by then ({done} of {many} layers begun)."
    )


def certified(result: Mapping[str, Any]) -> str | None:
    """Say whether the Systems of a pretrained model compute what its modules do; None where nothing was certified."""
    found = [(layer, c) for layer in layers(result) if (c := layer.get("certificate"))]
    if not found:
        return None
    refused = [(layer, c) for layer, c in found if c.get("refused")]
    known = [(layer, c) for layer, c in found if not c.get("refused")]
    off = [(layer, c) for layer, c in known if not c.get("ok")]
    parts = []
    if known and not off:
        worst, allowed = (max(float(c[name]) for _, c in known) for name in ("error", "allowed"))
        many = len(known)
        these = f"All {many} layers compute" if many > 1 else "The layer computes"
        parts.append(
            f"{these} what {'their Systems compute' if many > 1 else 'its System computes'}: largest relative error "
            f"{worst:.1e}, {allowed:.1e} allowed ({known[0][1]['dtype']})."
        )
    for layer, c in off:
        parts.append(
            f"{name_of(layer)} does NOT compute what its System computes: relative error {float(c['error']):.1e}, "
            f"{float(c['allowed']):.1e} allowed ({c['dtype']})."
        )
    parts += [f"No System of {name_of(layer)}: {visible(str(c['refused']))}" for layer, c in refused]
    return " ".join(parts)


def sentences(result: Mapping[str, Any], question: str | None = None, least: float = 0.0) -> list[str]:
    """List the sentences, most remarkable first; those of one question alone where it is named, or from a weight on."""
    said = [f for f in result.get("findings") or [] if float(f.get("weight") or 0.0) >= least]
    return [visible(str(f["text"])) for f in said if question is None or f.get("question") == question]


def questions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List names and titles of the questions that were asked."""
    return [(str(name), visible(str(q.get("title")))) for name, q in (result.get("questions") or {}).items()]


def refused(result: Mapping[str, Any], question: str) -> list[str]:
    """Say why there is no answer to a question: each reason once, with the layers that it is for."""
    why: dict[str, list[str]] = {}
    for layer in layers(result):
        if (reason := dig(layer, "refused", question)) is not None:
            why.setdefault(visible(str(reason)), []).append(name_of(layer))
    notes = [f"Not for {_named(names, len(layers(result)))}: {reason}." for reason, names in why.items()]
    if (reason := dig(result, "refused", question)) is not None:
        notes.append(f"Not for the model: {visible(str(reason))}.")
    return wording(result)([note.replace("..", ".") for note in notes])


def _named(names: Sequence[str], every: int) -> str:
    if len(names) == every and every > 1:
        return f"any of the {every} layers"
    return listing(names) if len(names) <= 6 else f"{listing(names[:5])} and {len(names) - 5} more"


def overview(result: Mapping[str, Any], most: int | None = _ROWS) -> Grid | None:
    """Make a table with a row for each layer (at most `most`), a column for each question that has a short answer."""
    every = layers(result)
    if not every:
        return None
    asked = [QUESTIONS[name] for name in result.get("questions") or {} if name in QUESTIONS]
    short = [(q, q.column) for q in asked if q.column is not None]
    columns = [Column("Layer"), Column("State", numeric=True), *(column for _, column in short)]
    proven = any(layer.get("certificate") for layer in every)
    if proven:
        columns.append(Column("Error", numeric=True))
    shown = list(range(len(every))) if most is None else thinned(range(len(every)), most)
    rows = []
    for i in shown:
        layer = every[i]
        grows = layer.get("state_growth")
        size = f"+{units.count(grows)}" if grows else units.count(layer.get("state_size"))
        cells = [q.cell(one) if (one := dig(layer, "answers", q.name)) else MISSING for q, _ in short]
        cells += [_error(layer.get("certificate"))] if proven else []
        rows.append(GridRow((name_of(layer), size, *cells)))
    notes = ["State: numbers carried (+: more with each token)."]
    if {"memory", "state"} & {q.name for q in asked}:
        notes[0] += " With dots: least · median · most of the heads."
    if any(any(dig(layer, "answers", "memory", "limited") or []) for layer in every):
        notes.append("≥: as far back as the text or a head's window goes.")
    if proven:
        notes.append("Error: of the System's output against the module's own, over the largest output.")
    if len(shown) < len(every):
        notes.append(f"{len(shown)} of the {len(every)} layers; all are in the report.")
    return wording(result)(Grid("layers", "Layer by layer", tuple(columns), tuple(rows), tuple(notes)))


def _error(certificate: Mapping[str, Any] | None) -> str:
    known = certificate and not certificate.get("refused")
    return f"{float(certificate['error']):.0e}" if certificate and known else MISSING


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Lay out the analysis for a terminal of 80 columns or more: what is remarkable, most of all first, and the layers.

    Args:
        result: what an analysis found, as plain values (the content of its JSON file). Missing parts are left out.
    """
    parts = opening(title(result), subject(result), interrupted(result))
    if (proof := certified(result)) is not None:
        parts += [Text(), Text(proof, style="bold red" if "NOT" in proof or "No System" in proof else "green")]
    said = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    said.add_column(justify="right", style="dim", no_wrap=True)
    said.add_column(overflow="fold")
    for k, sentence in enumerate(sentences(result), 1):
        said.add_row(f"{k}.", Text(sentence))
    parts += [Text(), said]
    parts += notes(list(dict.fromkeys(note for name, _ in questions(result) for note in refused(result, name))))
    grid = overview(result)
    return parts + (answer(grid) if grid else [])


def drawings(result: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Draw the figures of each question, by its name: its heads, the curves through depth, and those of its own."""
    found: dict[str, list[Figure]] = {}
    said = wording(result)
    for name, asked in (result.get("questions") or {}).items():
        own = QUESTIONS[name].figures(result) if name in QUESTIONS else ()
        drawn = [heads_figure(result, name, asked), depth_figure(result, name, asked), *own]
        found[name] = said([figure for figure in drawn if figure is not None])
    return found


def page(result: Mapping[str, Any]) -> Page:
    """Put the analysis on a page: a section for each question."""
    from ..report.page import Page

    drawn = drawings(result)
    sections = [
        {
            "key": name,
            "title": heading,
            "said": sentences(result, name),
            "figures": [figure.key for figure in drawn.get(name, [])],
            "notes": refused(result, name),
        }
        for name, heading in questions(result)
    ]
    grid = overview(result, None)
    words = {
        "title": title(result),
        "subject": subject(result),
        "interrupted": interrupted(result),
        "certified": certified(result),
        "findings": sentences(result, least=REMARKABLE) or sentences(result),
        "sections": [section for section in sections if section["said"] or section["figures"] or section["notes"]],
    }
    figures = [figure for some in drawn.values() for figure in some]
    return Page("studies/templates/analysis.html.j2", result, figures, [grid] if grid else [], words)
