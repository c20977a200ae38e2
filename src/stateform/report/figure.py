"""The kit of figures: panels, views, axes, lines, bars and maps in one style. Plotly is imported as one is drawn.

Colours are names of the page's custom properties (`var(--layer-0)`), so that one set of figures serves the dark and the
light theme; the page's script puts the values in. A trace, an end label or a panel of one layer carries the layer's
position, so that the page can hide the layer everywhere at once. A layout's `meta` tells the page two more things:
`over` heads a tooltip, `rows` are the layers of the rows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from . import units
from .words import thinned, visible

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
COLOURS = 8

WIDE, SMALL = 400, 250
"""Heights of a panel by itself, and of one among several, in pixels."""
FEW = 8
"""The most layers that have a row, a line or a panel each in front; with more, maps come first."""
CELL, BAR = 20, 34
"""Pixels of a row of a map, and of a row of bars."""
SHADES = [[k / 3, f"var(--plus-{k + 1})"] for k in range(4)]
"""Colours of heat maps: the lightest still differs from an empty cell."""
BLANK = [[k / 4, f"var(--plus-{k})"] for k in range(5)]
"""The same where 0 looks like an empty cell."""
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
"""A legend above the drawing."""
_LABEL_HEIGHT = 16.0
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"


@dataclass(frozen=True)
class Panel:
    """One drawing: its plotly figure, its heading, the layer it is about, its height and its largest width in pixels.

    Without a height it is square.
    """

    figure: Any
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


# Drawings and traces -------------------------------------------------------------------------------------------------


@cache
def template() -> Any:
    """Make the style of every drawing."""
    import plotly.graph_objects as go

    layout = {
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
    return go.layout.Template(layout=layout)


def _axis() -> dict[str, Any]:
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
    }


def drawing(traces: Sequence[Any], **layout: Any) -> Any:
    """Put traces and a layout into one drawing."""
    import plotly.graph_objects as go

    return go.Figure(traces, go.Layout(template=template(), **layout))


def scatter(**options: Any) -> Any:
    """Draw points or lines; options are plotly's."""
    import plotly.graph_objects as go

    return go.Scatter(**options)


def bar(**options: Any) -> Any:
    """Draw bars; options are plotly's."""
    import plotly.graph_objects as go

    return go.Bar(**options)


def heatmap(**options: Any) -> Any:
    """Draw a map of shades; options are plotly's, and empty cells have no tooltip."""
    import plotly.graph_objects as go

    return go.Heatmap(hoverongaps=False, **options)


def label(text: str) -> str:
    """Write `text` so that plotly shows it literally: its labels understand a few HTML tags and `%{...}`."""
    return html.escape(visible(text), quote=False).replace("%{", "%\u200b{")


def colour(layer: int, kind: str = "layer") -> str:
    """Name the colour of a layer, the same in every figure; `soft` for bands behind it."""
    return f"var(--{kind}-{layer % COLOURS})"


def short(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    """Round values to the digits that a drawing shows."""
    return [None if value is None else float(f"{value:.{digits - 1}e}") for value in values]


# Axes ----------------------------------------------------------------------------------------------------------------


def logarithmic(
    low: float, high: float, write: Callable[[float], str], title: str, room: float = 0.06
) -> dict[str, Any]:
    """Make a logarithmic axis from `low` to `high` with some room on both sides and ticks that people read."""
    a, b = math.log10(low), math.log10(high)
    pad = max(room * (b - a), 0.04)
    values, texts = units.ticks(10 ** (a - pad), 10 ** (b + pad), write)
    return {"type": "log", "range": [a - pad, b + pad], "tickvals": values, "ticktext": texts, "title": {"text": title}}


def length_axis(lengths: Sequence[int], title: str = "sequence length T (tokens)") -> dict[str, Any]:
    """Make a logarithmic axis of lengths, with ticks at some of them."""
    a, b = math.log10(min(lengths)), math.log10(max(lengths))
    pad = max(0.03 * (b - a), 0.03)
    shown = thinned(sorted(lengths), 7)
    texts = [str(T) if T < 10_000 else units.count(T) for T in shown]
    return {"type": "log", "range": [a - pad, b + pad], "tickvals": shown, "ticktext": texts, "title": {"text": title}}


def layer_rows(shown: Sequence[tuple[int, str]], step: int) -> dict[str, Any]:
    """Make a vertical axis with a row of `step` pixels for each layer; `meta` lets the page close up hidden rows."""
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


def map_rows(names: Sequence[str]) -> dict[str, Any]:
    """Make a vertical axis with a row of a map for each name, the first on top."""
    return {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names], "autorange": "reversed",
            "showgrid": False, "fixedrange": True, "tickfont": {"color": "var(--ink)", "size": 12}}  # fmt: skip


