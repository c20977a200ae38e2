"""How fast gradients fade with distance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...analysis import gradient_paths
from ...report import Figure, Panel, View, dig, units
from ...report.figure import BLANK, CELL, FEW, LEGEND, drawing, heatmap, line, logarithmic, map_rows, scatter, short
from ..words import Answer, Rows, answered, count, layers, layers_of, name_of, names, place, rounded
from .question import Finding, Question, Site, Told

CURVE = 40
"""Points of a curve over distances."""


def ask(site: Site) -> Answer:
    """Measure the influence of the values, the gates held fixed: the median of a few queries at each distance."""
    found = gradient_paths(site.system)
    g = found.by_distance
    d = sorted({round((len(g) - 1) ** (i / (CURVE - 1))) - 1 for i in range(CURVE)} | {len(g) - 1})
    fit = {"law": found.law, "tau": found.exponential.value, "p": found.power.value}
    return {**fit, "distance": d, "norm": rounded(g[torch.tensor(d)])}


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell where gradients fade fastest, and where like a power."""
    fading = [(one["tau"], i) for i, one in answered(rows, "gradients") if one["law"] == "exponential" and one["tau"]]
    fading = [(tau, i) for tau, i in fading if tau > 0]
    if fading:
        tau, i = min(fading)
        text = f"{place(rows, i)} fade fastest" if len(fading) > 1 else f"{place(rows, i)} fade exponentially"
        yield Finding(f"Gradients through the values of {text}, e-fold in {count(round(max(tau, 1)), 'token')}.",
                      0.4, layer=i)  # fmt: skip
    far = [i for i, one in answered(rows, "gradients") if one["law"] == "power"]
    if far and len(far) < len(rows):
        yield Finding(f"In {layers_of(rows, far)} gradients fade no faster than a power of the distance.", 0.35)


def draw(result: Told) -> Figure | None:
    """Draw gradient against distance: a line for each of few layers, a row of shades for each of many."""
    seen = [(i, layer, dig(layer, "answers", "gradients")) for i, layer in enumerate(layers(result))]
    seen = [(i, layer, one) for i, layer, one in seen if one and any(v for v in one["norm"])]
    if not seen:
        return None
    left = [
        [math.log10(v / max(one["norm"])) if v else None for v in one["norm"]] for _, _, one in seen
    ]  # of the largest
    floor = max(-12.0, min((v for row in left for v in row if v is not None), default=-1.0))
    if len(seen) <= FEW:
        traces = [
            line(
                [d + 1 for d in one["distance"]],
                [None if v is None else 10**v for v in row],
                i,
                name_of(layer),
                [f"distance {d}: {units.plain(10**v if v is not None else 0.0)}" for d, v in zip(one["distance"], row)],
                mode="lines",
            )
            for (i, layer, one), row in zip(seen, left)
        ]
        last = max(one["distance"][-1] for _, _, one in seen) + 1
        flat = {"color": "var(--muted)", "width": 1.5, "dash": "dot"}
        name = "attention with equal scores: no distance in its paths"
        traces.append(scatter(x=[1, last], y=[1, 1], mode="lines", name=name, line=flat, hoverinfo="skip"))
        axis = logarithmic(10**floor, 1.0, units.plain, "of the largest")
        figure = drawing(traces, yaxis=axis, xaxis=_distances(seen), hovermode="closest", showlegend=True,
                         legend=LEGEND)  # fmt: skip
        panel = Panel(figure)
    else:
        rows: list[list[float | None]] = [[] for _ in layers(result)]
        for (i, _, _), row in zip(seen, left):
            rows[i] = [None if v is None else max(v, floor) for v in row]
        ticks = list(range(math.ceil(floor), 1, max(1, round(-floor / 4))))
        bar = {"tickvals": ticks, "ticktext": [f"1e{t}" if t else "1" for t in ticks], "thickness": 12,
               "outlinewidth": 0, "tickfont": {"color": "var(--muted)"}}  # fmt: skip
        trace = heatmap(
            z=[short(row, 4) for row in rows],
            x=[math.log10(d + 1) for d in seen[0][2]["distance"]],
            zmin=floor,
            zmax=0,
            colorscale=BLANK,
            colorbar=bar,
            hovertemplate="10^%{z:.3g} of the largest<extra></extra>",
        )  # fmt: skip
        axis = _distances(seen) | {"type": "linear", "showgrid": False}
        axis |= {"tickvals": [math.log10(v) for v in axis["tickvals"]]}
        axis.pop("range")
        figure = drawing([trace], yaxis=map_rows(names(result)), xaxis=axis, hovermode="closest")
        panel = Panel(figure, height=90 + CELL * len(rows))
    asked = dig(result, "questions", "gradients") or {}
    return Figure(
        "gradients", "Influence against distance", str(asked.get("reading") or ""), (View("Fading", (panel,)),)
    )


def _distances(seen: Sequence[tuple[int, Any, Any]]) -> dict[str, Any]:
    """Make a logarithmic axis of distances; the token itself, at distance 0, stands at 1."""
    last = max(one["distance"][-1] for _, _, one in seen) + 1
    return logarithmic(1.0, max(2.0, last), units.count, "tokens apart (1: the token itself)", 0.02)


QUESTION = Question(
    "gradients",
    "How fast do gradients fade with distance?",
    ask,
    None,
    say,
    reading="Influence of a value on the outputs after it, gates held fixed; geometric mean over heads.",
    figures=lambda result: [draw(result)],
    order=11,
)
