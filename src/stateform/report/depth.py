"""The figures of an analysis: maps of depth and heads, curves through depth, and those shared with the comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from . import figures, units, verdicts
from .content import at, layers, name_of
from .figures import Figure, Panel, View, _figure, _logarithmic, _round, label
from .verdicts import CELL, FEW, rows_axis

SHADES = [[k / 3, f"var(--plus-{k + 1})"] for k in range(4)]
"""Of heat maps: the least is still told from what is missing."""
BLANK = [[k / 4, f"var(--plus-{k})"] for k in range(5)]
"""The same where 0 is nothing."""
_WRITTEN, _BINS = 16, 40


def drawings(result: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures of each question, by its name."""
    found: dict[str, list[Figure]] = {}
    for name, asked in (result.get("questions") or {}).items():
        drawn = [_with_heads(result, name, asked), _through_depth(result, name, asked), *_special(result, name)]
        found[name] = [figure for figure in drawn if figure is not None]
    return found


def answers(result: Mapping[str, Any], name: str, key: str) -> list[Any]:
    """What every layer has under `key` in its answer to a question; None where it has nothing."""
    return [at(layer, "answers", name, key) for layer in layers(result)]


# Heads and depth -----------------------------------------------------------------------------------------------------


def _with_heads(result: Mapping[str, Any], name: str, asked: Mapping[str, Any]) -> Figure | None:
    z = answers(result, name, "heads")
    z = [row if isinstance(row, list) and all(not isinstance(x, dict) for x in row) else [] for row in z]
    widest = max(map(len, z), default=0)
    if widest == 0 or (len(z) == 1 and widest == 1):
        return None
    measure = str(asked.get("heads") or "")
    title = f"{measure[:1].upper()}{measure[1:]}, by {'head' if len(z) == 1 else 'layer and head'}"
    panel = _head_bars(z[0], measure) if len(z) == 1 else _head_map(result, z, widest, measure)
    return Figure(f"heads-{name}", title, str(asked.get("reading") or ""), (View("Heads", (panel,)),))


def _head_bars(values: Sequence[float | None], measure: str) -> Panel:
    bars = go.Bar(
        x=list(range(len(values))),
        y=_round(values),
        marker={"color": "var(--layer-0)", "cornerradius": 3},
        text=[units.plain(v) for v in values] if len(values) <= _WRITTEN else None,
        textposition="outside",
        textangle=0,
        textfont={"color": "var(--ink)"},
        cliponaxis=False,
        hovertemplate=f"head %{{x}}: %{{y}} {label(measure)}<extra></extra>",
    )
    few = {"tickvals": list(range(len(values)))} if len(values) <= 32 else {}
    axis = {"title": {"text": "head"}, "showgrid": False, **few}
    figure = _figure([bars], xaxis=axis, yaxis={"rangemode": "tozero"}, bargap=0.35, margin={"t": 24})
    return Panel(figure, height=260, width=180 + 70 * len(values))


