"""The figures of the report, each the answer to the question in its title.

Colours are names of the page's custom properties (`var(--layer-0)`), so that one set of figures serves the dark and the
light theme; the page's script puts the values in. A trace, an end label or a panel that is about one layer carries the
layer's position, so that the page can hide the layer everywhere at once. A layout's `meta` says what else the page is
to do: `over` heads a tooltip, `rows` are the layers of the rows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from . import content, units
from .content import at, horizons, layers, measured, name_of, visible

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
DASHES = {"recurrent": "solid", "chunkwise": "dash", "scan": "dot", "matrix": "dashdot", "convolution": "longdash"}
COLOURS = 8

WIDE, SMALL = 400, 250  # heights, in pixels
_BAR, _SPREAD = 34, 46  # heights of the rows of the bars and of the horizons
_LABEL_HEIGHT = 16.0
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"


@dataclass(frozen=True)
class Panel:
    """One drawing: its plotly figure, its heading, the layer it is about, its height and its largest width in pixels.

    Without a height it is square.
    """

    figure: go.Figure
    title: str = ""
    layer: int | None = None
    height: int | None = WIDE
    width: int | None = None


@dataclass(frozen=True)
class View:
    """One way to look at the answer: one wide panel or several small ones, and what each style of line means."""

    name: str
    panels: tuple[Panel, ...]
    small: bool = False
    styles: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Figure:
    """A question, how to read the answer, and the answer in one or several views."""

    key: str
    title: str
    reading: str
    views: tuple[View, ...]
    finding: str = ""


def _axis(**more: Any) -> dict[str, Any]:
    return {
        "gridcolor": "var(--grid)",
        "linecolor": "var(--axis)",
        "tickfont": {"color": "var(--muted)", "size": 12},
        "title": {"font": {"color": "var(--muted)", "size": 12.5}, "standoff": 12},
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "automargin": True,
        "spikethickness": -1,
        "spikecolor": "var(--axis)",
        "spikedash": "solid",
        **more,
    }


TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": "var(--ink)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "margin": {"l": 12, "r": 16, "t": 12, "b": 12},
        "hoverlabel": {
            "bgcolor": "var(--tip)",
            "bordercolor": "var(--axis)",
            "font": {"family": _FONT, "color": "var(--ink)", "size": 12.5},
            "align": "left",
        },
        "xaxis": _axis(),
        "yaxis": _axis(),
        "dragmode": "zoom",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": "var(--axis)",
            "activecolor": "var(--ink)",
            "remove": ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale"],
        },
    }
)


def _figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    return go.Figure(traces, go.Layout(template=TEMPLATE, **layout))


def label(text: str) -> str:
    """`text` as plotly shows it literally: its labels understand a few HTML tags and `%{...}`."""
    return html.escape(visible(text), quote=False).replace("%{", "%\u200b{")


def colour(layer: int, kind: str = "layer") -> str:
    """The colour of a layer, the same in every figure; `soft` for bands behind it."""
    return f"var(--{kind}-{layer % COLOURS})"


def _round(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    return [None if value is None else float(f"{value:.{digits - 1}e}") for value in values]


def _logarithmic(
    low: float, high: float, write: Callable[[float], str], title: str, room: float = 0.06
) -> dict[str, Any]:
    """A logarithmic axis from `low` to `high` with some room on both sides and ticks that people read."""
    a, b = math.log10(low), math.log10(high)
    pad = max(room * (b - a), 0.04)
    values, texts = units.ticks(10 ** (a - pad), 10 ** (b + pad), write)
    return {"type": "log", "range": [a - pad, b + pad], "tickvals": values, "ticktext": texts, "title": {"text": title}}


def _length_axis(lengths: Sequence[int], title: str = "sequence length T (tokens)") -> dict[str, Any]:
    a, b = math.log10(min(lengths)), math.log10(max(lengths))
    pad = max(0.03 * (b - a), 0.03)
    shown = content.thinned(sorted(lengths), 7)
    texts = [str(T) if T < 10_000 else units.count(T) for T in shown]
    return {"type": "log", "range": [a - pad, b + pad], "tickvals": shown, "ticktext": texts, "title": {"text": title}}


def _end_labels(
    ends: Sequence[tuple[int, str, float]], low: float, high: float, height: float, log: bool = True
) -> list[dict[str, Any]]:
    """The layers' names at the right ends of their lines, moved apart where they would overlap.

    Args:
        ends: layer, name and last value of each line.
        low: the value at the lower end of the axis.
        high: the value at the upper end of the axis.
        height: of the plotting area, in pixels.
        log: whether the axis is logarithmic.
    """
    scale = math.log10 if log else float
    per_unit = height / (scale(high) - scale(low))
    wanted = sorted(((scale(value) - scale(low)) * per_unit, layer, name, value) for layer, name, value in ends)
    spots = [pixel for pixel, *_ in wanted]
    for _ in range(200):  # push neighbours apart until none overlap
        moved = False
        for k in range(len(spots) - 1):
            overlap = _LABEL_HEIGHT - (spots[k + 1] - spots[k])
            if overlap > 0.01:
                spots[k], spots[k + 1], moved = spots[k] - overlap / 2, spots[k + 1] + overlap / 2, True
        if not moved:
            break
    return [
        {
            "name": f"end-{layer}",
            "text": label(name if len(name) <= 22 else name[:21] + "…"),
            "xref": "paper",
            "x": 1,
            "xanchor": "left",
            "xshift": 8,
            "y": math.log10(value) if log else value,
            "yshift": spot - pixel,
            "showarrow": False,
            "align": "left",
            "font": {"color": colour(layer), "size": 12.5},
        }
        for (pixel, layer, name, value), spot in zip(wanted, spots)
    ]


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], layer: int) -> go.Scatter:
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=_round([*high, *reversed(low)]),
        fill="toself",
        fillcolor=colour(layer, "soft"),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        meta={"layer": layer},
    )


def _line(
    x: Sequence[float], y: Sequence[float | None], layer: int, name: str, tips: Sequence[str], **more: Any
) -> go.Scatter:
    """A layer's line; `tips` are what the tooltip says at each point, after the name."""
    style = {"color": colour(layer), "width": 2.25, **more.pop("line", {})}
    return go.Scatter(
        x=list(x),
        y=_round(y),
        name=label(name),
        mode=more.pop("mode", "lines+markers"),
        line=style,
        marker={"color": colour(layer), "symbol": SYMBOLS[layer % len(SYMBOLS)], "size": 7},
        text=[label(tip) for tip in tips],
        hovertemplate="%{text}<extra>" + label(name) + "</extra>",
        meta={"layer": layer},
        **more,
    )


