"""How far back each head looks: the tokens that hold 95% of what an output reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ...report import Column, Figure, Grid, Headline, Panel, View, dig, units
from ...report.figure import FEW, colour, drawing, layer_rows, line, logarithmic, named_ends, scatter, short
from ...report.units import MISSING
from ...report.words import capitalised
from ..words import (
    FAINT,
    Answer,
    Rows,
    answered,
    count,
    has,
    layer_row,
    layers,
    name_of,
    of_heads,
    place,
    share_read,
    span,
)
from .question import Beside, Finding, Question, Told
from .spectrum import eigenvalue_range
from .state import dimensions

_SPREAD = 46
"""Pixels of the row of a layer."""


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell which head looks furthest, what most do, and which layers remember least and longest."""
    every = of_heads(rows, "memory")
    if not every:
        return
    yield from _said_of_sinks(rows)
    far = [(x, i, h) for x, i, h in every if _of(rows, i, "sinks", h) is None and share_read(rows, i, h) > FAINT]
    if far:
        tokens, i, h = max(far)
        middle = median(x for x, *_ in every)
        contrast = min(1.0, math.log2(max(tokens / max(middle, 1.0), 1.0)) / 6)
        text = f"{place(rows, i, h)} keeps {_tokens(rows, tokens, i, h)}"
        text += " (95% of what it reads)" if _limited(rows, i, h) else " (95% of what it reads, median over the text)"
        need = dict(answered(rows, "state")).get(i, {})
        if h < len(need.get("heads") or []):
            text += f"; it needs {dimensions(need['heads'][h], need, h)}"
        yield Finding(capitalised(f"{text}."), 0.6 + 0.35 * contrast, layer=i, head=h)
    if len(every) > 1:
        yield Finding(_reach_of_most(rows, every), 0.5)
    if len(rows) > 3:
        by_layer = [(median(one["heads"]), i) for i, one in answered(rows, "memory") if one.get("heads")]
        (low, a), (high, b) = min(by_layer), max(by_layer)
        if high > 2 * low:
            most = f"at least {round(high)}" if any(answered_of(rows, b).get("limited") or []) else str(round(high))
            yield Finding(f"Memory is shortest in layer {a} ({count(round(low), 'token')}, median over its heads) and "
                          f"longest in layer {b} ({most}).", 0.55)  # fmt: skip


def _said_of_sinks(rows: Rows) -> Iterator[Finding]:
    """Find the head whose first token has most of the weight, and count the others that have such a token."""
    sinks = [(x, i, h) for i, one in answered(rows, "memory") for h, x in enumerate(one.get("sinks") or []) if x]
    if not sinks:
        return
    weight, i, h = max(sinks)
    others = len(sinks) - 1
    more = f"; so {'does' if others == 1 else 'do'} {count(others, 'other head')}" if others else ""
    rest = count(round(_of(rows, i, "rest", h)), "token")
    text = (
        f"{place(rows, i, h)} reads to the first token at every position: {weight:.0%} of its weight lies there "
        f"(median over the text), and 95% of the rest in the last {rest}{more}."
    )
    yield Finding(capitalised(text), 0.7, layer=i, head=h)


def _reach_of_most(rows: Rows, every: Sequence[tuple[float, int, int]]) -> str:
    """Tell how far back half of the heads look, and how many look hardly back at all."""
    near = sum(x <= 4 for x, *_ in every)
    short = f"; {near} {'keeps' if near == 1 else 'keep'} 4 or fewer" if near else ""
    far = sum(_limited(rows, i, h) for _, i, h in every)
    if 2 * far > len(every):
        return f"{far} of the {len(every)} heads reach back as far as the text or their window goes{short}."
    middle = median(x for x, *_ in every)
    return f"Half of the {len(every)} heads reach back {count(round(middle), 'token')} or fewer{short}."


def answered_of(rows: Rows, layer: int) -> Answer:
    """Give what is known of a layer's memory."""
    return dict(answered(rows, "memory"))[layer]


def _of(rows: Rows, layer: int, name: str, head: int) -> Any:
    """Read one of the answers about a head's memory; None where it was not asked (a result of an earlier version)."""
    known = answered_of(rows, layer).get(name) or []
    return known[head] if head < len(known) else None


def _limited(rows: Rows, layer: int, head: int) -> bool:
    return bool(_of(rows, layer, "limited", head))


def _tokens(rows: Rows, tokens: float, layer: int, head: int) -> str:
    """Write a horizon in words; where it is as long as the text or the window, as a bound from below."""
    text = count(round(tokens), "token")
    if not _limited(rows, layer, head):
        return text
    return (
        f"at least {text}, {'all of its window' if answered_of(rows, layer)['window'] else 'as far as the text goes'}"
    )


