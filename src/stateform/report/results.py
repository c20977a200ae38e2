"""What sweeps came to: tables for the terminal, and a page with the score over the state's size and over the length."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import figures, units
from .content import Column, Grid, Row, listing, thinned, visible
from .figures import SMALL, WIDE, Figure, Panel, View, _end_labels, _figure, _length_axis, _logarithmic, colour, label
from .html import page

STATE = "state_size"
_ERRORS = 5
Found = Mapping[str, Any]


def render_results(result: Found, plotlyjs: str = "inline") -> str:
    """The results as the text of one HTML page, which needs neither a network nor any other file.

    Args:
        result: what `Results.to_dict` gives.
        plotlyjs: where the plotting library is, see `render_html`.
    """
    drawn = [figure for figure in (*over_settings(result), over_length(result)) if figure is not None]
    grids = [grid for grid in (claims(result), groups(result), runs(result)) if grid is not None]
    return page(
        "results.html.j2",
        {**result, "layers": []},
        drawn,
        plotlyjs,
        title=title(result),
        subject=subject(result),
        interrupted=None if result.get("complete", True) else "This sweep was interrupted; the same command goes on.",
        names=labels(result),
        notes=failures(result),
        grids={grid.key: grid for grid in grids},
    )


def result_tables(result: Found) -> list[RenderableType]:
    """The results for a terminal: a row for each group of runs that differ in their seeds alone, and what failed."""
    parts: list[RenderableType] = [Text.assemble((title(result), "bold"), ": ", subject(result))]
    for grid in (groups(result), claims(result)):
        if grid is None:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in grid.columns:
            table.add_column(column.heading, justify="right" if column.numeric else "left", header_style="dim",
                             overflow="fold", no_wrap=column.numeric)  # fmt: skip
        for row in grid.rows:
            table.add_row(*(Text(cell) for cell in row.cells))
        parts += [Text(), table, *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in grid.notes)]
    wrong = failures(result)
    if wrong:
        parts += [Text(), *(Text(line, style="yellow") for line in wrong)]
    return parts


# Words ----------------------------------------------------------------------------------------------------------------


def title(result: Found) -> str:
    """The names of the sweeps."""
    return visible(", ".join(map(str, result.get("sweeps") or []))) or "no runs"


def subject(result: Found) -> str:
    """How many runs there are, and what became of them."""
    rows = result["rows"]
    text = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    counts = [(s, sum(row["status"] == s for row in rows)) for s in ("done", "running", "waiting", "failed")]
    said = [f"{n} {status}" for status, n in counts if n]
    return text + (f" ({', '.join(said)})" if len(said) > 1 or counts[0][1] != len(rows) else "")


def failures(result: Found) -> list[str]:
    """Why runs failed: each reason once."""
    why: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["status"] == "failed":
            why.setdefault(visible(str(row["error"])), []).append(_called(result, row))
    lines = [f"Failed: {_few(names)}: {reason}" for reason, names in why.items()]
    return lines[:_ERRORS] + ([f"{len(lines) - _ERRORS} more reasons."] if len(lines) > _ERRORS else [])


def _few(names: Sequence[str]) -> str:
    return listing(names) if len(names) <= 3 else f"{listing(names[:2])} and {len(names) - 2} more"


def _called(result: Found, row: Found) -> str:
    """The label, what was varied and the seed, in a line."""
    named = [n for n in result["varied"] if n != "task" and row.get(n) is not None]
    more = [visible(str(row["task"]))] * ("task" in result["varied"])
    more += [f"{_short(n)} {_value(row.get(n))}" for n in named]
    return " ".join([visible(str(row["label"])), *more, f"seed {row.get('train.seed')}"])


def labels(result: Found) -> list[str]:
    """What the lines are, in the order in which the runs were planned."""
    return list(dict.fromkeys(visible(str(row["label"])) for row in result["rows"]))


def _short(name: str) -> str:
    return visible({STATE: "state"}.get(name, name.partition(".")[2] or name))


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return units.count(value)
    return f"{value:g}" if isinstance(value, float) else units.MISSING if value is None else visible(str(value))


def _score(value: float | None, metric: str) -> str:
    if value is None:
        return units.MISSING
    return f"{value:.3f}" if metric == "accuracy" else units.plain(value)


def groups(result: Found) -> Grid | None:
    """A row for each group of runs that differ in their seeds alone."""
    found = result["groups"]
    if not found:
        return None
    names, metrics = result["varied"], list(dict.fromkeys(str(g["metric"]) for g in found))
    metric = metrics[0] if len(metrics) == 1 else "score"
    columns = [Column("Model"), *(Column(_short(n), numeric=_numeric(found, n)) for n in names)]
    columns += [Column(name, numeric=True) for name in (metric, "lowest", "highest", "runs", "state", "seconds")]
    order, rows = labels(result), []
    for g in found:
        score = [_score(g[n], str(g["metric"])) for n in ("mean", "low", "high")]
        cells = [visible(str(g["label"])), *(_value(g.get(n)) for n in names), *score, str(g["n"])]
        state, seconds = g[STATE], g["seconds"]
        cells += [units.count(state if state is None else round(state)), "" if seconds is None else f"{seconds:.0f}"]
        rows.append(Row(tuple(cells), order.index(cells[0])))
    note = (
        "Means over the seeds, on the test at the length of training (or the first that was tested). State: numbers "
        "kept after one example."
    )
    return Grid("groups", "What came out", tuple(columns), tuple(rows), (note,))


def runs(result: Found, most: int = 500) -> Grid | None:
    """A row for each run."""
    rows, names = result["rows"], result["varied"]
    if not rows:
        return None
    lengths = [n for n in rows[0] if n.startswith("test.")] if rows else []
    columns = [Column("Model"), *(Column(_short(n), numeric=_numeric(rows, n)) for n in names),
               Column("seed", numeric=True), Column("status"), Column("score", numeric=True)]  # fmt: skip
    columns += [Column(f"at {n.removeprefix('test.')}", numeric=True) for n in lengths if len(lengths) > 1]
    columns += [Column("steps", numeric=True), Column("ended")]
    order, made = labels(result), []
    for row in rows[:most]:
        metric = str(row["metric"])
        cells = [visible(str(row["label"])), *(_value(row.get(n)) for n in names), _value(row.get("train.seed")),
                 row["status"], _score(row["score"], metric)]  # fmt: skip
        cells += [_score(row[n], metric) for n in lengths if len(lengths) > 1]
        cells += [_value(row["steps"]), visible(str(row["stopped"] or row["error"] or ""))]
        made.append(Row(tuple(cells), order.index(cells[0])))
    notes = (f"The first {most} of {len(rows)} runs.",) if len(rows) > most else ()
    return Grid("runs", "Every run", tuple(columns), tuple(made), notes)


def claims(result: Found) -> Grid | None:
    """A row for each claim: what became of it, and the numbers."""
    found = result.get("claims") or []
    if not found:
        return None
    columns = tuple(Column(name) for name in ("Claim", "source", "here", "measured"))
    rows = [Row(tuple(visible(str(c[n])) for n in ("text", "source", "verdict", "numbers"))) for c in found]
    note = "Rules: stateform.sweep.claims. ± is one standard error; confirmed and reversed are beyond two."
    return Grid("claims", "Claims", columns, tuple(rows), (note,))


def results_markdown(result: Found) -> str:
    """The claims, the machines and the means as Markdown."""
    parts = [f"# {title(result)}", f"{subject(result)}, as of {result['created']}."]
    parts += [f"Computed on: {machine}." for machine in result.get("machines") or []]
    seconds = [row["seconds"] for row in result["rows"] if row["seconds"] is not None]
    if seconds:
        parts.append(f"Training and tests took {sum(seconds) / 60:.0f} minutes in all, summed over the runs.")
    for grid in (claims(result), groups(result)):
        if grid is not None:
            lines = [[column.heading for column in grid.columns], ["---"] * len(grid.columns)]
            lines += [[cell.replace("|", "\\|") for cell in row.cells] for row in grid.rows]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            parts += [f"## {grid.title}", table, *grid.notes]
    parts += failures(result)
    return "\n\n".join(parts) + "\n"


def _numeric(rows: Sequence[Found], name: str) -> bool:
    values = [row.get(name) for row in rows]
    return any(v is not None for v in values) and all(_is_number(v) or v is None for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Figures --------------------------------------------------------------------------------------------------------------


def over_settings(result: Found) -> list[Figure]:
    """The score over the state's size, or over what was asked for, then over each other number that was varied."""
    done = [row for row in result["rows"] if row["status"] == "done" and row["score"] is not None]
    wanted = result.get("x")
    axes = (
        [wanted] if wanted else [STATE, *(n for n in result["varied"] if n.startswith(("model.", "train.", "task.")))]
    )
    found = []
    for axis in axes:
        known = [row for row in done if _is_number(row.get(axis)) and row[axis] > 0]
        if len({row[axis] for row in known}) < 2:
            continue
        metrics = listing(list(dict.fromkeys(str(row["metric"]) for row in known)))
        what = "the size of the state" if axis == STATE else _short(axis)

        def draw(rows: Sequence[Found], height: int, axis: str = axis) -> go.Figure:
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