# Cost ----------------------------------------------------------------------------------------------------------------


def time_over_length(result: Mapping[str, Any]) -> Figure | None:
    """Time of a forward pass over T: the fastest form of each layer, the same per token, and every form by itself."""
    timed = [(i, layer, measured(layer)) for i, layer in enumerate(layers(result)) if measured(layer)]
    if not timed:
        return None
    every = content.lengths(result)
    views = [_best_times(timed, every, False), _best_times(timed, every, True), _times_by_form(timed, every)]
    said: dict[str, list[str]] = {}
    for _, layer, _ in timed:
        if (text := at(layer, "cost", "crossover", "text")) and layer.get("name") != content.BASELINE:
            said.setdefault(visible(str(text)).rstrip("."), []).append(name_of(layer))
    found = [f"{content.listing(which)}: {text}." for text, which in said.items()]
    return Figure(
        "time",
        "How does time grow with the length of the sequence?",
        "Median of a forward pass; the band spans the low and the high of the repeats. Both axes are logarithmic.",
        tuple(views),
        " ".join(found),
    )


def _best_times(timed: Sequence[tuple[int, Any, Any]], every: Sequence[int], per_token: bool) -> View:
    traces, ends, values = [], [], []
    for i, layer, _ in timed:
        points = [(T, *pair) for T in every if (pair := content.best(layer, T))]
        if not points:
            continue
        share = [1e3 / T if per_token else 1.0 for T, _, _ in points]
        x = [T for T, _, _ in points]
        median = [time["median"] * s for s, (_, _, time) in zip(share, points)]
        low = [(time.get("low") or time["median"]) * s for s, (_, _, time) in zip(share, points)]
        high = [(time.get("high") or time["median"]) * s for s, (_, _, time) in zip(share, points)]
        write = units.microseconds if per_token else units.milliseconds
        tips = [f"{write(value)}, {form}" for value, (_, form, _) in zip(median, points)]
        traces += [_band(x, low, high, i), _line(x, median, i, name_of(layer), tips)]
        ends.append((i, name_of(layer), median[-1]))
        values += low + high
    write, unit = (
        (units.microseconds, "time per token") if per_token else (units.milliseconds, "time of a forward pass")
    )
    axis = _logarithmic(min(values), max(values), write, unit)
    figure = _figure(
        traces,
        xaxis=_length_axis(every),
        meta={"over": "T = %{x}"},
        yaxis=axis,
        hovermode="x unified",
        annotations=_end_labels(ends, 10 ** axis["range"][0], 10 ** axis["range"][1], WIDE - 70),
    )
    return View("Per token" if per_token else "Whole sequence", (Panel(figure),))


