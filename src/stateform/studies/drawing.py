"""The drawings that questions share: maps of depth and heads, curves through depth, maps of verdicts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..report import Figure, Panel, View, dig, units
from ..report.figure import (
    CELL,
    COLOURS,
    LEGEND,
    SHADES,
    SYMBOLS,
    bar,
    drawing,
    heatmap,
    label,
    logarithmic,
    map_rows,
    scatter,
    short,
    three_shades,
)
from .words import layers, name_of, names

_WRITTEN = 16
"""Heads up to which each has its number written."""


def heads_figure(result: Mapping[str, Any], name: str, asked: Mapping[str, Any]) -> Figure | None:
    """Draw the numbers of the heads: bars for one layer, a map of depth and heads for several."""
    z = [dig(layer, "answers", name, "heads") for layer in layers(result)]
    z = [row if isinstance(row, list) and all(not isinstance(x, dict) for x in row) else [] for row in z]
    widest = max(map(len, z), default=0)
    if widest == 0 or (len(z) == 1 and widest == 1):
        return None
    measure = str(asked.get("heads") or "")
    title = f"{measure[:1].upper()}{measure[1:]}, by {'head' if len(z) == 1 else 'layer and head'}"
    panel = _head_bars(z[0], measure) if len(z) == 1 else _head_map(result, z, widest, measure)
    return Figure(f"heads-{name}", title, str(asked.get("reading") or ""), (View("Heads", (panel,)),))


def _head_bars(values: Sequence[float | None], measure: str) -> Panel:
    every = bar(
        x=list(range(len(values))),
        y=short(values),
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
    figure = drawing([every], xaxis=axis, yaxis={"rangemode": "tozero"}, bargap=0.35, margin={"t": 24})
    return Panel(figure, height=260, width=180 + 70 * len(values))


def _head_map(result: Mapping[str, Any], z: Sequence[Sequence[float | None]], widest: int, measure: str) -> Panel:
    """Draw a row for each layer, a column for each head; shades by the logarithm where the numbers span a decade."""
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
    scale: dict[str, Any] = {"thickness": 12, "outlinewidth": 0, "tickfont": {"color": "var(--muted)", "size": 12}}
    if log:
        ticks, texts = units.ticks(10**low, 10**high, units.count, 5)
        scale |= {"tickvals": [math.log10(t) for t in ticks], "ticktext": texts}
    trace = heatmap(
        z=[short(row, 4) for row in shade],
        zmin=low,
        zmax=high if high > low else low + 1,
        colorscale=SHADES,
        colorbar=scale,
        text=[[_written(v) for v in row] + [""] * (widest - len(row)) for row in z] if few else None,
        texttemplate="%{text}" if few else None,
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1 if widest <= 64 else 0,
        ygap=1,
    )
    figure = drawing(
        [trace],
        xaxis={"title": {"text": "head"}, "showgrid": False, "side": "top", "dtick": 1 if few else None,
               "fixedrange": True},
        yaxis=map_rows(names(result)),
        hovermode="closest",
    )  # fmt: skip
    return Panel(figure, height=90 + CELL * len(z), width=260 + max(300, 46 * widest if few else 10 * widest))


def _written(v: float | None) -> str:
    if v is None:
        return units.MISSING
    return units.count(round(v)) if abs(v) >= 10 else units.near_one(v) if abs(v) >= 0.5 else units.plain(v, 2)


def depth_figure(result: Mapping[str, Any], name: str, asked: Mapping[str, Any]) -> Figure | None:
    """Draw curves through depth: what the model's answer has as `depth`, by name."""
    curves = dig(result, "model", name, "depth") or {}
    curves = {key: values for key, values in curves.items() if any(v is not None for v in values)}
    if not curves:
        return None
    seen = [v for values in curves.values() for v in values if v is not None]
    log = min(seen) > 0 and max(seen) > 30 * min(seen)
    traces = [
        scatter(
            x=list(range(len(values))),
            y=short(values),
            mode="lines+markers",
            name=label(key),
            line={"color": f"var(--layer-{k % COLOURS})", "width": 2.25},
            marker={"symbol": SYMBOLS[k % len(SYMBOLS)], "size": 7},
            text=[f"{label(key)}: {units.plain(v)}" for v in values],
            hovertemplate="%{text}<extra></extra>",
        )
        for k, (key, values) in enumerate(curves.items())
    ]
    measure = str(asked.get("depth") or "")
    axis = logarithmic(min(seen), max(seen), units.plain, measure) if log else {
        "title": {"text": measure}, "rangemode": "tozero"}  # fmt: skip
    longest = max(map(len, curves.values()))
    depth = {"title": {"text": "depth (0: the embedding)"}, "dtick": max(1, round(longest / 15))}
    legend = {"showlegend": len(curves) > 1, "legend": LEGEND}
    figure = drawing(traces, xaxis=depth, yaxis=axis, hovermode="x", **legend)
    title = f"{measure[:1].upper()}{measure[1:]} through depth"
    return Figure(f"depth-{name}", title, str(asked.get("through") or ""), (View("Depth", (Panel(figure),)),))


def verdict_map(layers: Sequence[str], z: Any, words: Any, tips: Any, columns: Sequence[str], row: int) -> Panel:
    """Draw verdicts as a map: a row for each layer, a column for each thing that is judged."""
    at_ = list(range(len(columns)))
    trace = three_shades(z, words, tips, x=at_, xgap=2, ygap=1)
    top = {"tickvals": at_, "ticktext": list(columns), "side": "top", "showgrid": False, "fixedrange": True,
           "tickfont": {"color": "var(--ink)", "size": 12}}  # fmt: skip
    figure = drawing([trace], xaxis=top, yaxis=map_rows(layers), hovermode="closest")
    return Panel(figure, height=70 + row * len(z), width=860)


def verdict_tip(name: str, what: str, verdict: Mapping[str, Any], word: str) -> str:
    """Write what the tooltip of a verdict says, in lines of some 70 characters."""
    lines = textwrap.wrap(str(verdict.get("why") or ""), 70)
    lines += [f"{key}: {units.plain(v)}" for key, v in (verdict.get("measured") or {}).items()]
    source = [str(verdict["source"])] if verdict.get("source") else []
    premises = textwrap.wrap(f"premise: {verdict['premises']}", 70) if verdict.get("premises") else []
    return label(f"{name}: {what} {word}") + "".join(f"<br>{label(x)}" for x in lines + source + premises)