def _head_map(result: Mapping[str, Any], z: Sequence[Sequence[float | None]], widest: int, measure: str) -> Panel:
    """A row for each layer, a column for each head; shades by the logarithm where the numbers span a decade."""
    positive = [v for row in z for v in row if v is not None and v > 0]
    log = bool(positive) and max(positive) > 10 * min(positive) and len(positive) == sum(len(row) for row in z)
    shade = [
        [None if v is None else math.log10(v) if log else v for v in row] + [None] * (widest - len(row)) for row in z
    ]
    tips = [
        [f"{name_of(layer)}, head {h}<br><b>{_written(v)}</b> {measure}" for h, v in enumerate(row)]
        + [""] * (widest - len(row))
        for layer, row in zip(layers(result), z)
    ]
    few = widest <= _WRITTEN
    values = [v for row in shade for v in row if v is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    bar: dict[str, Any] = {"thickness": 12, "outlinewidth": 0, "tickfont": {"color": "var(--muted)", "size": 12}}
    if log:
        ticks, texts = units.ticks(10**low, 10**high, units.count, 5)
        bar |= {"tickvals": [math.log10(t) for t in ticks], "ticktext": texts}
    trace = go.Heatmap(
        z=[_round(row, 4) for row in shade],
        zmin=low,
        zmax=high if high > low else low + 1,
        colorscale=SHADES,
        colorbar=bar,
        text=[[_written(v) for v in row] + [""] * (widest - len(row)) for row in z] if few else None,
        texttemplate="%{text}" if few else None,
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1 if widest <= 64 else 0,
        ygap=1,
    )
    figure = _figure(
        [trace],
        xaxis={"title": {"text": "head"}, "showgrid": False, "side": "top", "dtick": 1 if few else None,
               "fixedrange": True},
        yaxis=rows_axis(result),
        hovermode="closest",
    )  # fmt: skip
    return Panel(figure, height=90 + CELL * len(z), width=260 + max(300, 46 * widest if few else 10 * widest))


def _written(v: float | None) -> str:
    if v is None:
        return units.MISSING
    return units.count(round(v)) if abs(v) >= 10 else units.near_one(v) if abs(v) >= 0.5 else units.plain(v, 2)


def _through_depth(result: Mapping[str, Any], name: str, asked: Mapping[str, Any]) -> Figure | None:
    """Curves through depth: what the model's answer has as `depth`, by name."""
    curves = at(result, "model", name, "depth") or {}
    curves = {key: values for key, values in curves.items() if any(v is not None for v in values)}
    if not curves:
        return None
    seen = [v for values in curves.values() for v in values if v is not None]
    log = min(seen) > 0 and max(seen) > 30 * min(seen)
    traces = [
        go.Scatter(
            x=list(range(len(values))),
            y=_round(values),
            mode="lines+markers",
            name=label(key),
            line={"color": f"var(--layer-{k % figures.COLOURS})", "width": 2.25},
            marker={"symbol": figures.SYMBOLS[k % len(figures.SYMBOLS)], "size": 7},
            text=[f"{label(key)}: {units.plain(v)}" for v in values],
            hovertemplate="%{text}<extra></extra>",
        )
        for k, (key, values) in enumerate(curves.items())
    ]
    measure = str(asked.get("depth") or "")
    axis = _logarithmic(min(seen), max(seen), units.plain, measure) if log else {
        "title": {"text": measure}, "rangemode": "tozero"}  # fmt: skip
    longest = max(map(len, curves.values()))
    depth = {"title": {"text": "depth (0: the embedding)"}, "dtick": max(1, round(longest / 15))}
    legend = {"showlegend": len(curves) > 1, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
    figure = _figure(traces, xaxis=depth, yaxis=axis, hovermode="x", **legend)
    title = f"{measure[:1].upper()}{measure[1:]} through depth"
    return Figure(f"depth-{name}", title, str(asked.get("through") or ""), (View("Depth", (Panel(figure),)),))


# Figures shared with the comparison ----------------------------------------------------------------------------------


def _special(result: Mapping[str, Any], name: str) -> list[Figure | None]:
    if name == "coefficients":
        return [figures.attention_maps(as_compared(result))]
    if name == "memory":
        return [_horizons(result)]
    if name == "spectrum":
        return [_eigenvalues(result)]
    if name == "gradients":
        return [_fading(result)]
    if name in verdicts.DRAWN:
        return [verdicts.DRAWN[name](result)]
    return []


def as_compared(result: Mapping[str, Any]) -> dict[str, Any]:
    """The layers in the shape in which a comparison has them, for the figures that both share."""
    shared = [
        {
            "name": layer.get("name"),
            "dynamics": {
                "coefficients": at(layer, "answers", "coefficients", "maps"),
                "horizon": at(layer, "answers", "memory"),
                "eigenvalues": at(layer, "answers", "spectrum", "eigenvalues"),
            },
        }
        for layer in layers(result)
    ]
    return {"layers": shared}


def _horizons(result: Mapping[str, Any]) -> Figure | None:
    """The distribution over heads and text; along the text only for few layers, whose lines can be told apart."""
    drawn = figures.memory_horizon(as_compared(result))
    if drawn is None:
        return None
    views = drawn.views if len(layers(result)) <= FEW else drawn.views[:1]
    return Figure(drawn.key, "How does it vary over heads and over the text?", drawn.reading, views)


def _eigenvalues(result: Mapping[str, Any]) -> Figure | None:
    """On the unit disk; for many layers first how many of each modulus there are, through depth."""
    drawn = figures.eigenvalues(as_compared(result))
    if drawn is None or len(layers(result)) <= FEW:
        return drawn
    moduli = [
        [math.hypot(a, b) for a, b in zip(seen["re"], seen["im"])] if seen else []
        for seen in answers(result, "spectrum", "eigenvalues")
    ]
    top = max(1.0, max((m for row in moduli for m in row), default=1.0))
    z = []
    for row in moduli:
        counts = [0] * _BINS
        for m in row:
            counts[min(_BINS - 1, int(m / top * _BINS))] += 1
        z.append([c / max(1, len(row)) if c else None for c in counts])
    edges = [(k + 0.5) * top / _BINS for k in range(_BINS)]
    names = [label(name_of(layer)) for layer in layers(result)]
    tips = [
        [f"{n}<br>|λ| near {units.plain(e)}: {units.plain(100 * (v or 0))}%" for e, v in zip(edges, row)]
        for n, row in zip(names, z)
    ]
    trace = go.Heatmap(
        z=[_round(row, 4) for row in z],
        x=_round(edges, 4),
        colorscale=BLANK,
        zmin=0,
        colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".0%", "tickfont": {"color": "var(--muted)"}},
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
    )
    one = {
        "type": "line",
        "x0": 1,
        "x1": 1,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "var(--axis)", "width": 1},
    }
    axes = {"xaxis": {"title": {"text": "|λ|"}, "showgrid": False}, "yaxis": rows_axis(result)}
    figure = _figure([trace], shapes=[one], hovermode="closest", **axes)
    first = View("Through depth", (Panel(figure, height=90 + CELL * len(names)),))
    reading = "Through depth: the share of a layer's eigenvalues with each modulus. " + drawn.reading
    return Figure(drawn.key, drawn.title, reading, (first, *drawn.views))