def _by_task(
    result: Found, rows: Sequence[Found], draw: Callable[[Sequence[Found], int], go.Figure]
) -> tuple[Panel, ...]:
    """A panel for each task."""
    tasks: dict[str, list[Found]] = {}
    for row in rows:
        tasks.setdefault(visible(str(row["task"])), []).append(row)
    if len(tasks) == 1:
        return (Panel(draw(list(rows), WIDE)),)
    return tuple(Panel(draw(of_it, SMALL), name, None, SMALL) for name, of_it in tasks.items())


def _over(result: Found, rows: Sequence[Found], axis: str, height: int) -> go.Figure:
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
            go.Scatter(
                x=[v for v in x for _ in at[v]], y=[score for v in x for score in at[v]], mode="markers",
                marker={"color": colour(i), "size": 5, "opacity": 0.45, "symbol": _symbol(i)}, hoverinfo="skip",
                meta={"layer": i},
            ),
            _means(x, means, i, name, metric, [at[v] for v in x]),
        ]  # fmt: skip
        ends.append((i, name, means[-1], x[-1]))
    alike = [row for row in result["rows"] if row["metric"] == metric and row["score"] is not None]
    yaxis = _score_axis([float(row["score"]) for row in alike], metric)  # the same in every panel
    places = [float(row[axis]) for row in rows]
    xaxis = _logarithmic(min(places), max(places), lambda v: units.count(round(v, 9)), "", 0.04)
    written = sorted(set(places))
    apart = all(b > 1.25 * a for a, b in pairwise(written))
    if len(written) <= (8 if height >= WIDE else 5) and apart:
        xaxis |= {"tickvals": written, "ticktext": [_value(int(v) if v == int(v) else v) for v in written]}
    xaxis["title"] = {"text": "numbers in the state" if axis == STATE else _short(axis)}
    return _figure(traces, xaxis=xaxis, yaxis=yaxis, hovermode="x" if height < WIDE else "closest",
                   annotations=_labelled(ends, yaxis, height) if height >= WIDE else [])  # fmt: skip


