"""The few drawings that the results of the analysis share; plotly is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def _figure(traces: Sequence[Any], x: str, y: str, title: str, **layout: Any) -> Any:
    import plotly.graph_objects as go

    axes = {"xaxis": {"title": x, "zeroline": False}, "yaxis": {"title": y, "zeroline": False}}
    for axis in ("xaxis", "yaxis"):
        axes[axis] |= layout.pop(axis, {})
    return go.Figure(traces, go.Layout(title=title, template="plotly_white", **axes, **layout))


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, title: str, **layout: Any
) -> Any:
    """A line for each name, from its two lists."""
    import plotly.graph_objects as go

    return _figure(
        [go.Scatter(x=list(a), y=list(b), mode="lines+markers", name=n) for n, (a, b) in series.items()], x, y, title,
        **layout,
    )  # fmt: skip


def heat(values: Tensor, x: str, y: str, title: str) -> Any:
    """A matrix, its first row on top; symmetric about 0, so that a sign is a colour."""
    import plotly.graph_objects as go

    map_ = go.Heatmap(z=values.detach().cpu().tolist(), colorscale="RdBu", zmid=0)
    return _figure([map_], x, y, title, yaxis={"autorange": "reversed"})


def spreads(groups: Mapping[str, Sequence[float]], x: str, y: str, title: str, **layout: Any) -> Any:
    """A box of quartiles for each group of numbers."""
    import plotly.graph_objects as go

    return _figure([go.Box(y=list(v), name=n, boxpoints=False) for n, v in groups.items()], x, y, title, **layout)


def plane(points: Tensor, title: str) -> Any:
    """Complex numbers, and the unit circle."""
    import math

    import plotly.graph_objects as go

    turn = [2 * math.pi * i / 128 for i in range(129)]
    circle = go.Scatter(x=[math.cos(t) for t in turn], y=[math.sin(t) for t in turn], mode="lines", name="|z| = 1",
                        line={"color": "grey", "width": 1})  # fmt: skip
    dots = go.Scatter(x=points.real.tolist(), y=points.imag.tolist(), mode="markers", name="eigenvalues",
                      marker={"size": 4, "opacity": 0.5})  # fmt: skip
    return _figure([circle, dots], "real part", "imaginary part", title, yaxis={"scaleanchor": "x"})
