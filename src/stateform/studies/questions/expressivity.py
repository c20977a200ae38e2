"""What the transitions can express."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import expressivity
from ...layer import Cell
from ...report import Column, Figure, View, dig, visible
from ...report.figure import CELL, FEW
from ...report.words import capitalised
from ..drawing import verdict_map, verdict_tip
from ..words import Answer, Rows, answered, layers, layers_of, name_of, names
from .question import SHOWN, Finding, Question, Site, Told

VERDICTS = ("selection", "parity", "counting", "permutations")
"""What is judged."""


def ask(site: Site) -> Answer:
    """Judge what the transitions of the first tokens can express."""
    return expressivity([site.system[:SHOWN]], nonlinear=isinstance(site.layer, Cell)).to_dict()


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell what is reached, and what is excluded."""
    known = answered(rows, "expressivity")
    for what, words in (("parity", "track parity"), ("permutations", "track permutations")):
        can = [i for i, one in known if one[what]["verdict"] == "reached"]
        if can:
            yield Finding(capitalised(f"{layers_of(rows, can)} can {words}: {known_why(rows, can[0], what)}."), 0.5)
    cannot = [i for i, one in known if one["parity"]["verdict"] == "excluded"]
    if cannot:
        yield Finding(
            f"Parity is out of reach of {layers_of(rows, cannot)}: {known_why(rows, cannot[0], 'parity')}.", 0.4
        )


def known_why(rows: Rows, layer: int, what: str) -> str:
    """Say why a verdict on what a layer can express is as it is."""
    return str(rows[layer]["answers"]["expressivity"][what]["why"])


def draw(result: Told) -> Figure | None:
    """Draw what each layer's transitions reach, a row a layer."""
    rank = {"excluded": 0, "open": 1, "reached": 2}
    z, words, tips = [], [], []
    for layer in layers(result):
        one = dig(layer, "answers", "expressivity") or {}
        found = [dig(one, name) or {} for name in VERDICTS]
        said = [str(v.get("verdict") or "") for v in found]
        z.append([rank.get(word) for word in said])
        words.append(said)
        tips.append([verdict_tip(name_of(layer), *three) for three in zip(VERDICTS, found, said)])
    if not any(v is not None for row in z for v in row):
        return None
    reading = (
        "Reached: some parameters and inputs seen do it. Excluded: the structure forbids it. Open: neither. Selection: "
        "what is kept depends on the input. Necessary conditions for one layer; hover for the reason and its source."
    )
    panel = verdict_map(names(result), z, words, tips, VERDICTS, 30 if len(z) <= FEW else CELL)
    return Figure("verdicts", "What a layer can do with its state", reading, (View("Verdicts", (panel,)),))


QUESTION = Question(
    "expressivity",
    "What can the transitions express?",
    ask,
    None,
    say,
    figures=lambda result: [draw(result)],
    column=Column("Parity"),
    cell=lambda one: visible(str(dig(one, "parity", "verdict"))),
    order=6,
)