# Figures of their own ------------------------------------------------------------------------------------------------


def _fading(result: Mapping[str, Any]) -> Figure | None:
    """Gradient against distance: a line for each of few layers, a row of shades for each of many."""
    seen = [(i, layer, at(layer, "answers", "gradients")) for i, layer in enumerate(layers(result))]
    seen = [(i, layer, one) for i, layer, one in seen if one and any(v for v in one["norm"])]
    if not seen:
        return None
    left = [
        [math.log10(v / max(one["norm"])) if v else None for v in one["norm"]] for _, _, one in seen
    ]  # of the largest
    floor = max(-12.0, min((v for row in left for v in row if v is not None), default=-1.0))
    if len(seen) <= FEW:
        traces = [
            figures._line(
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
        traces.append(go.Scatter(x=[1, last], y=[1, 1], mode="lines", name=name, line=flat, hoverinfo="skip"))
        axis = _logarithmic(10**floor, 1.0, units.plain, "of the largest")
        figure = _figure(traces, yaxis=axis, xaxis=_distances(seen), hovermode="closest", showlegend=True,
                         legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})  # fmt: skip
        panel = Panel(figure)
    else:
        rows: list[list[float | None]] = [[] for _ in layers(result)]
        for (i, _, _), row in zip(seen, left):
            rows[i] = [None if v is None else max(v, floor) for v in row]
        ticks = list(range(math.ceil(floor), 1, max(1, round(-floor / 4))))
        bar = {"tickvals": ticks, "ticktext": [f"1e{t}" if t else "1" for t in ticks], "thickness": 12,
               "outlinewidth": 0, "tickfont": {"color": "var(--muted)"}}  # fmt: skip
        trace = go.Heatmap(
            z=[_round(row, 4) for row in rows],
            x=[math.log10(d + 1) for d in seen[0][2]["distance"]],
            zmin=floor,
            zmax=0,
            colorscale=BLANK,
            colorbar=bar,
            hovertemplate="10^%{z:.3g} of the largest<extra></extra>",
            hoverongaps=False,
        )  # fmt: skip
        axis = _distances(seen) | {"type": "linear", "showgrid": False}
        axis |= {"tickvals": [math.log10(v) for v in axis["tickvals"]]}
        axis.pop("range")
        figure = _figure([trace], yaxis=rows_axis(result), xaxis=axis, hovermode="closest")
        panel = Panel(figure, height=90 + CELL * len(rows))
    asked = at(result, "questions", "gradients") or {}
    return Figure(
        "gradients", "Influence against distance", str(asked.get("reading") or ""), (View("Fading", (panel,)),)
    )


def _distances(seen: Sequence[tuple[int, Any, Any]]) -> dict[str, Any]:
    """A logarithmic axis of distances; the token itself, at distance 0, stands at 1."""
    last = max(one["distance"][-1] for _, _, one in seen) + 1
    return _logarithmic(1.0, max(2.0, last), units.count, "tokens apart (1: the token itself)", 0.02)