def _times_by_form(timed: Sequence[tuple[int, Any, Any]], every: Sequence[int]) -> View:
    values = [
        v for _, _, forms in timed for times in forms.values() for time in times.values() for v in time.values() if v
    ]
    axis = _logarithmic(min(values), max(values), units.milliseconds, "")
    panels, used = [], set()
    for i, layer, forms in timed:
        traces = []
        for form, times in forms.items():
            used.add(form)
            tips = [f"{form}: {units.milliseconds(time['median'])}" for time in times.values()]
            medians = [time["median"] for time in times.values()]
            style = {"dash": DASHES.get(form, "solid"), "width": 2}
            lines = _line(list(times), medians, i, name_of(layer), tips, line=style)
            lines.marker.size = 5
            lines.hovertemplate = "%{text}<extra></extra>"
            traces.append(lines)
        chosen = _length_axis(content.thinned(every, 3), "T") | {"range": _length_axis(every)["range"]}
        panels.append(Panel(_figure(traces, xaxis=chosen, yaxis=axis, hovermode="x"), name_of(layer), i, SMALL))
    styles = tuple((visible(form), DASHES.get(form, "solid")) for form in [*DASHES, *used] if form in used)
    return View("Every form", tuple(panels), True, tuple(dict.fromkeys(styles)))


def cost_at_longest(result: Mapping[str, Any]) -> Figure | None:
    """Bars of time, work and memory at the largest length, and of the time of the next token."""
    T = content.longest(result)
    every = list(enumerate(layers(result)))

    def fastest(layer: Any) -> float | None:
        pair = content.best(layer, T) if T else None
        return pair[1]["median"] if pair else None

    def peak(layer: Any) -> float | None:
        found = content.memory_at(layer, T)
        return found[1] if found else None

    questions: list[tuple[str, Callable[[Any], float | None], Callable[[float | None], str]]] = [
        (f"Time, T = {T}", fastest, units.milliseconds),
        (f"Work, T = {T} (FLOPs)", lambda layer: content.at_length(at(layer, "cost", "flops"), T), units.count),
        (f"Peak memory, T = {T}", peak, units.size),
        ("Next token, from a state", lambda layer: at(layer, "cost", "decode_us", "median"), units.microseconds),
    ]
    panels = []
    for title, value, write in questions:
        bars = [(i, name_of(layer), float(v)) for i, layer in every if (v := value(layer)) is not None]
        if bars:
            panels.append(Panel(_bars(bars, write), title, None, 12 + _BAR * len(bars)))
    if not panels:
        return None
    reading = "Time in the fastest form, memory measured in the form that auto takes, work counted. Shorter is cheaper."
    title = f"What does each layer cost at T = {T}?" if T else "What does each layer cost?"
    return Figure("cost", title, reading, (View("Cost", tuple(panels), True),))


