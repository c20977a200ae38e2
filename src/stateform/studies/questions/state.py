"""How much state each head needs, and how much a layer carries as the text goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...analysis import state_need
from ...report import Column, Figure, Panel, View, dig, listing, units
from ...report.figure import drawing, line, logarithmic, named_ends
from ...report.words import capitalised
from ..words import Answer, Rows, answered, count, layers, name_of, of_heads, place, span
from .cost import longest, state_at
from .question import Beside, Finding, Question, Site

TOLERANCE, SPLITS = 0.01, 8
"""The state that is needed is that for this relative error, looked at so many splits of the text."""


def ask(site: Site) -> Answer:
    """Measure the least state that reproduces each head on this text."""
    found = state_need(site.system, TOLERANCE, splits=SPLITS)
    least, most = found.ranks()
    return {
        "heads": found.per_head(), "dimensions": found.state, "tokens": found.length, "tol": found.tol,
        "limited": found.limited(), "exact": found.exact, "within": int((most - least).amax()) if most.numel() else 0,
    }  # fmt: skip


def dimensions(n: float, need: Answer, head: int) -> str:
    """Say how much state, and of what: a bound from below where the text is too short to need more."""
    least = "at least " if (need.get("limited") or [])[head : head + 1] == [True] else ""
    if need["dimensions"] is None:
        return f"{least}{count(int(n), 'dimension')} of state instead of a cache of {need['tokens']} tokens"
    return f"{least}{int(n)} of the {need['dimensions']} dimensions of its state"


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell which head needs most, and how much of what is there is used."""
    every = of_heads(rows, "state")
    if not every:
        return
    most, i, h = max(every)
    need = rows[i]["answers"]["state"]
    if max(of_heads(rows, "memory"), default=(0.0, -1, -1))[1:] != (i, h):  # else it was said with its memory
        text = f"{place(rows, i, h)} needs {dimensions(most, need, h)} (to {need['tol']:.0%} of its operator)"
        rest = ", most of all heads" if len(every) > 1 else ""
        yield Finding(capitalised(f"{text}{rest}."), 0.5, layer=i, head=h)
    held = [
        (need, one["dimensions"]) for _, one in answered(rows, "state") if one["dimensions"] for need in one["heads"]
    ]
    if held:
        used, there = sum(need for need, _ in held), sum(n for _, n in held)
        text = f"The {len(held)} heads with a finite state need" if len(held) > 1 else "The one head needs"
        yield Finding(
            f"{text} {used:.0f} of {count(there, 'dimension')} on this text ({used / there:.0%}).",
            0.5 + 0.35 * (1 - used / there),
        )
    cached = [one["heads"] for _, one in answered(rows, "state") if not one["dimensions"]]
    small = sorted(x for heads in cached for x in heads)
    if len(small) > 1:
        yield Finding(f"Half of the {len(small)} heads with a cache could do with {small[len(small) // 2]:.0f} "
                      "dimensions of state or fewer on this text.", 0.55)  # fmt: skip


def state_over_length(result: Mapping[str, Any]) -> Figure | None:
    """Draw how many numbers each layer carries after T tokens: a cache grows, a finite state does not."""
    held = [(i, layer) for i, layer in enumerate(layers(result)) if state_at(layer, 1)]
    if not held:
        return None
    last = max(17, math.ceil(math.log2(longest(result) or 1)))
    x = [2**k for k in range(last + 1)]
    traces, ends, values = [], [], []
    for i, layer in held:
        y = [float(state_at(layer, T) or 0) for T in x]
        tips = [units.count(value) + " numbers" for value in y]
        traces.append(line(x, y, i, name_of(layer), tips, mode="lines"))
        ends.append((i, name_of(layer), y[-1]))
        values += y
    axis = logarithmic(min(values), max(values), units.count, "numbers in the state")
    figure = drawing(
        traces,
        xaxis=logarithmic(1, x[-1], units.count, "tokens read", 0.02),
        meta={"over": "after %{x} tokens"},
        yaxis=axis,
        hovermode="x unified",
        annotations=named_ends(ends, axis),
    )
    return Figure(
        "state",
        "How much must be remembered as the text goes on?",
        "The numbers that one sequence carries from a token to the next, from the layers' structure; logarithmic axes.",
        (View("State", (Panel(figure),)),),
        _overtakes(held),
    )


def _overtakes(held: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """Tell after how many tokens each growing state is larger than the finite ones."""
    grows = [(layer, g) for _, layer in held if (g := dig(layer, "identity", "state_growth"))]
    finite = [layer for _, layer in held if not dig(layer, "identity", "state_growth")]
    sentences = []
    for layer, growth in grows:
        start = dig(layer, "identity", "state_size") or 0
        after = [
            (name_of(f), max(0, math.floor((dig(f, "identity", "state_size") - start) / growth) + 1)) for f in finite
        ]
        if after:
            listed = listing(
                [f"{name} after {units.count(T)}{' tokens' * (k == 0)}" for k, (name, T) in enumerate(after)]
            )
            sentences.append(f"The cache of {name_of(layer)} outgrows the state of {listed}.")
    return " ".join(sentences)


QUESTION = Question(
    "state",
    "How much state does each head need?",
    ask,
    None,
    say,
    heads="dimensions needed",
    reading=f"The least state that reproduces a head on this text to {TOLERANCE:.0%} of the Frobenius norm of "
    f"its operator: the most over {SPLITS} splits of the text into past and future (Hankel rank).",
    column=Column("State needed", numeric=True),
    cell=lambda one: span(one.get("heads"), lambda v: units.count(round(v))),
    order=2,
)
BESIDE = Beside("what", 20, figures=lambda result: [state_over_length(result)])
