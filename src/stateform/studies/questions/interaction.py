"""How many heads of attention a layer is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...analysis import interaction_rank
from ...report import Figure, Panel, View, dig, units
from ...report.figure import FEW, LEGEND, bar, drawing, label, line, logarithmic
from ...report.words import capitalised
from ..words import Answer, Rows, answered, count, layers, layers_of, name_of, place, rounded
from .question import Finding, Question, Site, Told

PAIRS = 256
"""Tokens of whose pairs the operators are taken."""


def ask(site: Site) -> Answer:
    """Count the dimensions that the operators span over pairs of tokens."""
    system = site.system[:PAIRS]
    found = interaction_rank(system)
    values = found.singular_values[: found.rank + 8]
    told: dict[str, Any] = found.to_dict()
    there = 1 if system.w_out is not None or system.v is None else system.H
    return {**told, "singular_values": rounded(values / values.amax().clamp_min(torch.finfo(values.dtype).tiny)),
            "there": there, "tokens": system.T, "source": "arXiv 2512.15115"}  # fmt: skip


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell how many heads of attention a layer is worth."""
    known = answered(rows, "interaction")
    for exact, enough in ((True, "necessary and sufficient"), (False, "necessary")):
        group = [(i, one) for i, one in known if one["exact"] == exact]
        if group:
            ranks = [one["rank"] for _, one in group]
            span = str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
            which, each = layers_of(rows, [i for i, _ in group]), " each" if len(group) > 1 else ""
            premise = group[0][1]["premises"]
            yield Finding(
                f"The operators of {which} span {span} dimensions{each}: so many heads of attention are {enough} on "
                f"{count(group[0][1]['tokens'], 'token')} [{group[0][1]['source']}, head count; premise: {premise}].",
                0.35 if exact else 0.25,
            )
    shared = [(one["there"] - one["rank"], i, one) for i, one in known if one["rank"] < one["there"]]
    if shared:
        _, i, one = max(shared, key=lambda x: x[0])
        text = f"{place(rows, i)} has {one['there']} heads, whose weights span {one['rank']} dimensions only"
        yield Finding(capitalised(f"{text}: some are combinations of others."), 0.45, layer=i)


def draw(result: Told) -> Figure | None:
    """Draw singular values of the operators of few layers; of many, the rank of each."""
    seen = [(i, layer, one) for i, layer in enumerate(layers(result)) if (one := dig(layer, "answers", "interaction"))]
    if not seen:
        return None
    if len(seen) <= FEW:
        traces = []
        for i, layer, one in seen:
            s = [v for v in one["singular_values"] if v]
            tips = [f"singular value {k}: {units.plain(v)} of the largest" for k, v in enumerate(s, 1)]
            name = f"{name_of(layer)}: {one['rank']}"
            traces.append(line(list(range(1, len(s) + 1)), s, i, name, tips, mode="lines+markers"))
        values = [v for _, _, one in seen for v in one["singular_values"] if v]
        axis = logarithmic(min([*values, 0.5]), 1.0, units.plain, "of the largest")
        figure = drawing(traces, xaxis={"title": {"text": "singular value"}, "type": "linear"}, yaxis=axis,
                         hovermode="closest", showlegend=True,
                         legend=LEGEND)  # fmt: skip
    else:
        tips = [
            f"{label(name_of(layer))}<br><b>{one['rank']}</b> dimensions, of {one['there']} heads"
            for _, layer, one in seen
        ]
        bars = bar(x=[i for i, *_ in seen], y=[one["rank"] for *_, one in seen], customdata=tips,
                      marker={"color": "var(--layer-0)"}, hovertemplate="%{customdata}<extra></extra>")  # fmt: skip
        axes = {"xaxis": {"title": {"text": "layer"}, "showgrid": False}, "yaxis": {"title": {"text": "dimensions"}}}
        figure = drawing([bars], hovermode="closest", bargap=0.2, **axes)
    reading = str(dig(result, "questions", "interaction", "reading") or "")
    reading += " What stands clear of rounding is counted." if len(seen) <= FEW else ""
    panel = Panel(figure, height=300)
    return Figure("interaction", "The dimensions of the operators W_ij", reading, (View("Rank", (panel,)),))


QUESTION = Question(
    "interaction",
    "How many heads of attention is it worth?",
    ask,
    None,
    say,
    reading="The dimensions that the layer's operators W_ij span over pairs of tokens: a head of attention, with "
    "scalar weights and one value map, spans one.",
    figures=lambda result: [draw(result)],
    order=8,
)
