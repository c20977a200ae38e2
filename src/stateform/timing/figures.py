"""The figures and the page of a benchmark, from its dict alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..report import Figure, Panel, View, dig, units, visible
from ..report.figure import SMALL, band, bar_panel, drawing, length_axis, line, logarithmic
from ..report.page import Page
from .summary import COLUMNS, SECTIONS, TITLES, cases_of, grids, interrupted, numbered, pairs, subject

_LEGEND = 19  # pixels of a row of a legend
_BOUND = "var(--muted)"


def drawings(result: Mapping[str, Any]) -> list[Figure]:
    """Draw time over T, and bars for the other modes."""
    drawn = [time_over_length(result), *(bars(result, mode) for mode in ("training", "decode", "memory"))]
    return [figure for figure in drawn if figure is not None]


def time_over_length(result: Mapping[str, Any]) -> Figure | None:
    """Draw a panel for each pair: its parties over T, the floor dotted."""
    panels = []
    most = max((len(pair.get("parties") or []) for pair in pairs(result)), default=0)
    for pair in pairs(result):
        panel = _lines(pair, most)
        if panel is not None:
            panels.append(panel)
    if not panels:
        return None
    styles = (
        ("median; the band spans all rounds", "solid"),
        ("linear maps alone: what no implementation is spared", "dot"),
    )
    reading = "Both axes are logarithmic; every panel has its own."
    return Figure("forward", TITLES["forward"][0], reading, (View("Forward", tuple(panels), True, styles),))


def _lines(pair: Mapping[str, Any], most: int) -> Panel | None:
    """Draw the panel of a pair, with room for a legend of `most` rows, so that panels side by side align."""
    cases = [c for c in pair.get("cases") or [] if c["mode"] == "forward" and c.get("found")]
    traces, values = [], []
    for i, party in numbered(pair):
        points = [(c["tokens"], c["found"][party["name"]]) for c in cases if party["name"] in c["found"]]
        if not points:
            continue
        x = [T for T, _ in points]
        low, middle, high = ([found[what] for _, found in points] for what in ("low", "median", "high"))
        tips = [units.milliseconds(value) for value in middle]
        is_floor = party["kind"] == "floor"
        curve = line(x, middle, i or 0, party["name"], tips)
        spread = band(x, low, high, i or 0)
        curve.marker.size, spread.showlegend = 6, False
        if is_floor:
            curve.line.update(color=_BOUND, dash="dot")
            curve.marker.update(color=_BOUND, size=3)
        traces += [curve] if is_floor else [spread, curve]
        values += low + high
    if not values:
        return None
    axis = logarithmic(min(values), max(values), units.milliseconds, "")
    lengths = [c["tokens"] for c in cases]
    figure = drawing(
        traces, xaxis=length_axis(lengths, "T"), yaxis=axis, hovermode="x unified", meta={"over": "T = %{x}"},
        showlegend=True, legend={"orientation": "v", "x": 0, "xanchor": "left", "y": -0.3, "yanchor": "top",
                                 "font": {"size": 11}},
    )  # fmt: skip
    return Panel(figure, visible(pair["name"]), None, SMALL + _LEGEND * most)


def bars(result: Mapping[str, Any], mode: str) -> Figure | None:
    """Draw a panel for each pair and case of a mode, with a bar for each party."""
    views = []
    for case in cases_of(result, mode):
        panels = []
        for pair in pairs(result):
            found: Mapping[str, Any] = next((c["found"] for c in pair.get("cases") or []
                          if (c["mode"], c["rows"], c["tokens"]) == case), {})  # fmt: skip
            every = numbered(pair)
            key = "bytes" if mode == "memory" else "median"
            rows = [
                (k, visible(party["name"]), float(value))
                for k, (_, party) in enumerate(every)
                if (value := dig(found, party["name"], key)) is not None
            ]
            if rows:
                write = units.size if mode == "memory" else units.milliseconds
                panel = bar_panel(visible(pair["name"]), rows, write, 1.8)  # small panels: room for text
                for (k, *_), one in zip(rows, panel.figure.data):
                    if every[k][0] is None:
                        one.marker.color = _BOUND
                panels.append(panel)
        if panels:
            views.append(View(COLUMNS[case[0]].format(rows=case[1], tokens=case[2]), tuple(panels), True))
    return Figure(mode, TITLES[mode][0], TITLES[mode][1] + " Shorter is better.", tuple(views)) if views else None


def page(result: Mapping[str, Any]) -> Page:
    """Put the tables and figures on a page, a section for each mode."""
    drawn, tables = drawings(result), grids(result)
    shown = {grid.key for grid in tables}
    sections = [
        {"key": key, "title": SECTIONS[key], "figures": [f.key for f in drawn if f.key == key]}
        for key in ("equal", *TITLES)
        if key in shown
    ]
    words = {"subject": subject(result), "interrupted": interrupted(result), "sections": sections}
    return Page("timing/templates/bench.html.j2", result, drawn, tables, words)
