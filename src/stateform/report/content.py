"""What a comparison says in words: the rows, notes and headlines that the terminal and the page share.

Every value of the dict may be missing (a comparison that was interrupted, a layer without this or that), so nothing
here assumes more than a layer's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import units
from .units import MISSING

FORMS = ("recurrent", "chunkwise", "scan", "matrix", "convolution")
BASELINE = "softmax"


@dataclass(frozen=True)
class Column:
    """A column of a grid: its heading, whether it holds numbers, and whether only the page has room for it."""

    heading: str
    numeric: bool = False
    page_only: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a grid, with the position of the layer that it is about (None: not about one layer)."""

    cells: tuple[str, ...]
    layer: int | None = None


@dataclass(frozen=True)
class Grid:
    """A small table that answers the question in its title."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headline:
    """One finding: what it is about, the answer, and a sentence around it."""

    label: str
    value: str
    detail: str
    layer: int | None = None


def at(tree: Any, *keys: str) -> Any:
    """What lies under `keys` in nested dicts, or None where a level is missing or None."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def layers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers of a result."""
    return list(result.get("layers") or [])


def visible(text: str) -> str:
    """`text` with everything that does not print (control characters, lone surrogates) written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def name_of(layer: Mapping[str, Any]) -> str:
    """The layer's label, fit to be shown."""
    return visible(str(layer.get("name") or "unnamed"))


def names(result: Mapping[str, Any]) -> list[str]:
    """The labels of the layers."""
    return [name_of(layer) for layer in layers(result)]


def measured(layer: Mapping[str, Any]) -> dict[str, dict[int, Mapping[str, float]]]:
    """The times of a layer, in milliseconds: form -> length -> median, low, high; forms and lengths in order."""
    by_form = at(layer, "cost", "forward_ms") or {}
    known = [form for form in FORMS if form in by_form] + [form for form in by_form if form not in FORMS]
    found = {}
    for form in known:
        timed = {int(T): time for T, time in (by_form[form] or {}).items() if at(time, "median") is not None}
        if timed:
            found[form] = dict(sorted(timed.items()))
    return found


def best(layer: Mapping[str, Any], T: int) -> tuple[str, Mapping[str, float]] | None:
    """The form with the smallest median time at length `T`, and its times."""
    timed = [(form, times[T]) for form, times in measured(layer).items() if T in times]
    return min(timed, key=lambda pair: pair[1]["median"], default=None)


def lengths(result: Mapping[str, Any]) -> list[int]:
    """Every length at which some layer was timed; without times, the lengths that were asked for."""
    timed = {T for layer in layers(result) for times in measured(layer).values() for T in times}
    return sorted(timed or {int(T) for T in at(result, "settings", "lengths") or []})


def longest(result: Mapping[str, Any]) -> int | None:
    """The largest of `lengths`."""
    return max(lengths(result), default=None)


def at_length(values: Any, T: int | None) -> float | None:
    """The value at length `T` of a dict from lengths (as strings) to values."""
    return None if T is None else at(values, str(T))


def state_at(layer: Mapping[str, Any], T: float) -> float | None:
    """How many numbers the state holds after `T` tokens."""
    start, growth = at(layer, "identity", "state_size"), at(layer, "identity", "state_growth")
    return None if start is None else start + (growth or 0) * T


def memory_at(layer: Mapping[str, Any], T: int | None) -> tuple[str, float] | None:
    """The form that `auto` takes at length `T`, and the peak memory measured in it."""
    measured = at_length(at(layer, "cost", "peak_bytes"), T)
    return None if measured is None else (str(at_length(at(layer, "cost", "auto_form"), T) or "auto"), float(measured))


def _has(result: Mapping[str, Any], *keys: str) -> bool:
    return any(at(layer, *keys) for layer in layers(result))


def _row(index: int, layer: Mapping[str, Any], *cells: str) -> Row:
    return Row((name_of(layer), *cells), index)


def _text(value: Any) -> str:
    return visible(str(value)) if value not in (None, "") else MISSING