def horizons(horizon: Any) -> list[tuple[float, str]]:
    """Give the horizon of each head, in tokens and as it is written: with a sign where it is a bound from below."""
    heads, limited = dig(horizon, "heads") or [], dig(horizon, "limited") or []
    signs = ["≥ " if far else "" for far in limited] + [""] * (len(heads) - len(limited))
    return [(float(h), sign + units.count(round(h))) for h, sign in zip(heads, signs, strict=True) if h is not None]


def reach(one: Mapping[str, Any]) -> str:
    """Write the span of the horizons, those that are bounds from below with their sign."""
    texts = dict(horizons(one))
    return span(list(texts), lambda v: texts.get(v) or units.count(round(v)))


def memory_horizon(result: Told, *where: str) -> Figure | None:
    """Draw how many tokens back hold most of what an output reads: per layer and head, and along the text.

    Args:
        result: with the layers.
        where: each layer has its horizon.
    """
    every = [(i, layer, found) for i, layer in enumerate(layers(result)) if (found := dig(layer, *where))]
    views = [view for view in (_horizon_spread(every), _horizon_along(every)) if view]
    if not views:
        return None
    return Figure(
        "horizon",
        "How far back does each layer remember?",
        "How many tokens back hold 95% of the weight with which an output reads its past. The bar spans the middle 80% "
        "of positions and heads, the dot is the median, each ring is one head.",
        tuple(views),
    )


def _horizon_spread(every: Sequence[tuple[int, Any, Any]]) -> View | None:
    traces: list[Any] = []
    values: list[float] = []
    rows: list[tuple[int, str]] = []
    for i, layer, horizon in every:
        written = horizons(horizon)
        heads = [h for h, _ in written]
        low, middle, high = (dig(horizon, "quantiles", key) for key in ("0.1", "0.5", "0.9"))
        if not heads and middle is None:
            continue
        row = len(rows)
        rows.append((i, name_of(layer)))
        shared = {"meta": {"layer": i}, "hovertemplate": "%{text}<extra></extra>"}
        if low is not None and high is not None:
            line = {"color": colour(i, "soft"), "width": 16}
            bar = scatter(x=short([max(low, 1), max(high, 1)]), y=[row, row], mode="lines", line=line, hoverinfo="skip")
            traces.append(bar.update(meta={"layer": i}))
            values += [low, high]
        traces.append(
            scatter(
                x=short([max(h, 1.0) for h in heads]),
                y=[row] * len(heads),
                mode="markers",
                marker={"symbol": "circle-open", "size": 10, "color": colour(i), "line": {"width": 1.5}},
                text=[f"head {k}: {text} tokens" for k, (_, text) in enumerate(written)],
                **shared,
            )
        )
        values += heads
        if middle is not None:
            text = f"median {units.count(round(middle))} tokens"
            if low is not None and high is not None:
                text += f"<br>80% between {units.count(round(low))} and {units.count(round(high))}"
            mark = {"size": 13, "color": colour(i), "line": {"width": 2, "color": "var(--panel)"}}
            traces.append(
                scatter(x=short([max(middle, 1.0)]), y=[row], mode="markers", marker=mark, text=[text], **shared)
            )
            values.append(middle)
    if not rows:
        return None
    axis = logarithmic(1.0, max(10.0, *values), units.count, "tokens back")
    figure = drawing(
        traces,
        xaxis=axis,
        hovermode="closest",
        **layer_rows(rows, _SPREAD),
    )
    return View("Spread", (Panel(figure, height=90 + _SPREAD * len(rows)),))


def _horizon_along(every: Sequence[tuple[int, Any, Any]]) -> View | None:
    traces, ends, values, furthest = [], [], [1.0], 1.0
    for i, layer, horizon in every:
        where, medians = dig(horizon, "by_position", "t") or [], dig(horizon, "by_position", "median") or []
        points = [(t + 1, max(m, 1.0)) for t, m in zip(where, medians) if None not in (t, m)]
        if len(points) < 2:
            continue
        tips = [f"{units.count(round(m))} tokens back" for _, m in points]
        traces.append(line([t for t, _ in points], [m for _, m in points], i, name_of(layer), tips, mode="lines"))
        ends.append((i, name_of(layer), points[-1][1]))
        values += [m for _, m in points]
        furthest = max(furthest, points[-1][0])
    if not traces:
        return None
    top = max(*values, furthest)
    limit = scatter(
        x=[1, furthest],
        y=[1, furthest],
        mode="lines",
        line={"color": "var(--axis)", "width": 1.25, "dash": "dot"},
        hoverinfo="skip",
    )
    axis = logarithmic(1.0, top, units.count, "tokens back (median)")
    hint = {
        "text": "all that was read",
        "x": math.log10(furthest) * 0.5,
        "y": math.log10(furthest) * 0.5,
        "showarrow": False,
        "xanchor": "right",
        "xshift": -6,
        "yshift": 8,
        "font": {"color": "var(--muted)", "size": 12},
    }
    figure = drawing(
        [limit, *traces],
        xaxis=logarithmic(1.0, furthest, units.count, "position in the text", 0.02),
        meta={"over": "position %{x}"},
        yaxis=axis,
        hovermode="x unified",
        annotations=[hint, *named_ends(ends, axis)],
    )
    return View("Along the text", (Panel(figure),))