# Lines, bars and maps ------------------------------------------------------------------------------------------------


def line(x: Sequence[float], y: Sequence[float | None], layer: int, name: str, tips: Sequence[str], **more: Any) -> Any:
    """Draw a layer's line; `tips` are what the tooltip says at each point, after the name."""
    style = {"color": colour(layer), "width": 2.25, **more.pop("line", {})}
    return scatter(
        x=list(x),
        y=short(y),
        name=label(name),
        mode=more.pop("mode", "lines+markers"),
        line=style,
        marker={"color": colour(layer), "symbol": SYMBOLS[layer % len(SYMBOLS)], "size": 7},
        text=[label(tip) for tip in tips],
        hovertemplate="%{text}<extra>" + label(name) + "</extra>",
        meta={"layer": layer},
        **more,
    )


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], layer: int) -> Any:
    """Draw a band behind a layer's line."""
    return scatter(
        x=[*x, *reversed(x)],
        y=short([*high, *reversed(low)]),
        fill="toself",
        fillcolor=colour(layer, "soft"),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        meta={"layer": layer},
    )


def end_labels(
    ends: Sequence[tuple[int, str, float]], low: float, high: float, height: float, log: bool = True
) -> list[dict[str, Any]]:
    """Write the layers' names at the right ends of their lines, moved apart where they would overlap.

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


def named_ends(
    ends: Sequence[tuple[int, str, float]], axis: dict[str, Any], height: int = WIDE
) -> list[dict[str, Any]]:
    """Write the names at the ends of lines in a panel of that height, whose vertical axis is logarithmic."""
    low, high = axis["range"]
    return end_labels(ends, 10**low, 10**high, height - 70)


def bars(every: Sequence[tuple[int, str, float]], write: Callable[[float | None], str]) -> Any:
    """Draw a bar for each layer (its position, name and value), with the value written at its end."""
    traces = [
        bar(
            x=short([value]),
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
        for row, (i, name, value) in enumerate(every)
    ]
    largest = max(value for *_, value in every) or 1.0
    return drawing(
        traces,
        xaxis={"range": [0, 1.32 * largest], "visible": False, "fixedrange": True},
        barmode="overlay",
        margin={"l": 8, "r": 4, "t": 2, "b": 2},
        **layer_rows([(i, name) for i, name, _ in every], BAR),
    )


def bar_panel(
    title: str, every: Sequence[tuple[int, str, float]], write: Callable[[float | None], str], room: float = 1.32
) -> Panel:
    """Put `bars` into a panel of their height; `room` is the axis' length over the longest bar's."""
    figure = bars(every, write)
    figure.layout.xaxis.range = [0, room * (max(value for *_, value in every) or 1.0)]
    return Panel(figure, title, None, 12 + BAR * len(every))


def three_shades(z: Any, words: Any, tips: Any, **layout: Any) -> Any:
    """Draw a map of 0, 1 and 2 (None: empty) with a word in each cell."""
    steps = [(0, "differs"), (0.33, "differs"), (0.33, "self"), (0.67, "self"), (0.67, "same"), (1, "same")]
    return heatmap(
        z=z,
        zmin=0,
        zmax=2,
        colorscale=[[at, f"var(--{name})"] for at, name in steps],
        showscale=False,
        text=words,
        texttemplate="%{text}",
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
        **layout,
    )
