"""What a layer costs: time over length in every form, a token, memory, work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...forms import FORMS, in_order
from ...report import Column, Figure, Grid, Headline, Panel, View, dig, listing, units, visible
from ...report.figure import SMALL, band, bar_panel, drawing, length_axis, line, logarithmic, named_ends
from ...report.units import MISSING
from ...report.words import text_of, thinned
from ...timing.measure import blank_cost, measure
from ..words import has, layer_row, layers, name_of, names
from .question import Beside, Lineup, Told

BASELINE = "softmax"
"""The layer that others are held against."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""The lines of the forms, in their order."""


def measure_all(lineup: Lineup, result: dict[str, Any], step: Callable[[str], None]) -> None:
    """Fill the cost of every layer; all of them take turns."""
    rows = {row["name"]: row for row in result["layers"]}
    for row in rows.values():
        row["cost"] = blank_cost()
    x = lineup.x.to(lineup.dtype)
    measure(lineup.layers, rows, x, lineup.lengths, lineup.memory_limit_gb, lineup.repeats, step)


def measured(layer: Mapping[str, Any]) -> dict[str, dict[int, Mapping[str, float]]]:
    """Read the times of a layer, in milliseconds: form -> length -> median, low, high; forms and lengths in order."""
    by_form = dig(layer, "cost", "forward_ms") or {}
    found = {}
    for form in in_order(by_form):
        timed = {int(T): time for T, time in (by_form[form] or {}).items() if dig(time, "median") is not None}
        if timed:
            found[form] = dict(sorted(timed.items()))
    return found


def best(layer: Mapping[str, Any], T: int) -> tuple[str, Mapping[str, float]] | None:
    """Find the form with the smallest median time at length `T`, and its times."""
    timed = [(form, times[T]) for form, times in measured(layer).items() if T in times]
    return min(timed, key=lambda pair: pair[1]["median"], default=None)


def lengths(result: Mapping[str, Any]) -> list[int]:
    """List every length at which some layer was timed; without times, the lengths that were asked for."""
    timed = {T for layer in layers(result) for times in measured(layer).values() for T in times}
    return sorted(timed or {int(T) for T in dig(result, "settings", "lengths") or []})


def longest(result: Mapping[str, Any]) -> int | None:
    """Find the largest of `lengths`."""
    return max(lengths(result), default=None)


def at_length(values: Any, T: int | None) -> float | None:
    """Read the value at length `T` of a dict from lengths (as strings) to values."""
    return None if T is None else dig(values, str(T))


def state_at(layer: Mapping[str, Any], T: float) -> float | None:
    """Count the numbers that the state holds after `T` tokens."""
    start, growth = dig(layer, "identity", "state_size"), dig(layer, "identity", "state_growth")
    return None if start is None else start + (growth or 0) * T


def memory_at(layer: Mapping[str, Any], T: int | None) -> tuple[str, float] | None:
    """Find the form that `auto` takes at length `T`, and the peak memory measured in it."""
    measured = at_length(dig(layer, "cost", "peak_bytes"), T)
    return None if measured is None else (str(at_length(dig(layer, "cost", "auto_form"), T) or "auto"), float(measured))


def time_table(result: Told, most: int) -> Grid | None:
    """Tell how long a sequence takes in the fastest form, at `most` lengths at most."""
    if not has(result, "cost", "forward_ms"):
        return None
    shown = thinned(lengths(result), most)
    rows = []
    for i, layer in enumerate(layers(result)):
        found = [best(layer, T) for T in shown]
        last = next((pair[0] for pair in reversed(found) if pair), MISSING)
        rows.append(layer_row(i, layer, *(units.milliseconds(dig(p[1], "median") if p else None) for p in found), last))
    columns = (Column("Layer"), *(Column(f"T = {T}" if k == 0 else str(T), True) for k, T in enumerate(shown)))
    columns = (*columns, Column("Form"))
    batch = dig(result, "settings", "batch")
    note = f"Median time of a forward pass{f', batch {batch}' if batch else ''}, in the form that is fastest at that "
    note += "length (named for the longest one)."
    return Grid("time", "How long does a sequence take?", columns, tuple(rows), (note, *left_out(result)))


def left_out(result: Mapping[str, Any]) -> list[str]:
    """Give a sentence for each reason for which forms were not timed at some lengths."""
    where: dict[tuple[str, str, str], list[int]] = {}
    for layer in layers(result):
        for item in dig(layer, "cost", "left_out") or []:
            key = (name_of(layer), text_of(item.get("form")), text_of(item.get("reason")).rstrip("."))
            where.setdefault(key, []).append(int(item.get("T") or 0))
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (name, form, reason), at_T in where.items():
        alike.setdefault((form, reason, tuple(sorted(at_T))), []).append(name)
    return [
        f"Left out: {form} at T = {listing([str(T) for T in at_T])} for {listing(names)}: {reason}."
        for (form, reason, at_T), names in alike.items()
    ]