def draw(result: Told) -> Figure | None:
    """Draw the distribution over heads and text; along the text only for few layers, whose lines can be told apart."""
    drawn = memory_horizon(result, "answers", "memory")
    if drawn is None:
        return None
    views = drawn.views if len(layers(result)) <= FEW else drawn.views[:1]
    return Figure(drawn.key, "How does it vary over heads and over the text?", drawn.reading, views)


def table(result: Told) -> Grid | None:
    """Tell how far back each layer reads on this text, and the eigenvalues behind it."""
    if not (has(result, "dynamics") or has(result, "identity", "eigenvalue_range")):
        return None
    rows = []
    for i, layer in enumerate(layers(result)):
        quantiles = dig(layer, "dynamics", "horizon", "quantiles")
        heads = horizons(dig(layer, "dynamics", "horizon"))
        ends = list(dict.fromkeys(pick(heads)[1] for pick in (min, max))) if heads else [MISSING]
        sign = "≥ " if _mostly_limited(layer) else ""
        cells = [
            MISSING if q is None else sign + units.count(round(q))
            for q in (dig(quantiles, k) for k in ("0.1", "0.5", "0.9"))
        ]
        rows.append(layer_row(i, layer, *cells, " to ".join(ends), eigenvalue_range(layer)))
    columns = (
        Column("Layer"),
        Column("10%", numeric=True),
        Column("median", numeric=True),
        Column("90%", numeric=True),
        Column("heads", numeric=True),
        Column("Eigenvalues", numeric=True),
    )
    notes = ["How many tokens back hold 95% of what an output reads: over all positions and heads, then per head."]
    if any(any(dig(layer, "dynamics", "horizon", "limited") or []) for layer in layers(result)):
        notes.append(
            "≥: heads that read as far back as the text or their window goes, whose number is how far that is."
        )
    sinks = [
        f"head {h} of {name_of(layer)} ({x:.0%})"
        for layer in layers(result)
        for h, x in enumerate(dig(layer, "dynamics", "horizon", "sinks") or [])
        if x is not None
    ]
    if sinks:
        more = f" and {len(sinks) - 6} more" if len(sinks) > 6 else ""
        named = f"{', '.join(sinks[:6])}{more}"
        notes.append(f"Read to the first token at every position, with this share of their weight: {named}.")
    return Grid("memory", "How many tokens back does each layer reach?", columns, tuple(rows), tuple(notes))


def _mostly_limited(layer: Mapping[str, Any]) -> bool:
    """True if more than half of the heads read as far back as the text or their window goes."""
    limited = dig(layer, "dynamics", "horizon", "limited") or []
    return 2 * sum(limited) > len(limited)


def _headlines(result: Told) -> Iterator[Headline]:
    every = layers(result)
    reach = [(i, q) for i, layer in enumerate(every) if (q := dig(layer, "dynamics", "horizon", "quantiles", "0.5"))]
    if reach:
        i, tokens = max(reach, key=lambda pair: pair[1])
        detail = f"95% of what an output reads lies within {units.count(round(tokens))} tokens (median)."
        if _mostly_limited(every[i]):
            detail = "Most heads read as far back as the text or their window goes."
        yield Headline("Longest memory", name_of(every[i]), detail, i)


QUESTION = Question(
    "memory",
    "How far back does each head look?",
    lambda site: site.horizon.to_dict(),
    None,
    say,
    heads="tokens back",
    reading="How many tokens back hold 95% of the weight with which an output reads its past, median over the "
    "text; of a head that reads as far as the text or its window goes, how far that is (≥).",
    figures=lambda result: [draw(result)],
    column=Column("Tokens back", numeric=True),
    cell=reach,
    order=1,
)
BESIDE = Beside(
    "dynamics",
    70,
    lambda result, lengths: [table(result)],
    lambda result: [memory_horizon(result, "dynamics", "horizon")],
    _headlines,
    tables_order=90,
    layer=lambda one: one.horizon.to_dict(),
    where=("dynamics", "horizon"),
)
