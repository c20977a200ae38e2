"""A benchmark for people: tables for the terminal, figures and a page, from its dict alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from . import figures, units
from .content import Column, Grid, Row, at, listing, visible
from .figures import SMALL, Figure, Panel, View
from .units import MISSING

TITLES = {
    "forward": ("How long does a forward pass take?", "One sequence of T tokens, no gradients."),
    "training": ("How long do forward and backward take?", "Gradients of the input and of all weights."),
    "decode": ("How long does the next token take?", "One token from a state that stands for so many."),
    "memory": ("How much memory is held at once?", "What operations make, their results included; not the weights."),
}
"""Each mode as a question, and how it was measured."""
SECTIONS = {
    "equal": "Equal", "forward": "Forward", "training": "Training", "decode": "Decoding", "memory": "Memory"
}  # fmt: skip
"""Headings of the page."""
COLUMNS = {
    "forward": "T = {tokens}",
    "training": "{rows} × {tokens}",
    "decode": "at {tokens}",
    "memory": "forward, {rows} × {tokens}",
    "memory of training": "training, {rows} × {tokens}",
}
"""Headings of cases."""
_LEGEND = 19  # pixels of a row of a legend
_BOUND = "var(--muted)"


def pairs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pairs of a result."""
    return list(result.get("pairs") or [])


def subject(result: Mapping[str, Any]) -> str:
    """One line: what was timed, on what."""
    settings, machine = result.get("settings") or {}, result.get("machine") or {}
    versions = [f"{name} {number}" for name, number in (result.get("versions") or {}).items()]
    device = machine.get("device")
    where = machine.get("cpu") if device in (None, "cpu") else device
    threads = machine.get("threads")
    parts = [
        f"{len(pairs(result))} pairs", f"width {settings.get('d_model')}", str(settings.get("dtype")),
        f"{where}, {threads} thread{'' if threads == 1 else 's'}", *versions,
    ]  # fmt: skip
    return visible(", ".join(parts))


def interrupted(result: Mapping[str, Any]) -> str | None:
    """What to say on top when the benchmark was stopped before its end, or could not measure a layer of ours."""
    said = [visible(f"{pair['name']} failed: {pair['failed']}.") for pair in pairs(result) if "failed" in pair]
    if not result.get("complete", True):
        said.append("This benchmark was stopped before its end: it shows what was measured by then.")
    return " ".join(said) or None


def grids(result: Mapping[str, Any]) -> list[Grid]:
    """The tables: are they equal, then one for each mode."""
    found = [equality(result)]
    found += [grid for mode in TITLES if (grid := times(result, mode)) is not None]
    return [grid for grid in found if grid is not None]


def equality(result: Mapping[str, Any]) -> Grid | None:
    """How far each rival is from our layer with the same weights."""
    rows, notes = [], []
    for pair in pairs(result):
        for party in pair.get("parties") or []:
            if party.get("kind") != "rival":
                continue
            errors = party.get("errors") or {}
            cells = [units.error(errors.get(mode)) for mode in ("forward", "decode", "training")]
            rows.append(Row((visible(pair["name"]), visible(party["name"]), visible(party["package"]), *cells), None))
            said = "; ".join(map(str, party.get("notes") or []))
            if said:
                notes.append(visible(f"{pair['name']}, {party['name']}: {said}."))
    if not rows:
        return None
    columns = (Column("Layer"), Column("Beside"), Column("Of"), Column("y", numeric=True),
               Column("steps", numeric=True), Column("gradient", numeric=True))  # fmt: skip
    text = "Largest difference from our layer with the same weights, relative to the largest value."
    return Grid("equal", "Do they compute the same?", columns, tuple(rows), (text, *notes))


def times(result: Mapping[str, Any], mode: str) -> Grid | None:
    """What was measured in one mode: a row for each party, two columns for each case."""
    cases = _cases(result, mode)
    if not cases:
        return None
    columns = [Column("Layer"), Column("")]
    for case in cases:
        columns += [Column(COLUMNS[case[0]].format(rows=case[1], tokens=case[2]), numeric=True), Column("", True)]
    rows: list[Row] = []
    reasons: dict[str, list[str]] = {}
    for pair in pairs(result):
        by_case = {(c["mode"], c["rows"], c["tokens"]): c for c in pair.get("cases") or []}
        for i, party in _drawn(pair):
            cells: list[str] = []
            for case in cases:
                found = at(by_case.get(case), "found", party["name"])
                cells += [_amount(found), _ratio(found, party)]
                if (reason := at(by_case.get(case), "left_out", party["name"])) is not None:
                    reasons.setdefault(str(reason), []).append(f"{pair['name']}: {party['name']}")
            if any(cell != MISSING for cell in cells[::2]):
                rows.append(Row((visible(pair["name"]), visible(party["name"]), *cells), i))
    if not rows:
        return None
    notes = [f"{TITLES[mode][1]} ×: how many times as much as stateform."]
    if mode != "memory":
        notes[0] += " ±: half the way from the least to the largest of the rounds."
    notes += [visible(f"Left out: {listing(sorted(set(names)))}: {reason}.") for reason, names in reasons.items()]
    return Grid(mode, TITLES[mode][0], tuple(columns), tuple(rows), tuple(notes))


def _cases(result: Mapping[str, Any], mode: str) -> list[tuple[str, int, int]]:
    every = [(c["mode"], c["rows"], c["tokens"]) for pair in pairs(result) for c in pair.get("cases") or []]
    return [case for case in dict.fromkeys(every) if case[0].split()[0] == mode]