def _best(result: Found, rows: Sequence[Found]) -> Sequence[Found]:
    """Those of the runs with the settings that are best on the validation: they differ in their seeds alone."""
    sets: dict[str, list[Found]] = {}
    for row in rows:
        sets.setdefault(str([row.get(n) for n in result["varied"]]), []).append(row)
    choose = max if rows[0]["metric"] == "accuracy" else min

    def of(some: Sequence[Found]) -> float:
        return statistics.fmean(row["score"] if row["valid"] is None else row["valid"] for row in some)

    return choose(sets.values(), key=of)


def _symbol(i: int) -> str:
    return figures.SYMBOLS[i % len(figures.SYMBOLS)]


def _means(
    x: Sequence[float], means: Sequence[float], i: int, name: str, metric: str, values: Sequence[Sequence[float]]
) -> go.Scatter:
    """A line through means, with bars from the least to the largest of what each is of."""
    tips = []
    for v, mean, every in zip(x, means, values):
        text = f"{units.count(v)}: {metric} {_score(mean, metric)}"
        tips.append(
            text + (f" ({_score(min(every), metric)} to {_score(max(every), metric)})" if len(every) > 1 else "")
        )
    return go.Scatter(
        x=list(x), y=list(means), mode="lines+markers", name=label(name),
        line={"color": colour(i), "width": 2.25, "dash": "solid" if i < figures.COLOURS else "dash"},
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
        return _logarithmic(low, high, units.plain, metric)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return {"range": [low - pad, high + pad], "title": {"text": metric}}


def _labelled(ends: Sequence[tuple[int, str, float, float]], yaxis: Mapping[str, Any], height: int) -> list[Any]:
    low, high = yaxis["range"]
    log = yaxis.get("type") == "log"
    room, scale = height - 70, (high - low) / (height - 70)
    named = [(i, name, value) for i, name, value, _ in ends]
    notes = _end_labels(named, 10**low if log else low, 10**high if log else high, room, log)
    top = float(room)
    for note in reversed(notes):  # from the top down: none above the drawing
        spot = min(top, (note["y"] - low) / scale + note["yshift"])
        note["yshift"], top = spot - (note["y"] - low) / scale, spot - 16
    return notes


def over_length(result: Found) -> Figure | None:
    """The score over the length of the test, of each label's best settings; where any was tested at several."""
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


def _over_length(result: Found, rows: Sequence[Found], lengths: Sequence[str], height: int) -> go.Figure:
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
    xaxis = _length_axis(sorted(places), "length of the test (tokens)")
    if height < WIDE:
        shown = thinned(sorted(places), 4)
        xaxis |= {"tickvals": shown, "ticktext": [units.count(n) for n in shown], "title": {"text": "length"}}
    trained = {row.get("task.length") for row in rows}
    shapes = []
    if len(trained) == 1 and (length := trained.pop()) in places:
        shapes = [{"type": "line", "x0": length, "x1": length, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
                   "line": {"color": "var(--axis)", "width": 1, "dash": "dot"}}]  # fmt: skip
    return _figure(traces, xaxis=xaxis, yaxis=yaxis, shapes=shapes, hovermode="x" if height < WIDE else "closest",
                   annotations=_labelled(ends, yaxis, height) if height >= WIDE else [])  # fmt: skip