def cost_table(result: Told) -> Grid | None:
    """Tell what a token and a long sequence cost, and from where on softmax is slower."""
    if not has(result, "cost"):
        return None
    T = longest(result)
    against = has(result, "cost", "crossover")
    rows = []
    for i, layer in enumerate(layers(result)):
        memory = memory_at(layer, T)
        crossover = dig(layer, "cost", "crossover", "T")
        cells = [
            units.microseconds(dig(layer, "cost", "decode_us", "median")),
            units.count(at_length(dig(layer, "cost", "flops"), T)),
            units.size(memory[1] if memory else None),
        ]
        if against:
            cells += [
                MISSING if crossover is None else f"T = {crossover}",
                text_of(dig(layer, "cost", "crossover", "text")),
            ]
        rows.append(layer_row(i, layer, *cells))
    columns = [Column("Layer"), *(Column(heading, True) for heading in ("Next token", "FLOPs", "Peak memory"))]
    where = f" at T = {T}" if T else ""
    note = f"Next token: one from a state. FLOPs counted, peak memory measured (in the form that auto takes){where}."
    if against:
        columns += [Column(f"Beats {BASELINE}", numeric=True), Column(f"Against {BASELINE}", page_only=True)]
        note += f" Beats {BASELINE}: the length from which on it is faster."
    return Grid("cost", "What does it cost?", tuple(columns), tuple(rows), (note,))


def time_over_length(result: Mapping[str, Any]) -> Figure | None:
    """Draw the time of a forward pass over T: of each layer's fastest form, the same per token, of every form."""
    timed = [(i, layer, measured(layer)) for i, layer in enumerate(layers(result)) if measured(layer)]
    if not timed:
        return None
    every = lengths(result)
    views = [_best_times(timed, every, False), _best_times(timed, every, True), _times_by_form(timed, every)]
    said: dict[str, list[str]] = {}
    for _, layer, _ in timed:
        if (text := dig(layer, "cost", "crossover", "text")) and layer.get("name") != BASELINE:
            said.setdefault(visible(str(text)).rstrip("."), []).append(name_of(layer))
    found = [f"{listing(which)}: {text}." for text, which in said.items()]
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
        points = [(T, *pair) for T in every if (pair := best(layer, T))]
        if not points:
            continue
        share = [1e3 / T if per_token else 1.0 for T, _, _ in points]
        x = [T for T, _, _ in points]
        median = [time["median"] * s for s, (_, _, time) in zip(share, points)]
        low = [(time.get("low") or time["median"]) * s for s, (_, _, time) in zip(share, points)]
        high = [(time.get("high") or time["median"]) * s for s, (_, _, time) in zip(share, points)]
        write = units.microseconds if per_token else units.milliseconds
        tips = [f"{write(value)}, {form}" for value, (_, form, _) in zip(median, points)]
        traces += [band(x, low, high, i), line(x, median, i, name_of(layer), tips)]
        ends.append((i, name_of(layer), median[-1]))
        values += low + high
    write, unit = (
        (units.microseconds, "time per token") if per_token else (units.milliseconds, "time of a forward pass")
    )
    axis = logarithmic(min(values), max(values), write, unit)
    figure = drawing(
        traces,
        xaxis=length_axis(every),
        meta={"over": "T = %{x}"},
        yaxis=axis,
        hovermode="x unified",
        annotations=named_ends(ends, axis),
    )
    return View("Per token" if per_token else "Whole sequence", (Panel(figure),))


def _times_by_form(timed: Sequence[tuple[int, Any, Any]], every: Sequence[int]) -> View:
    values = [
        v for _, _, forms in timed for times in forms.values() for time in times.values() for v in time.values() if v
    ]
    axis = logarithmic(min(values), max(values), units.milliseconds, "")
    panels, used = [], set()
    for i, layer, forms in timed:
        traces = []
        for form, times in forms.items():
            used.add(form)
            tips = [f"{form}: {units.milliseconds(time['median'])}" for time in times.values()]
            medians = [time["median"] for time in times.values()]
            style = {"dash": _dash(form), "width": 2}
            lines = line(list(times), medians, i, name_of(layer), tips, line=style)
            lines.marker.size = 5
            lines.hovertemplate = "%{text}<extra></extra>"
            traces.append(lines)
        chosen = length_axis(thinned(every, 3), "T") | {"range": length_axis(every)["range"]}
        panels.append(Panel(drawing(traces, xaxis=chosen, yaxis=axis, hovermode="x"), name_of(layer), i, SMALL))
    styles = tuple((visible(form), _dash(form)) for form in in_order(used))
    return View("Every form", tuple(panels), True, styles)