def thinned(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values`, with the first, the last and even steps between."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def listing(items: Sequence[str]) -> str:
    """Items as people list them: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


# The grids, in the order in which they are shown ---------------------------------------------------------------------


def identity(result: Mapping[str, Any]) -> Grid | None:
    """What each layer is, and how much it carries from token to token."""
    if not layers(result):
        return None
    rows = []
    for i, layer in enumerate(layers(result)):
        growth = at(layer, "identity", "state_growth")
        rows.append(
            _row(
                i,
                layer,
                _text(at(layer, "identity", "transition")),
                units.count(at(layer, "identity", "state_size")),
                MISSING if growth is None else "0" if growth == 0 else f"+{units.count(growth)}",
                units.count(layer.get("parameters")),
                _text(layer.get("summary")),
                _text(layer.get("paper")),
            )
        )
    columns = (
        Column("Layer"),
        Column("State transition"),
        Column("State", numeric=True),
        Column("per token", numeric=True),
        Column("Weights", numeric=True),
        Column("In words", page_only=True),
        Column("Source", page_only=True),
    )
    note = "State: the numbers carried from one token to the next. A state that grows per token is a cache."
    return Grid("identity", "What is each layer?", columns, tuple(rows), (note,))


def stability(result: Mapping[str, Any]) -> Grid | None:
    """Whether each layer's state can grow without bound."""
    if not _has(result, "identity"):
        return None
    rows = tuple(
        _row(
            i,
            layer,
            _text(at(layer, "identity", "contractive")),
            units.near_one(at(layer, "identity", "spectral_radius")),
            _text(at(layer, "identity", "contractive_why")),
        )
        for i, layer in enumerate(layers(result))
    )
    columns = (Column("Layer"), Column("Contractive"), Column("Max |λ|", numeric=True), Column("Why"))
    note = "Max |λ|: the largest eigenvalue of the transition seen on this text. At most 1: nothing is amplified."
    return Grid("stability", "Can the state blow up?", columns, rows, (note,))


def certificate(result: Mapping[str, Any]) -> Grid | None:
    """How far each form is from the step by step recurrence."""
    certified = [(i, layer) for i, layer in enumerate(layers(result)) if at(layer, "certificate")]
    if not certified:
        return None
    seen = {form for _, layer in certified for form in at(layer, "certificate", "forms") or {}}
    forms = [form for form in FORMS if form in seen] + sorted(seen - set(FORMS))
    rows: list[Row] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for i, layer in certified:
        passed = at(layer, "certificate", "ok")
        errors = at(layer, "certificate", "forms") or {}
        verdict = "agree" if passed else "DIFFER" if passed is False else MISSING
        rows.append(_row(i, layer, verdict, *(units.error(errors.get(form)) for form in forms)))
        for form, why in (at(layer, "certificate", "refused") or {}).items():
            refused.setdefault((visible(form), visible(str(why)).rstrip(".")), []).append(name_of(layer))
    reasons = [f"No {form} for {listing(which)}: {why}." for (form, why), which in refused.items()]
    one = at(certified[0][1], "certificate")
    note = (
        f"Relative difference from the recurrence, {_text(one.get('dtype'))}, T = {_text(one.get('length'))}; "
        f"allowed: {units.error(one.get('tolerance'))}. {MISSING}: the layer has no such form."
    )
    headings = tuple(Column("conv." if form == "convolution" else visible(form), numeric=True) for form in forms)
    columns = (Column("Layer"), Column("Forms"), *headings)
    title = "Do all forms of a layer compute the same function?"
    return Grid("certificate", title, columns, tuple(rows), (note, *reasons))


def time(result: Mapping[str, Any], most: int = 5) -> Grid | None:
    """How long a sequence takes in the fastest form, at `most` lengths at most."""
    if not _has(result, "cost", "forward_ms"):
        return None
    shown = thinned(lengths(result), most)
    rows = []
    for i, layer in enumerate(layers(result)):
        found = [best(layer, T) for T in shown]
        last = next((pair[0] for pair in reversed(found) if pair), MISSING)
        rows.append(_row(i, layer, *(units.milliseconds(at(p[1], "median") if p else None) for p in found), last))
    columns = (Column("Layer"), *(Column(f"T = {T}" if k == 0 else str(T), True) for k, T in enumerate(shown)))
    columns = (*columns, Column("Form"))
    batch = at(result, "settings", "batch")
    note = f"Median time of a forward pass{f', batch {batch}' if batch else ''}, in the form that is fastest at that "
    note += "length (named for the longest one)."
    return Grid("time", "How long does a sequence take?", columns, tuple(rows), (note, *left_out(result)))


def left_out(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason for which forms were not timed at some lengths."""
    where: dict[tuple[str, str, str], list[int]] = {}
    for layer in layers(result):
        for item in at(layer, "cost", "left_out") or []:
            key = (name_of(layer), _text(item.get("form")), _text(item.get("reason")).rstrip("."))
            where.setdefault(key, []).append(int(item.get("T") or 0))
    alike: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for (name, form, reason), at_T in where.items():
        alike.setdefault((form, reason, tuple(sorted(at_T))), []).append(name)
    return [
        f"Left out: {form} at T = {listing([str(T) for T in at_T])} for {listing(names)}: {reason}."
        for (form, reason, at_T), names in alike.items()
    ]


def cost(result: Mapping[str, Any]) -> Grid | None:
    """What a token and a long sequence cost, and from where on softmax is slower."""
    if not _has(result, "cost"):
        return None
    T = longest(result)
    against = _has(result, "cost", "crossover")
    rows = []
    for i, layer in enumerate(layers(result)):
        memory = memory_at(layer, T)
        crossover = at(layer, "cost", "crossover", "T")
        cells = [
            units.microseconds(at(layer, "cost", "decode_us", "median")),
            units.count(at_length(at(layer, "cost", "flops"), T)),
            units.size(memory[1] if memory else None),
        ]
        if against:
            cells += [
                MISSING if crossover is None else f"T = {crossover}",
                _text(at(layer, "cost", "crossover", "text")),
            ]
        rows.append(_row(i, layer, *cells))
    columns = [Column("Layer"), *(Column(heading, True) for heading in ("Next token", "FLOPs", "Peak memory"))]
    where = f" at T = {T}" if T else ""
    note = f"Next token: one from a state. FLOPs counted, peak memory measured (in the form that auto takes){where}."
    if against:
        columns += [Column(f"Beats {BASELINE}", numeric=True), Column(f"Against {BASELINE}", page_only=True)]
        note += f" Beats {BASELINE}: the length from which on it is faster."
    return Grid("cost", "What does it cost?", tuple(columns), tuple(rows), (note,))


def memory(result: Mapping[str, Any]) -> Grid | None:
    """How far back each layer reads on this text, and the eigenvalues behind it."""
    if not (_has(result, "dynamics") or _has(result, "identity", "eigenvalue_range")):
        return None
    rows = []
    for i, layer in enumerate(layers(result)):
        quantiles = at(layer, "dynamics", "horizon", "quantiles")
        heads = horizons(at(layer, "dynamics", "horizon"))
        ends = list(dict.fromkeys(pick(heads)[1] for pick in (min, max))) if heads else [MISSING]
        sign = "≥ " if _mostly_limited(layer) else ""
        cells = [
            MISSING if q is None else sign + units.count(round(q))
            for q in (at(quantiles, k) for k in ("0.1", "0.5", "0.9"))
        ]
        rows.append(_row(i, layer, *cells, " to ".join(ends), eigenvalues(layer)))
    columns = (
        Column("Layer"),
        Column("10%", numeric=True),
        Column("median", numeric=True),
        Column("90%", numeric=True),
        Column("heads", numeric=True),
        Column("Eigenvalues", numeric=True),
    )
    notes = ["How many tokens back hold 95% of what an output reads: over all positions and heads, then per head."]
    if any(any(at(layer, "dynamics", "horizon", "limited") or []) for layer in layers(result)):
        notes.append(
            "≥: heads that read as far back as the text or their window goes, whose number is how far that is."
        )
    sinks = [
        f"head {h} of {name_of(layer)} ({x:.0%})"
        for layer in layers(result)
        for h, x in enumerate(at(layer, "dynamics", "horizon", "sinks") or [])
        if x is not None
    ]
    if sinks:
        more = f" and {len(sinks) - 6} more" if len(sinks) > 6 else ""
        named = f"{', '.join(sinks[:6])}{more}"
        notes.append(f"Read to the first token at every position, with this share of their weight: {named}.")
    return Grid("memory", "How many tokens back does each layer reach?", columns, tuple(rows), tuple(notes))


def _mostly_limited(layer: Mapping[str, Any]) -> bool:
    """True if more than half of the heads read as far back as the text or their window goes."""
    limited = at(layer, "dynamics", "horizon", "limited") or []
    return 2 * sum(limited) > len(limited)


def horizons(horizon: Any) -> list[tuple[float, str]]:
    """The horizon of each head, in tokens and as it is written: with a sign where it is a bound from below."""
    heads, limited = at(horizon, "heads") or [], at(horizon, "limited") or []
    signs = ["≥ " if far else "" for far in limited] + [""] * (len(heads) - len(limited))
    return [(float(h), sign + units.count(round(h))) for h, sign in zip(heads, signs, strict=True) if h is not None]


def eigenvalues(layer: Mapping[str, Any]) -> str:
    """The range of a layer's eigenvalues: of the values where they are real, of the magnitudes otherwise."""
    seen = at(layer, "identity", "eigenvalue_range") or {}
    kind = "abs" if seen.get("complex") else "real"
    low, high = seen.get(f"{kind}_min"), seen.get(f"{kind}_max")
    if low is None or high is None:
        return MISSING
    text = units.near_one(low) if low == high else f"{units.near_one(low)} to {units.near_one(high)}"
    return f"|λ| {text}" if seen.get("complex") else text


def pairs(result: Mapping[str, Any], most: int = 6) -> Grid | None:
    """Which layers are the same function and where others differ: all pairs, or the equal and the closest `most`."""
    found = list(result.get("pairs") or [])
    if not found:
        return None
    label = {str(layer.get("name")): i for i, layer in enumerate(layers(result))}
    shown = sorted(found, key=lambda pair: (not pair.get("equal"), _order(pair.get("error"))))
    equal = sum(bool(pair.get("equal")) for pair in found)
    shown = shown[: max(most, equal)] if len(shown) > most else shown
    rows = []
    for pair in shown:
        position = at(pair, "first", "position")
        cells = (
            visible(str(pair.get("a"))),
            visible(str(pair.get("b"))),
            "yes" if pair.get("equal") else "no",
            units.error(pair.get("error")),
            MISSING if position is None else f"token {position}",
            shared(pair),
            _text(pair.get("text")),
        )
        rows.append(Row(cells, label.get(str(pair.get("a")))))
    columns = (
        Column("Layer"),
        Column("and"),
        Column("Same"),
        Column("Error", numeric=True),
        Column("First at", numeric=True),
        Column("Shared weights", numeric=True),
        Column("In words", page_only=True),
    )
    rest = len(found) - len(shown)
    note = "Same function when weights of the same name and shape are made equal; otherwise where they first differ."
    more = (f"The other {rest} pairs differ by more.",) if rest else ()
    special = tuple(f"{_text(pair['special'])}." for pair in found if pair.get("special"))
    return Grid("pairs", "Where do two layers differ?", columns, tuple(rows), (note, *more, *special))


def _order(error: float | None) -> float:
    return float("inf") if error is None or error != error else error


def shared(pair: Mapping[str, Any]) -> str:
    """How many of the weights of a pair were made equal."""
    equal, other = pair.get("shared"), pair.get("unshared")
    return MISSING if equal is None else f"{equal} of {equal + (other or 0)}"


def grids(result: Mapping[str, Any], lengths: int = 5) -> list[Grid]:
    """Every table that the result has something for, in order; times at `lengths` lengths at most."""
    parts = (
        identity(result),
        stability(result),
        certificate(result),
        time(result, lengths),
        cost(result),
        memory(result),
        pairs(result),
    )
    return [grid for grid in parts if grid is not None]


# What a person would say first ---------------------------------------------------------------------------------------


def _compared(values: Iterable[tuple[int, float]], write: Any) -> Iterator[tuple[int, str, float]]:
    ordered = sorted(values, key=lambda pair: pair[1])
    if ordered:
        yield ordered[0][0], write(ordered[0][1]), ordered[-1][1] / ordered[0][1] if ordered[0][1] else 1.0


def headlines(result: Mapping[str, Any]) -> list[Headline]:
    """The findings that a reader wants first; none for what was not measured."""
    every, T = layers(result), longest(result)
    label = names(result)
    found: list[Headline] = []

    certified = [(i, at(layer, "certificate")) for i, layer in enumerate(every) if at(layer, "certificate")]
    if certified:
        failed = [label[i] for i, one in certified if one.get("ok") is False]
        worst = max((one.get("worst") or 0.0 for _, one in certified), default=0.0)
        allowed = units.error(certified[0][1].get("tolerance"))
        if failed:
            detail = f"Forms of {listing(failed)} differ by more than {allowed}: do not trust their other units."
            found.append(Headline("Forms agree", "No", detail))
        else:
            detail = f"Every form of every layer computes the same function; allowed: {allowed}."
            found.append(Headline("Forms agree to", units.error(worst) if worst else "every digit", detail))

    if T is not None:
        timed = [(i, pair[1]["median"]) for i, pair in ((i, best(layer, T)) for i, layer in enumerate(every)) if pair]
        base = next((ms for i, ms in timed if every[i].get("name") == BASELINE), None)
        for i, text, ratio in _compared(timed, units.milliseconds):
            form = (best(every[i], T) or ("",))[0]
            if base is not None and every[i].get("name") != BASELINE:
                against = f", {times_faster(base / dict(timed)[i])} {BASELINE}"
            else:
                against = f", {units.times(ratio)} faster than the slowest" if len(timed) > 1 else ""
            found.append(Headline(f"Fastest at T = {T}", label[i], f"{text} in form {form}{against}.", i))

    decoded = [(i, us) for i, layer in enumerate(every) if (us := at(layer, "cost", "decode_us", "median")) is not None]
    for i, text, ratio in _compared(decoded, units.microseconds):
        against = f", {units.times(ratio)} faster than the slowest" if len(decoded) > 1 else ""
        found.append(Headline("Fastest next token", label[i], f"{text} from a state{against}.", i))

    if T is not None:
        held = [(i, n) for i, layer in enumerate(every) if (n := state_at(layer, T)) is not None]
        for i, text, ratio in _compared(held, units.count):
            detail = f"{text} numbers after {T} tokens"
            detail += f", {units.times(ratio)} less than the largest." if len(held) > 1 else "."
            found.append(Headline("Smallest state", label[i], detail, i))

    reach = [(i, q) for i, layer in enumerate(every) if (q := at(layer, "dynamics", "horizon", "quantiles", "0.5"))]
    if reach:
        i, tokens = max(reach, key=lambda pair: pair[1])
        detail = f"95% of what an output reads lies within {units.count(round(tokens))} tokens (median)."
        if _mostly_limited(every[i]):
            detail = "Most heads read as far back as the text or their window goes."
        found.append(Headline("Longest memory", label[i], detail, i))

    compared = list(result.get("pairs") or [])
    if compared:
        same = [pair for pair in compared if pair.get("equal")]
        if same:
            sentence = "; ".join(f"{visible(str(p.get('a')))} = {visible(str(p.get('b')))}" for p in same)
            found.append(Headline("Same function", f"{len(same)} of {len(compared)} pairs", f"{sentence}."))
        else:
            found.append(Headline("Same function", "None", f"Each of the {len(compared)} pairs differs somewhere."))
        special = [pair for pair in compared if pair.get("special")]
        if special:
            sentence = "; ".join(f"{visible(str(p.get('a')))}, {visible(str(p.get('b')))}" for p in special)
            detail = f"{sentence}. One is the other with some parameters set."
            found.append(Headline("Special cases", f"{len(special)} of {len(compared)} pairs", detail))
    return found


def times_faster(ratio: float) -> str:
    """`ratio` as words that a layer's name can follow: 8.4× faster than, as fast as, 1.2× slower than."""
    if 0.95 <= ratio <= 1.05:
        return "as fast as"
    return f"{units.times(ratio)} faster than" if ratio > 1 else f"{units.times(1 / ratio)} slower than"


def subject(result: Mapping[str, Any]) -> str:
    """One line: how many layers on which text."""
    tokens, source = at(result, "text", "tokens"), at(result, "text", "source")
    n = len(layers(result))
    text = f"{n} layer{'' if n == 1 else 's'}"
    if tokens:
        text += f" on {units.count(tokens)} tokens"
    return text + (f" of {visible(str(source))}" if source else "")


def conditions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings and the machine, as names and values."""
    settings, machine = result.get("settings") or {}, result.get("machine") or {}
    limit = settings.get("memory_limit_gb")
    lengths_asked = ", ".join(str(T) for T in settings.get("lengths") or [])
    found = [
        ("Model width", settings.get("d_model")),
        ("Lengths", lengths_asked),
        ("Batch", settings.get("batch")),
        ("Timed in", settings.get("dtype")),
        ("Seed", settings.get("seed")),
        ("Memory limit", None if limit is None else f"{limit:g} GB"),
        ("Processor", machine.get("cpu")),
        ("Device", machine.get("device")),
        ("Threads", machine.get("threads")),
        ("torch", machine.get("torch")),
        ("Python", machine.get("python")),
        ("Stateform", result.get("stateform")),
        ("Made", str(result.get("created") or "").replace("T", " ")),
    ]
    return [(name, visible(str(value))) for name, value in found if value not in (None, "")]


def interrupted(result: Mapping[str, Any]) -> str | None:
    """What to say on top when the comparison was stopped before its end."""
    if result.get("complete", True):
        return None
    return "This comparison was stopped before its end: it shows what was finished by then."