def _amount(found: Mapping[str, Any] | None) -> str:
    if not found:
        return MISSING
    if "bytes" in found:
        return units.size(found["bytes"])
    middle = found["median"]
    share = 50 * (found["high"] - found["low"]) / middle if middle else 0.0
    return f"{units.milliseconds(middle)} ±{share:.0f}%"


def _ratio(found: Mapping[str, Any] | None, party: Mapping[str, Any]) -> str:
    ratio = None if not found or party.get("kind") == "ours" else found.get("ratio")
    return "" if ratio is None else units.times(ratio)


def bench_tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """The benchmark for a terminal of 80 columns or more: are they equal, then a table for each mode.

    Args:
        result: what `bench` found, as plain values (the content of its JSON file). Missing parts are left out.
    """
    from .table import _answer

    parts: list[RenderableType] = [Text.assemble(("Stateform benchmark", "bold"), ": ", subject(result))]
    stopped = interrupted(result)
    if stopped:
        parts.append(Text(stopped, style="bold yellow"))
    for grid in grids(result):
        parts += _answer(_once(grid))
    return parts


def _once(grid: Grid) -> Grid:
    """The grid with the name of each layer in its first row alone."""
    rows, last = [], ""
    for row in grid.rows:
        name, *rest = row.cells
        rows.append(Row(("" if name == last else name, *rest), row.layer))
        last = name
    return Grid(grid.key, grid.title, grid.columns, tuple(rows), grid.notes)


# -- figures --------------------------------------------------------------------------------------------------------


def drawings(result: Mapping[str, Any]) -> list[Figure]:
    """Time over T, and the bars of the other modes."""
    drawn = [time_over_length(result), *(bars(result, mode) for mode in ("training", "decode", "memory"))]
    return [figure for figure in drawn if figure is not None]


def time_over_length(result: Mapping[str, Any]) -> Figure | None:
    """A panel for each pair: its parties over T, the floor dotted."""
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
    """The panel of a pair, with room for a legend of `most` rows, so that panels side by side align."""
    cases = [c for c in pair.get("cases") or [] if c["mode"] == "forward" and c.get("found")]
    traces, values = [], []
    for i, party in _drawn(pair):
        points = [(c["tokens"], c["found"][party["name"]]) for c in cases if party["name"] in c["found"]]
        if not points:
            continue
        x = [T for T, _ in points]
        low, middle, high = ([found[what] for _, found in points] for what in ("low", "median", "high"))
        tips = [units.milliseconds(value) for value in middle]
        is_floor = party["kind"] == "floor"
        line = figures._line(x, middle, i or 0, party["name"], tips)
        band = figures._band(x, low, high, i or 0)
        line.marker.size, band.showlegend = 6, False
        if is_floor:
            line.line.update(color=_BOUND, dash="dot")
            line.marker.update(color=_BOUND, size=3)
        traces += [line] if is_floor else [band, line]
        values += low + high
    if not values:
        return None
    axis = figures._logarithmic(min(values), max(values), units.milliseconds, "")
    lengths = [c["tokens"] for c in cases]
    figure = figures._figure(
        traces, xaxis=figures._length_axis(lengths, "T"), yaxis=axis, hovermode="x unified", meta={"over": "T = %{x}"},
        showlegend=True, legend={"orientation": "v", "x": 0, "xanchor": "left", "y": -0.3, "yanchor": "top",
                                 "font": {"size": 11}},
    )  # fmt: skip
    return Panel(figure, visible(pair["name"]), None, SMALL + _LEGEND * most)


def bars(result: Mapping[str, Any], mode: str) -> Figure | None:
    """A panel for each pair and case of a mode: a bar for each party."""
    views = []
    for case in _cases(result, mode):
        panels = []
        for pair in pairs(result):
            found: Mapping[str, Any] = next((c["found"] for c in pair.get("cases") or []
                          if (c["mode"], c["rows"], c["tokens"]) == case), {})  # fmt: skip
            every = _drawn(pair)
            key = "bytes" if mode == "memory" else "median"
            rows = [
                (k, visible(party["name"]), float(value))
                for k, (_, party) in enumerate(every)
                if (value := at(found, party["name"], key)) is not None
            ]
            if rows:
                figure = figures._bars(rows, units.size if mode == "memory" else units.milliseconds)
                figure.layout.xaxis.range = [0, 1.8 * max(value for *_, value in rows)]  # small panels: room for text
                for (k, *_), bar in zip(rows, figure.data):
                    if every[k][0] is None:
                        bar.marker.color = _BOUND
                panels.append(Panel(figure, visible(pair["name"]), None, 12 + figures._BAR * len(rows)))
        if panels:
            views.append(View(COLUMNS[case[0]].format(rows=case[1], tokens=case[2]), tuple(panels), True))
    return Figure(mode, TITLES[mode][0], TITLES[mode][1] + " Shorter is better.", tuple(views)) if views else None


def _drawn(pair: Mapping[str, Any]) -> list[tuple[int | None, Mapping[str, Any]]]:
    """The parties, each with the number of its colour; what bounds them from below has none."""
    every = enumerate(pair.get("parties") or [])
    return [(None if party["kind"] in ("floor", "copy") else i, party) for i, party in every]


def render_bench(result: Mapping[str, Any], plotlyjs: str = "inline") -> str:
    """The benchmark as the text of one HTML page; as `render_html` for the rest."""
    from .html import page

    drawn = drawings(result)
    tables = {grid.key: grid for grid in grids(result)}
    return page(
        "bench.html.j2",
        result,
        drawn,
        plotlyjs,
        subject=subject(result),
        interrupted=interrupted(result),
        sections=[
            {"key": key, "title": SECTIONS[key], "figures": [f.key for f in drawn if f.key == key]}
            for key in ("equal", *TITLES)
            if key in tables
        ],
        grids=tables,
    )