def _rows(shown: Sequence[tuple[int, str]], step: int) -> dict[str, Any]:
    """A vertical axis with a row of `step` pixels for each layer, and which they are, so that hidden ones close up."""
    axis = {
        "tickvals": list(range(len(shown))),
        "ticktext": [label(name) for _, name in shown],
        "range": [len(shown) - 0.45, -0.55],
        "showgrid": False,
        "tickfont": {"color": "var(--ink)", "size": 12.5},
        "ticks": "outside",
        "ticklen": 7,
        "tickcolor": "rgba(0,0,0,0)",
        "fixedrange": True,
    }
    return {"yaxis": axis, "meta": {"rows": [i for i, _ in shown], "step": step}}


def _bars(bars: Sequence[tuple[int, str, float]], write: Callable[[float | None], str]) -> go.Figure:
    traces = [
        go.Bar(
            x=_round([value]),
            y=[row],
            orientation="h",
            marker={"color": colour(i), "cornerradius": 3},
            width=0.56,
            text=[write(value)],
            textposition="outside",
            textfont={"color": "var(--ink)"},
            cliponaxis=False,
            hovertemplate=f"{label(name)}: {write(value)}<extra></extra>",
            meta={"layer": i},
        )
        for row, (i, name, value) in enumerate(bars)
    ]
    largest = max(value for *_, value in bars) or 1.0
    return _figure(
        traces,
        xaxis={"range": [0, 1.32 * largest], "visible": False, "fixedrange": True},
        barmode="overlay",
        margin={"l": 8, "r": 4, "t": 2, "b": 2},
        **_rows([(i, name) for i, name, _ in bars], _BAR),
    )


# State and dynamics --------------------------------------------------------------------------------------------------


def state_over_length(result: Mapping[str, Any]) -> Figure | None:
    """How many numbers each layer carries after T tokens: a cache grows, a finite state does not."""
    held = [(i, layer) for i, layer in enumerate(layers(result)) if content.state_at(layer, 1)]
    if not held:
        return None
    last = max(17, math.ceil(math.log2(content.longest(result) or 1)))
    x = [2**k for k in range(last + 1)]
    traces, ends, values = [], [], []
    for i, layer in held:
        y = [float(content.state_at(layer, T) or 0) for T in x]
        tips = [units.count(value) + " numbers" for value in y]
        traces.append(_line(x, y, i, name_of(layer), tips, mode="lines"))
        ends.append((i, name_of(layer), y[-1]))
        values += y
    axis = _logarithmic(min(values), max(values), units.count, "numbers in the state")
    figure = _figure(
        traces,
        xaxis=_logarithmic(1, x[-1], units.count, "tokens read", 0.02),
        meta={"over": "after %{x} tokens"},
        yaxis=axis,
        hovermode="x unified",
        annotations=_end_labels(ends, 10 ** axis["range"][0], 10 ** axis["range"][1], WIDE - 70),
    )
    return Figure(
        "state",
        "How much must be remembered as the text goes on?",
        "The numbers that one sequence carries from a token to the next, from the layers' structure; logarithmic axes.",
        (View("State", (Panel(figure),)),),
        _overtakes(held),
    )


