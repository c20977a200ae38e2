"""Which principles of coefficient dynamics a layer follows (arXiv 2510.09389)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...analysis import principles
from ...layer import Cell
from ...report import Figure, View, dig, units
from ...report.figure import CELL, FEW
from ..drawing import verdict_map, verdict_tip
from ..words import Answer, Rows, answered, layers, layers_of, name_of, names
from .question import Finding, Question, Site, Told

PHRASES = {
    "memory": ("a finite state holds what is read", "no finite state holds what is read"),
    "selectivity": ("a score alone can leave a token out", "no score alone leaves a token out"),
    "position": ("the order of the tokens is seen", "the order of the tokens is not seen"),
    "geometry": ("keys are turned", "keys are scaled and never turned"),
    "scale": ("scores are of order 1", "scores are large"),
    "stability": ("eta bounds the coefficients", "nothing bounds the coefficients"),
}
"""What each principle says of a layer that has its property, and of one that has not."""
OPEN = {"scale": "there are no scalar scores", "stability": "the structure alone does not bound the coefficients"}
PRINCIPLES = {
    "memory": "finite state",
    "selectivity": "leaves tokens out",
    "position": "sees order",
    "geometry": "turns keys",
    "scale": "scores of order 1",
    "stability": "bounded by eta",
}
"""What yes means, for each principle."""
SHORT = ("{} numbers", "{} near 0", "y moves {}", "cos from {}", "variance {}", "gain {}")
"""What was measured for each principle, in a cell."""
_TALL = 44
"""Pixels of a row that has room for what was measured."""


def ask(site: Site) -> Answer:
    """Judge a layer by the principles, by its structure and on this text."""
    found = principles(site.system, nonlinear=isinstance(site.layer, Cell)).to_dict()
    return {"tokens": found.pop("tokens"), "principles": found}


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Write a sentence for each principle and verdict; the layers that share it are named together."""
    known = [(i, one["principles"]) for i, one in answered(rows, "principles")]
    for k, (name, (yes, no)) in enumerate(PHRASES.items(), 1):
        groups: dict[tuple[bool | None, str], list[tuple[int, Answer]]] = {}
        for i, found in known:
            groups.setdefault((found[name]["holds"], found[name]["premises"]), []).append((i, found[name]))
        for (holds, premise), group in groups.items():
            words = yes if holds else OPEN.get(name, "not known") if holds is None else no
            where = "" if len(rows) == 1 else f" in {layers_of(rows, [i for i, _ in group])}"
            reasons = list(dict.fromkeys(x["why"] for _, x in group))
            why = reasons[0] if len(reasons) == 1 else f"e.g. {reasons[0]}"
            yield Finding(f"Principle {k}, {name}: {words}{where} ({why}{_measured([x for _, x in group])}) "
                          f"[{group[0][1]['source']}; premise: {premise}].", 0.2 - 0.01 * k)  # fmt: skip


def _measured(found: Sequence[Answer]) -> str:
    """Write the first two things that were measured, over several layers from the least to the largest."""
    text = ""
    for what in list(found[0]["measured"])[:2]:
        values = [v for x in found if (v := x["measured"].get(what)) is not None]
        if values:
            low, high = (f"{v:.0f}" if v == int(v) else f"{v:.3g}" for v in (min(values), max(values)))
            text += f"; {what}: {low if low == high else f'{low} to {high}'}"
    return text


def draw(result: Told) -> Figure | None:
    """Draw the six principles, a row a layer; with the number that was measured where there is room."""
    rank: dict[Any, tuple[int, str]] = {False: (0, "no"), None: (1, "open"), True: (2, "yes")}
    few = len(layers(result)) <= FEW
    z: list[list[int | None]] = []
    words, tips = [], []
    for layer in layers(result):
        found = dig(layer, "answers", "principles", "principles") or {}
        z.append([rank[found[name].get("holds")][0] if name in found else None for name in PRINCIPLES])
        said = [rank[found[name].get("holds")][1] if name in found else "" for name in PRINCIPLES]
        tips.append([verdict_tip(name_of(layer), f"{title}?", found.get(name) or {}, word)
                     for (name, title), word in zip(PRINCIPLES.items(), said)])  # fmt: skip
        seen = [next(iter((dig(found, name, "measured") or {}).values()), None) for name in PRINCIPLES]
        words.append([
            f"{word}<br>{form.format(units.count(v) if name == 'memory' else units.plain(v))}"
            if few and v is not None else word
            for name, word, v, form in zip(PRINCIPLES, said, seen, SHORT)
        ])  # fmt: skip
    if not any(v is not None for row in z for v in row):
        return None
    reading = str(dig(result, "questions", "principles", "reading") or "")
    panel = verdict_map(names(result), z, words, tips, list(PRINCIPLES.values()), _TALL if few else CELL)
    return Figure("principles", "The six principles, layer by layer", reading, (View("Principles", (panel,)),))


QUESTION = Question(
    "principles",
    "Which principles of coefficient dynamics does it follow?",
    ask,
    None,
    say,
    reading="What the six principles of coefficient dynamics say of a layer by its structure, and what was seen "
    "on the first tokens of the text. Hover for the reason, its source and what it takes for granted.",
    figures=lambda result: [draw(result)],
    order=7,
)
