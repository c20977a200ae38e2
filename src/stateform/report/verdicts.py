"""The figures of what a layer can do and of what a theorem says of it: verdicts, principles, heads, skips."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from . import figures, units
from .content import at, layers, name_of
from .figures import Figure, Panel, View, _figure, _logarithmic, label, three_shades

FEW = 8
"""Layers up to which each has a row, a line or a panel of its own in front; beyond, maps come first."""
CELL = 20
"""Pixels of a row of a map."""
_TALL = 44

VERDICTS = ("selection", "parity", "counting", "permutations")
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


def rows_axis(result: Mapping[str, Any]) -> dict[str, Any]:
    """A vertical axis with the layers, the first on top."""
    names = [label(name_of(layer)) for layer in layers(result)]
    return {"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed", "showgrid": False,
            "fixedrange": True, "tickfont": {"color": "var(--ink)", "size": 12}}  # fmt: skip


def _map(result: Mapping[str, Any], z: Any, words: Any, tips: Any, columns: Sequence[str], row: int) -> Panel:
    """Verdicts as a map: a row for each layer, a column for each thing that is judged."""
    at_ = list(range(len(columns)))
    trace = three_shades(z, words, tips, x=at_, xgap=2, ygap=1)
    top = {"tickvals": at_, "ticktext": list(columns), "side": "top", "showgrid": False, "fixedrange": True,
           "tickfont": {"color": "var(--ink)", "size": 12}}  # fmt: skip
    figure = _figure([trace], xaxis=top, yaxis=rows_axis(result), hovermode="closest")
    return Panel(figure, height=70 + row * len(z), width=860)


def _tip(name: str, what: str, verdict: Mapping[str, Any], word: str) -> str:
    """What the tooltip of a verdict says, in lines of some 70 characters."""
    lines = textwrap.wrap(str(verdict.get("why") or ""), 70)
    lines += [f"{key}: {units.plain(v)}" for key, v in (verdict.get("measured") or {}).items()]
    source = [str(verdict["source"])] if verdict.get("source") else []
    premises = textwrap.wrap(f"premise: {verdict['premises']}", 70) if verdict.get("premises") else []
    return label(f"{name}: {what} {word}") + "".join(f"<br>{label(x)}" for x in lines + source + premises)


def _verdicts(result: Mapping[str, Any]) -> Figure | None:
    """What each layer's transitions reach, a row a layer."""
    rank = {"excluded": 0, "open": 1, "reached": 2}
    z, words, tips = [], [], []
    for layer in layers(result):
        one = at(layer, "answers", "expressivity") or {}
        found = [at(one, name) or {} for name in VERDICTS]
        said = [str(v.get("verdict") or "") for v in found]
        z.append([rank.get(word) for word in said])
        words.append(said)
        tips.append([_tip(name_of(layer), *three) for three in zip(VERDICTS, found, said)])
    if not any(v is not None for row in z for v in row):
        return None
    reading = (
        "Reached: some parameters and inputs seen do it. Excluded: the structure forbids it. Open: neither. Selection: "
        "what is kept depends on the input. Necessary conditions for one layer; hover for the reason and its source."
    )
    panel = _map(result, z, words, tips, VERDICTS, 30 if len(z) <= FEW else CELL)
    return Figure("verdicts", "What a layer can do with its state", reading, (View("Verdicts", (panel,)),))


def _principles(result: Mapping[str, Any]) -> Figure | None:
    """The six principles, a row a layer; with the number that was measured where there is room."""
    rank: dict[Any, tuple[int, str]] = {False: (0, "no"), None: (1, "open"), True: (2, "yes")}
    few = len(layers(result)) <= FEW
    z: list[list[int | None]] = []
    words, tips = [], []
    for layer in layers(result):
        found = at(layer, "answers", "principles", "principles") or {}
        z.append([rank[found[name].get("holds")][0] if name in found else None for name in PRINCIPLES])
        said = [rank[found[name].get("holds")][1] if name in found else "" for name in PRINCIPLES]
        tips.append([_tip(name_of(layer), f"{title}?", found.get(name) or {}, word)
                     for (name, title), word in zip(PRINCIPLES.items(), said)])  # fmt: skip
        seen = [next(iter((at(found, name, "measured") or {}).values()), None) for name in PRINCIPLES]
        words.append([
            f"{word}<br>{form.format(units.count(v) if name == 'memory' else units.plain(v))}"
            if few and v is not None else word
            for name, word, v, form in zip(PRINCIPLES, said, seen, SHORT)
        ])  # fmt: skip
    if not any(v is not None for row in z for v in row):
        return None
    reading = str(at(result, "questions", "principles", "reading") or "")
    panel = _map(result, z, words, tips, list(PRINCIPLES.values()), _TALL if few else CELL)
    return Figure("principles", "The six principles, layer by layer", reading, (View("Principles", (panel,)),))


