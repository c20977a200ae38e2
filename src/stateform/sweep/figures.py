"""The figures and the page of sweeps: the score over the state's size, over each varied setting, over the length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..report import Figure, Panel, View, listing, units, visible
from ..report.figure import (
    COLOURS,
    SMALL,
    SYMBOLS,
    WIDE,
    colour,
    drawing,
    end_labels,
    label,
    length_axis,
    logarithmic,
    scatter,
)
from ..report.page import Page
from ..report.words import thinned
from .summary import (
    STATE,
    Found,
    claims,
    failures,
    groups,
    is_number,
    labels,
    runs,
    score_text,
    short_name,
    subject,
    title,
    value_of,
)


def page(result: Found) -> Page:
    """Put the results on a page: figures, claims, means and every run."""
    drawn = [figure for figure in (*over_settings(result), over_length(result)) if figure is not None]
    grids = [grid for grid in (claims(result), groups(result), runs(result)) if grid is not None]
    words = {
        "title": title(result),
        "subject": subject(result),
        "interrupted": None
        if result.get("complete", True)
        else "This sweep was interrupted; the same command goes on.",
        "names": labels(result),
        "notes": failures(result),
    }
    return Page("sweep/templates/results.html.j2", {**result, "layers": []}, drawn, grids, words)


def over_settings(result: Found) -> list[Figure]:
    """Draw the score over the size of the state, then over each number that was varied; or, if it is set, over `x`."""
    done = [row for row in result["rows"] if row["status"] == "done" and row["score"] is not None]
    wanted = result.get("x")
    axes = (
        [wanted] if wanted else [STATE, *(n for n in result["varied"] if n.startswith(("model.", "train.", "task.")))]
    )
    found = []
    for axis in axes:
        known = [row for row in done if is_number(row.get(axis)) and row[axis] > 0]
        if len({row[axis] for row in known}) < 2:
            continue
        metrics = listing(list(dict.fromkeys(str(row["metric"]) for row in known)))
        what = "the size of the state" if axis == STATE else short_name(axis)

        def draw(rows: Sequence[Found], height: int, axis: str = axis) -> Any:
            return _over(result, rows, axis, height)

        panels = _by_task(result, known, draw)
        missing = [name for name in labels(result) if all(visible(str(row["label"])) != name for row in known)]
        note = f" Not drawn, having none or no such number: {listing(missing)}." if missing else ""
        reading = (
            "Small points are runs; lines join means over seeds, with bars from the worst to the best. Where other "
        )
        reading += "settings were varied too, those that are best on the validation are shown." + note
        view = View("Over " + what, panels, len(panels) > 1)
        heading = f"{metrics[:1].upper()}{metrics[1:]} over {what}"
        found.append(Figure(f"over-{axis.replace('.', '-')}", heading, reading, (view,)))
    return found


def _by_task(result: Found, rows: Sequence[Found], draw: Callable[[Sequence[Found], int], Any]) -> tuple[Panel, ...]:
    """Draw a panel for each task."""
    tasks: dict[str, list[Found]] = {}
    for row in rows:
        tasks.setdefault(visible(str(row["task"])), []).append(row)
    if len(tasks) == 1:
        return (Panel(draw(list(rows), WIDE)),)
    return tuple(Panel(draw(of_it, SMALL), name, None, SMALL) for name, of_it in tasks.items())


def _over(result: Found, rows: Sequence[Found], axis: str, height: int) -> Any:
    metric, order = str(rows[0]["metric"]), labels(result)
    traces, ends = [], []
    for i, name in enumerate(order):
        own = [row for row in rows if visible(str(row["label"])) == name]
        if not own:
            continue
        at: dict[float, list[float]] = {}
        for place in {float(row[axis]) for row in own}:
            at[place] = [float(row["score"]) for row in _best(result, [r for r in own if r[axis] == place])]
        x = sorted(at)
        means = [statistics.fmean(at[v]) for v in x]
        traces += [
            scatter(
                x=[v for v in x for _ in at[v]], y=[score for v in x for score in at[v]], mode="markers",
                marker={"color": colour(i), "size": 5, "opacity": 0.45, "symbol": _symbol(i)}, hoverinfo="skip",
                meta={"layer": i},
            ),
            _means(x, means, i, name, metric, [at[v] for v in x]),
        ]  # fmt: skip
        ends.append((i, name, means[-1], x[-1]))
    alike = [row for row in result["rows"] if row["metric"] == metric and row["score"] is not None]
    yaxis = _score_axis([float(row["score"]) for row in alike], metric)  # one axis for every panel
    places = [float(row[axis]) for row in rows]
    xaxis = logarithmic(min(places), max(places), lambda v: units.count(round(v, 9)), "", 0.04)
    written = sorted(set(places))
    apart = all(b > 1.25 * a for a, b in pairwise(written))
    if len(written) <= (8 if height >= WIDE else 5) and apart:
        xaxis |= {"tickvals": written, "ticktext": [value_of(int(v) if v == int(v) else v) for v in written]}
    xaxis["title"] = {"text": "numbers in the state" if axis == STATE else short_name(axis)}
    return drawing(traces, xaxis=xaxis, yaxis=yaxis, hovermode="x" if height < WIDE else "closest",
                   annotations=_labelled(ends, yaxis, height) if height >= WIDE else [])  # fmt: skip


def _best(result: Found, rows: Sequence[Found]) -> Sequence[Found]:
    """Select the runs with the settings that are best on the validation: they differ in their seeds alone."""
    sets: dict[str, list[Found]] = {}
    for row in rows:
        sets.setdefault(str([row.get(n) for n in result["varied"]]), []).append(row)
    choose = max if rows[0]["metric"] == "accuracy" else min

    def mean_score(some: Sequence[Found]) -> float:
        return statistics.fmean(row["score"] if row["valid"] is None else row["valid"] for row in some)

    return choose(sets.values(), key=mean_score)


def _symbol(i: int) -> str:
    return SYMBOLS[i % len(SYMBOLS)]


def _means(
    x: Sequence[float], means: Sequence[float], i: int, name: str, metric: str, values: Sequence[Sequence[float]]
) -> Any:
    """Draw a line through means, with bars from the least to the largest of the `values` behind each."""
    tips = []
    for v, mean, every in zip(x, means, values):
        text = f"{units.count(v)}: {metric} {score_text(mean, metric)}"
        tips.append(
            text
            + (f" ({score_text(min(every), metric)} to {score_text(max(every), metric)})" if len(every) > 1 else "")
        )
    return scatter(
        x=list(x), y=list(means), mode="lines+markers", name=label(name),
        line={"color": colour(i), "width": 2.25, "dash": "solid" if i < COLOURS else "dash"},
        marker={"color": colour(i), "symbol": _symbol(i), "size": 8},
        error_y={
            "type": "data", "symmetric": False, "array": [max(v) - m for v, m in zip(values, means)],
            "arrayminus": [m - min(v) for v, m in zip(values, means)], "color": colour(i), "thickness": 1.25,
            "width": 4, "visible": any(len(v) > 1 for v in values),
        },
        text=[label(tip) for tip in tips], hovertemplate="%{text}<extra>" + label(name) + "</extra>", meta={"layer": i},
    )  # fmt: skip


def _score_axis(values: Sequence[float], metric: str) -> dict[str, Any]:
    low, high = min(values), max(values)
    if metric == "accuracy":
        bottom = 0.0 if low < 0.5 else max(0.0, low - 0.1 * (1.02 - low))
        return {"range": [bottom - 0.02 * (1 - bottom), 1 + 0.03 * (1 - bottom)], "title": {"text": metric}}
    if low > 0 and high > 10 * low:
        return logarithmic(low, high, units.plain, metric)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return {"range": [low - pad, high + pad], "title": {"text": metric}}


def _labelled(ends: Sequence[tuple[int, str, float, float]], yaxis: Mapping[str, Any], height: int) -> list[Any]:
    low, high = yaxis["range"]
    log = yaxis.get("type") == "log"
    room, scale = height - 70, (high - low) / (height - 70)
    named = [(i, name, value) for i, name, value, _ in ends]
    notes = end_labels(named, 10**low if log else low, 10**high if log else high, room, log)
    top = float(room)
    for note in reversed(notes):  # from the top down, so that none is above the drawing
        spot = min(top, (note["y"] - low) / scale + note["yshift"])
        note["yshift"], top = spot - (note["y"] - low) / scale, spot - 16
    return notes


def over_length(result: Found) -> Figure | None:
    """Draw the score of each label's best settings over the length of the test; None if no run has several lengths."""
    done = [row for row in result["rows"] if row["status"] == "done" and row["score"] is not None]
    lengths = [n for n in (result["rows"][0] if result["rows"] else ()) if n.startswith("test.")]
    lengths = sorted(lengths, key=lambda n: int(n.removeprefix("test.")))
    tested = [row for row in done if sum(row[n] is not None for n in lengths) > 1]
    if not tested:
        return None
    panels = _by_task(result, tested, lambda rows, high: _over_length(result, rows, lengths, high))
    reading = (
        "Of each model the settings that are best on the validation, which has the length of training; lines join "
    )
    reading += "means over seeds, with bars from the worst to the best."
    metric = str(tested[0]["metric"])
    return Figure("length", f"{metric[:1].upper()}{metric[1:]} over the length of the test", reading,
                  (View("Length", panels, len(panels) > 1),))  # fmt: skip