def _overtakes(held: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """After how many tokens each growing state is larger than the finite ones."""
    grows = [(layer, g) for _, layer in held if (g := at(layer, "identity", "state_growth"))]
    finite = [layer for _, layer in held if not at(layer, "identity", "state_growth")]
    sentences = []
    for layer, growth in grows:
        start = at(layer, "identity", "state_size") or 0
        after = [
            (name_of(f), max(0, math.floor((at(f, "identity", "state_size") - start) / growth) + 1)) for f in finite
        ]
        if after:
            listed = content.listing(
                [f"{name} after {units.count(T)}{' tokens' * (k == 0)}" for k, (name, T) in enumerate(after)]
            )
            sentences.append(f"The cache of {name_of(layer)} outgrows the state of {listed}.")
    return " ".join(sentences)


def eigenvalues(result: Mapping[str, Any]) -> Figure | None:
    """The eigenvalues of the transitions on the unit disk, a panel for each layer."""
    seen: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, layer in enumerate(layers(result)):
        re, im = at(layer, "dynamics", "eigenvalues", "re") or [], at(layer, "dynamics", "eigenvalues", "im") or []
        points = [(a, b) for a, b in zip(re, im) if a is not None and b is not None]
        if points:
            seen.append((i, name_of(layer), points))
    reach = {i: max(1.0, *(math.hypot(a, b) for a, b in points)) for i, _, points in seen}
    shared = min(1.5, max(reach.values(), default=1.0))  # one scale for all, but for a layer that is far outside
    panels = [Panel(_disk(points, i, max(shared, reach[i])), name, i, None) for i, name, points in seen]
    if not panels:
        return None
    return Figure(
        "eigenvalues",
        "How does each state fade or turn from token to token?",
        "Eigenvalues of the transition, sampled over this text. On the circle a state is kept for ever, at the centre "
        "it is erased at once; to the left it changes sign, off the real axis it turns.",
        (View("Eigenvalues", tuple(panels), True),),
    )


def _disk(points: Sequence[tuple[float, float]], layer: int, reach: float) -> go.Figure:
    real = all(abs(b) < 1e-9 for _, b in points)
    marker: dict[str, Any] = {"color": colour(layer), "size": 5, "opacity": 0.5, "line": {"width": 0}}
    if real:  # points on a line hide each other; strokes show how dense they are
        marker = {"symbol": "line-ns", "size": 22, "opacity": 0.25, "line": {"color": colour(layer), "width": 1.25}}
    trace = go.Scatter(
        x=_round((a for a, _ in points), 4),
        y=_round((b for _, b in points), 4),
        mode="markers",
        marker=marker,
        text=[_complex(a, b, real) for a, b in points],
        hovertemplate="%{text}<extra></extra>",
        meta={"layer": layer},
    )
    ring = {"type": "circle", "xref": "x", "yref": "y", "layer": "below"}
    shapes = [
        ring | {"x0": -r, "x1": r, "y0": -r, "y1": r, "line": {"color": f"var(--{c})", "width": w}, "fillcolor": fill}
        for r, c, w, fill in ((1.0, "axis", 1.5, "var(--disk)"), (0.5, "grid", 1, "rgba(0,0,0,0)"))
    ]
    ticks = {
        "tickvals": [-1, 0, 1],
        "range": [-1.12 * reach, 1.12 * reach],
        "showgrid": False,
        "zeroline": True,
        "zerolinewidth": 1,
    }
    axis = ticks | {"zerolinecolor": "var(--grid)", "ticktext": ["−1", "0", "1"]}
    return _figure(
        [trace],
        shapes=shapes,
        xaxis=axis | {"constrain": "domain"},
        yaxis=axis | {"scaleanchor": "x", "ticktext": ["−i", "0", "i"], "constrain": "domain"},
        hovermode="closest",
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )


def _complex(a: float, b: float, real: bool) -> str:
    if real:
        return f"λ = {units.near_one(a)}"
    sign = "−" if b < 0 else "+"
    return f"λ = {units.plain(a)} {sign} {units.plain(abs(b))}i<br>|λ| = {units.near_one(math.hypot(a, b))}"


def memory_horizon(result: Mapping[str, Any]) -> Figure | None:
    """How many tokens back hold most of what an output reads: per layer and head, and along the text."""
    every = [(i, layer, at(layer, "dynamics", "horizon")) for i, layer in enumerate(layers(result))]
    every = [(i, layer, horizon) for i, layer, horizon in every if horizon]
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
    traces: list[go.Scatter] = []
    values: list[float] = []
    rows: list[tuple[int, str]] = []
    for i, layer, horizon in every:
        written = horizons(horizon)
        heads = [h for h, _ in written]
        low, middle, high = (at(horizon, "quantiles", key) for key in ("0.1", "0.5", "0.9"))
        if not heads and middle is None:
            continue
        row = len(rows)
        rows.append((i, name_of(layer)))
        shared = {"meta": {"layer": i}, "hovertemplate": "%{text}<extra></extra>"}
        if low is not None and high is not None:
            line = {"color": colour(i, "soft"), "width": 16}
            bar = go.Scatter(
                x=_round([max(low, 1), max(high, 1)]), y=[row, row], mode="lines", line=line, hoverinfo="skip"
            )
            traces.append(bar.update(meta={"layer": i}))
            values += [low, high]
        traces.append(
            go.Scatter(
                x=_round([max(h, 1.0) for h in heads]),
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
                go.Scatter(x=_round([max(middle, 1.0)]), y=[row], mode="markers", marker=mark, text=[text], **shared)
            )
            values.append(middle)
    if not rows:
        return None
    axis = _logarithmic(1.0, max(10.0, *values), units.count, "tokens back")
    figure = _figure(
        traces,
        xaxis=axis,
        hovermode="closest",
        **_rows(rows, _SPREAD),
    )
    return View("Spread", (Panel(figure, height=90 + _SPREAD * len(rows)),))


def _horizon_along(every: Sequence[tuple[int, Any, Any]]) -> View | None:
    traces, ends, values, furthest = [], [], [1.0], 1.0
    for i, layer, horizon in every:
        where, medians = at(horizon, "by_position", "t") or [], at(horizon, "by_position", "median") or []
        points = [(t + 1, max(m, 1.0)) for t, m in zip(where, medians) if None not in (t, m)]
        if len(points) < 2:
            continue
        tips = [f"{units.count(round(m))} tokens back" for _, m in points]
        traces.append(_line([t for t, _ in points], [m for _, m in points], i, name_of(layer), tips, mode="lines"))
        ends.append((i, name_of(layer), points[-1][1]))
        values += [m for _, m in points]
        furthest = max(furthest, points[-1][0])
    if not traces:
        return None
    top = max(*values, furthest)
    limit = go.Scatter(
        x=[1, furthest],
        y=[1, furthest],
        mode="lines",
        line={"color": "var(--axis)", "width": 1.25, "dash": "dot"},
        hoverinfo="skip",
    )
    axis = _logarithmic(1.0, top, units.count, "tokens back (median)")
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
    figure = _figure(
        [limit, *traces],
        xaxis=_logarithmic(1.0, furthest, units.count, "position in the text", 0.02),
        meta={"over": "position %{x}"},
        yaxis=axis,
        hovermode="x unified",
        annotations=[hint, *_end_labels(ends, 10 ** axis["range"][0], 10 ** axis["range"][1], WIDE - 70)],
    )
    return View("Along the text", (Panel(figure),))


def attention_maps(result: Mapping[str, Any]) -> Figure | None:
    """Which token reads which, and with what weight, for every layer that has weights.

    The figures hold no weights: the page's script takes them from the embedded result, for the layer and the head that
    are chosen.
    """
    found = [(i, layer) for i, layer in enumerate(layers(result)) if at(layer, "dynamics", "coefficients", "heads")]
    if not found:
        return None
    panels = tuple(Panel(_map(i, False), name_of(layer), i, None) for i, layer in found)
    one = View("One map", (Panel(_map(found[0][0], True), "", None, None),))
    return Figure(
        "maps",
        "Which token reads which?",
        "The weight of each earlier token (column) in the output at a token (row): the effective attention, which "
        "every layer has. The shade grows with the square root of the weight, so that small ones show.",
        (one, View("Side by side", panels, True)),
    )


def _map(layer: int, large: bool) -> go.Figure:
    """An empty map: the page puts in the weights of one head and the range of colours, which is symmetric around 0."""
    stops = [0.0, 0.25, 0.5, 0.75, 1.0]
    below = [[0.5 - 0.5 * s * s, f"var(--minus-{k})"] for k, s in reversed(list(enumerate(stops)))]
    above = [[0.5 + 0.5 * s * s, f"var(--plus-{k})"] for k, s in enumerate(stops)]
    bar = {
        "thickness": 10,
        "len": 0.6,
        "outlinewidth": 0,
        "ticks": "",
        "tickfont": {"color": "var(--muted)", "size": 11},
    }
    trace = go.Heatmap(
        colorscale=below[:-1] + above,
        zmid=0,
        showscale=large,
        colorbar=bar if large else None,
        hoverongaps=False,
        hovertemplate="%{text}<extra></extra>",
        meta={"map": layer},
    )
    axis = {"showgrid": False, "constrain": "domain", "visible": large}
    return _figure(
        [trace],
        xaxis=axis | {"title": {"text": "is read" if large else ""}, "scaleanchor": "y"},
        yaxis=axis | {"title": {"text": "reads" if large else ""}, "autorange": "reversed"},
        plot_bgcolor="var(--later)",
        hovermode="closest",
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )


# Pairs ---------------------------------------------------------------------------------------------------------------


def three_shades(z: Any, words: Any, tips: Any, **layout: Any) -> go.Heatmap:
    """A map of 0, 1 and 2 (None: empty) with a word in each cell."""
    steps = [(0, "differs"), (0.33, "differs"), (0.33, "self"), (0.67, "self"), (0.67, "same"), (1, "same")]
    return go.Heatmap(
        z=z,
        zmin=0,
        zmax=2,
        colorscale=[[at_, f"var(--{name})"] for at_, name in steps],
        showscale=False,
        text=words,
        texttemplate="%{text}",
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        **layout,
    )


def equality(result: Mapping[str, Any]) -> Figure | None:
    """A matrix of the layers: which two are the same function, and where the others first differ."""
    every = [str(layer.get("name")) for layer in layers(result)]
    position = {name: i for i, name in enumerate(every)}
    pairs = [p for p in result.get("pairs") or [] if str(p.get("a")) in position and str(p.get("b")) in position]
    if not pairs:
        return None
    n = len(every)
    z: list[list[int | None]] = [[1 if i == j else None for j in range(n)] for i in range(n)]
    words = [["" for _ in range(n)] for _ in range(n)]
    tips = [[label(every[i]) if i == j else "" for j in range(n)] for i in range(n)]
    for pair in pairs:
        a, b = position[str(pair.get("a"))], position[str(pair.get("b"))]
        equal, first = bool(pair.get("equal")), at(pair, "first", "position")
        word = "same" if equal else "≠" if first is None else f"≠ at {first}"
        tip = f"{label(every[a])} and {label(every[b])}: {'same function' if equal else 'different functions'}"
        tip += f"<br>relative difference {units.error(pair.get('error'))}"
        if first is not None:
            tip += f"<br>first at token {first}, sequence {at(pair, 'first', 'row')}"
        if (shared := content.shared(pair)) != units.MISSING:
            tip += f"<br>weights made equal: {shared}"
        for i, j in ((a, b), (b, a)):
            z[i][j], words[i][j], tips[i][j] = (2 if equal else 0), word, tip
    trace = three_shades(z, words, tips, xgap=3, ygap=3)
    shown = [label(visible(name)) for name in every]
    axis = {"showgrid": False, "tickvals": list(range(n)), "ticktext": shown, "tickfont": {"color": "var(--ink)"}}
    axis |= {"ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)"}
    figure = _figure(
        [trace],
        xaxis=axis | {"side": "top", "fixedrange": True},
        yaxis=axis | {"autorange": "reversed", "fixedrange": True},
        hovermode="closest",
    )
    same = [p for p in pairs if p.get("equal")]
    finding = [visible(str(p.get("text") or "")) for p in same if p.get("text")]
    return Figure(
        "equality",
        "Which layers are the same function?",
        "Weights of the same name and shape are made equal, both layers read this text, and the outputs are compared. "
        "≠ at 3: they first differ at token 3.",
        (View("Pairs", (Panel(figure, height=70 + (64 if n < 6 else 48) * n, width=240 + 140 * n),)),),
        " ".join(finding),
    )


def figures(result: Mapping[str, Any]) -> list[Figure]:
    """Every figure that the result has data for, in the order in which they are shown."""
    makers = (
        state_over_length,
        time_over_length,
        cost_at_longest,
        eigenvalues,
        memory_horizon,
        attention_maps,
        equality,
    )
    return [figure for figure in (make(result) for make in makers) if figure is not None]