def _heads(result: Mapping[str, Any]) -> Figure | None:
    """Singular values of the operators of few layers; of many, the rank of each."""
    seen = [(i, layer, one) for i, layer in enumerate(layers(result)) if (one := at(layer, "answers", "interaction"))]
    if not seen:
        return None
    if len(seen) <= FEW:
        traces = []
        for i, layer, one in seen:
            s = [v for v in one["singular_values"] if v]
            tips = [f"singular value {k}: {units.plain(v)} of the largest" for k, v in enumerate(s, 1)]
            name = f"{name_of(layer)}: {one['rank']}"
            traces.append(figures._line(list(range(1, len(s) + 1)), s, i, name, tips, mode="lines+markers"))
        values = [v for _, _, one in seen for v in one["singular_values"] if v]
        axis = _logarithmic(min([*values, 0.5]), 1.0, units.plain, "of the largest")
        figure = _figure(traces, xaxis={"title": {"text": "singular value"}, "type": "linear"}, yaxis=axis,
                         hovermode="closest", showlegend=True,
                         legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})  # fmt: skip
    else:
        tips = [
            f"{label(name_of(layer))}<br><b>{one['rank']}</b> dimensions, of {one['there']} heads"
            for _, layer, one in seen
        ]
        bars = go.Bar(x=[i for i, *_ in seen], y=[one["rank"] for *_, one in seen], customdata=tips,
                      marker={"color": "var(--layer-0)"}, hovertemplate="%{customdata}<extra></extra>")  # fmt: skip
        axes = {"xaxis": {"title": {"text": "layer"}, "showgrid": False}, "yaxis": {"title": {"text": "dimensions"}}}
        figure = _figure([bars], hovermode="closest", bargap=0.2, **axes)
    reading = str(at(result, "questions", "interaction", "reading") or "")
    reading += " What stands clear of rounding is counted." if len(seen) <= FEW else ""
    panel = Panel(figure, height=300)
    return Figure("interaction", "The dimensions of the operators W_ij", reading, (View("Rank", (panel,)),))


def _skips(result: Mapping[str, Any]) -> Figure | None:
    """The skip of the model, the one measured to be enough, and what the theorem asks for."""
    found = at(result, "model", "skip")
    if not found:
        return None
    bars = {
        "of the model": found.get("skip"),
        "enough, as measured": found.get("measured"),
        "by the theorem's first condition": found.get("needed"),
        "by both of its conditions": found.get("enough"),
    }
    known = {name: abs(v) for name, v in bars.items() if v is not None}
    positive = [v for v in known.values() if v > 0]
    low, high = min(positive, default=1.0) / 3, max(positive, default=1.0) * 3
    trace = go.Bar(
        x=[v or low for v in known.values()],  # a logarithmic axis has no place for 0
        y=list(known),
        orientation="h",
        marker={"color": [f"var(--layer-{k})" for k, name in enumerate(bars) if name in known], "cornerradius": 3},
        text=[units.plain(v) if v else "0: none is needed" for v in known.values()],
        textposition="outside",
        textfont={"color": "var(--ink)"},
        cliponaxis=False,
        hoverinfo="skip",
    )
    axis = _logarithmic(low, high, units.plain, "skip strength |λ|")
    names = {"autorange": "reversed", "showgrid": False, "tickfont": {"color": "var(--ink)", "size": 12}}
    figure = _figure([trace], xaxis=axis, yaxis=names, bargap=0.35, margin={"r": 40})
    reading = str(at(result, "questions", "skip", "reading") or "")
    panel = Panel(figure, height=80 + 46 * len(known), width=860)
    return Figure("skip", "Measured, and promised by the theorem", reading, (View("Skips", (panel,)),))


DRAWN: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "expressivity": _verdicts, "principles": _principles, "interaction": _heads, "skip": _skips,
}  # fmt: skip
"""The figure of a question, by its name."""