def _dash(form: str) -> str:
    return DASHES[in_order(FORMS).index(form) % len(DASHES)] if form in FORMS else DASHES[0]


def cost_at_longest(result: Mapping[str, Any]) -> Figure | None:
    """Draw bars of time, work and memory at the largest length, and of the time of the next token."""
    T = longest(result)
    every = list(enumerate(layers(result)))

    def fastest(layer: Any) -> float | None:
        pair = best(layer, T) if T else None
        return pair[1]["median"] if pair else None

    def peak(layer: Any) -> float | None:
        found = memory_at(layer, T)
        return found[1] if found else None

    questions: list[tuple[str, Callable[[Any], float | None], Callable[[float | None], str]]] = [
        (f"Time, T = {T}", fastest, units.milliseconds),
        (f"Work, T = {T} (FLOPs)", lambda layer: at_length(dig(layer, "cost", "flops"), T), units.count),
        (f"Peak memory, T = {T}", peak, units.size),
        ("Next token, from a state", lambda layer: dig(layer, "cost", "decode_us", "median"), units.microseconds),
    ]
    panels = []
    for title, value, write in questions:
        bars = [(i, name_of(layer), float(v)) for i, layer in every if (v := value(layer)) is not None]
        if bars:
            panels.append(bar_panel(title, bars, write))
    if not panels:
        return None
    reading = "Time in the fastest form, memory measured in the form that auto takes, work counted. Shorter is cheaper."
    title = f"What does each layer cost at T = {T}?" if T else "What does each layer cost?"
    return Figure("cost", title, reading, (View("Cost", tuple(panels), True),))


def _compared(values: Iterable[tuple[int, float]], write: Any) -> Iterator[tuple[int, str, float]]:
    ordered = sorted(values, key=lambda pair: pair[1])
    if ordered:
        yield ordered[0][0], write(ordered[0][1]), ordered[-1][1] / ordered[0][1] if ordered[0][1] else 1.0


def times_faster(ratio: float) -> str:
    """Write `ratio` in words that a layer's name can follow: 8.4× faster than, as fast as, 1.2× slower than."""
    if 0.95 <= ratio <= 1.05:
        return "as fast as"
    return f"{units.times(ratio)} faster than" if ratio > 1 else f"{units.times(1 / ratio)} slower than"


def _headlines(result: Told) -> Iterator[Headline]:
    every, T = layers(result), longest(result)
    label = names(result)
    if T is not None:
        timed = [(i, pair[1]["median"]) for i, pair in ((i, best(layer, T)) for i, layer in enumerate(every)) if pair]
        base = next((ms for i, ms in timed if every[i].get("name") == BASELINE), None)
        for i, text, ratio in _compared(timed, units.milliseconds):
            form = (best(every[i], T) or ("",))[0]
            if base is not None and every[i].get("name") != BASELINE:
                against = f", {times_faster(base / dict(timed)[i])} {BASELINE}"
            else:
                against = f", {units.times(ratio)} faster than the slowest" if len(timed) > 1 else ""
            yield Headline(f"Fastest at T = {T}", label[i], f"{text} in form {form}{against}.", i)
    decoded = [
        (i, us) for i, layer in enumerate(every) if (us := dig(layer, "cost", "decode_us", "median")) is not None
    ]
    for i, text, ratio in _compared(decoded, units.microseconds):
        against = f", {units.times(ratio)} faster than the slowest" if len(decoded) > 1 else ""
        yield Headline("Fastest next token", label[i], f"{text} from a state{against}.", i)
    if T is not None:
        held = [(i, n) for i, layer in enumerate(every) if (n := state_at(layer, T)) is not None]
        for i, text, ratio in _compared(held, units.count):
            detail = f"{text} numbers after {T} tokens"
            detail += f", {units.times(ratio)} less than the largest." if len(held) > 1 else "."
            yield Headline("Smallest state", label[i], detail, i)


BESIDE = Beside(
    "speed",
    50,
    lambda result, lengths: [time_table(result, lengths), cost_table(result)],
    lambda result: [time_over_length(result), cost_at_longest(result)],
    _headlines,
    together=measure_all,
    steps=lambda lineup: len(lineup.lengths),
)