def _over_length(result: Found, rows: Sequence[Found], lengths: Sequence[str], height: int) -> Any:
    metric, order = str(rows[0]["metric"]), labels(result)
    traces, ends, values, places = [], [], [], set()
    for i, name in enumerate(order):
        own = [row for row in rows if visible(str(row["label"])) == name]
        if not own:
            continue
        best = _best(result, own)
        at = {int(n.removeprefix("test.")): known for n in lengths
              if (known := [float(row[n]) for row in best if row[n] is not None])}  # fmt: skip
        means = [statistics.fmean(v) for v in at.values()]
        traces.append(_means(list(at), means, i, name, metric, list(at.values())))
        ends.append((i, name, means[-1], float(max(at))))
        values += [v for some in at.values() for v in some]
        places |= set(at)
    yaxis = _score_axis(values, metric)
    xaxis = length_axis(sorted(places), "length of the test (tokens)")
    if height < WIDE:
        shown = thinned(sorted(places), 4)
        xaxis |= {"tickvals": shown, "ticktext": [units.count(n) for n in shown], "title": {"text": "length"}}
    trained = {row.get("task.length") for row in rows}
    shapes = []
    if len(trained) == 1 and (length := trained.pop()) in places:
        shapes = [{"type": "line", "x0": length, "x1": length, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
                   "line": {"color": "var(--axis)", "width": 1, "dash": "dot"}}]  # fmt: skip
    return drawing(traces, xaxis=xaxis, yaxis=yaxis, shapes=shapes, hovermode="x" if height < WIDE else "closest",
                   annotations=_labelled(ends, yaxis, height) if height >= WIDE else [])  # fmt: skip
