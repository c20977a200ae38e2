"""What a sweep is: the experiments that a file asks for, all made and checked before any of them runs.

The file is an experiment (task, [model], [train]) and what is varied of it:

    name = "state-size"                     # default: the file's name
    [grid]                                  # every combination of these
    model.d_state = [4, 8, 16, 32]
    train.seed = [0, 1, 2]
    [[variants]]                            # each is crossed with the grid
    label = "linear"                        # what tables and figures call it
    set = {model.pattern = "linear"}
    [[variants]]
    label = "lstm"
    set = {model.pattern = "lstm"}
    skip = ["model.d_state"]                # an axis, or a setting, that it does not have
    grid = {train.lr = [1e-3, 3e-3]}        # other values on an axis, or an axis of its own
    [[cases]]                               # settings that change together; each is crossed with all of the above
    set = {task = "mqar(length=128, n_pairs=8)", train.batch_size = 256}
    [search]                                # Optuna looks for the best of these, in each combination of the above
    trials = 20
    [search.space]
    train.lr = {low = 1e-4, high = 1e-2, log = true}
    model.conv = [2, 4]                     # one of these
    from = "runs/first"                     # begin with the weights of that run, and its settings where none are said
    [quick]                                 # what --quick changes, laid over the file
    grid.train.seed = [0]
    train.steps = 100
    [as-released]                           # likewise, what --as-released changes
    [[claims]]                              # what was published of it, see `claims`

Names may be written as tables or in quotes ("model.d_state" = [4, 8]). The axis `task` names whole tasks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import StateformError, nearest, require
from ..train.config import Experiment, inherited, overridden, put, read_toml, read_value
from .claims import Claim, read_claims
from .presets import file_of
from .store import described

PARTS = ("task", "model", "train")
FROM = "from"
"""The part that names the run from whose weights all runs of a sweep begin."""
OVERLAYS = ("quick", "as-released")
"""Tables that are laid over the file where they are asked for; variants are matched by their labels."""
KNOWN = (*PARTS, FROM, "name", "about", "grid", "variants", "cases", "search", "claims", *OVERLAYS)
"""The parts of a file; `about` is for readers."""
MOST = 100_000
"""Runs that a sweep may have."""


@dataclass(frozen=True)
class Planned:
    """One experiment of a sweep: what it is called, what of it was varied, and itself."""

    label: str
    settings: dict[str, Any]
    experiment: Experiment

    @property
    def row(self) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
        """As `Store.add` takes it."""
        return self.experiment.key, self.label, self.settings, self.experiment.to_dict()


@dataclass(frozen=True)
class Cell:
    """A combination of the grid with a variant: the settings of an experiment, or where a search starts from."""

    label: str
    settings: dict[str, Any]
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """In a line."""
        return "  ".join([self.label, *described(self.settings)])

    def planned(self, more: Mapping[str, Any] | None = None) -> Planned:
        """The experiment, with more settings where they are given.

        Raises:
            StateformError: if there is no such experiment, with the combination's name.
        """
        values = json.loads(json.dumps(self.values))
        settings = self.settings | dict(more or {})
        try:
            for name, value in (more or {}).items():
                _put(values, name, value)
            experiment = Experiment.from_dict(values, run_files=True)
        except StateformError as error:
            where = ", ".join(filter(None, [self.label, *described(settings)])) or "the experiment"
            raise StateformError(f"in {where}: {error}") from None
        label = self.label or str(values["model"]["pattern"])
        shown = {k: v for k, v in settings.items() if self.label or k != "model.pattern"}
        return Planned(label, shown, experiment)


@dataclass(frozen=True)
class Space:
    """One setting of a search: a choice, or the numbers from low to high."""

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether whole numbers alone are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values which, if all are possible, leave little that is not."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class Plan:
    """A sweep: its name, its combinations, and the search in each of them, if there is one."""

    name: str
    cells: tuple[Cell, ...]
    space: dict[str, Space] = field(default_factory=dict)
    trials: int = 0
    about: str = ""
    claims: tuple[Claim, ...] = ()

    @cached_property
    def runs(self) -> list[Planned]:
        """The experiments of the grid, in order; none where each combination is searched.

        Raises:
            StateformError: one that cannot be made, or two that are the same.
        """
        found: dict[str, Planned] = {}
        for cell in () if self.space else self.cells:
            made = cell.planned()
            other = found.setdefault(made.experiment.key, made)
            require(other is made, f"two runs are the same experiment: {_name(other)} and {_name(made)}; leave one "
                    "out, or let a variant `skip` an axis that changes nothing")  # fmt: skip
        return list(found.values())

    def check(self) -> None:
        """Raise a StateformError unless every experiment can be made; of a search, those at the ends of its space."""
        for _ in self.experiments():
            pass

    def experiments(self) -> Iterator[Experiment]:
        """Every experiment of the grid; of a search, those at the ends of its space."""
        yield from (run.experiment for run in self.runs)
        for cell in self.cells if self.space else ():
            start = {name: space.ends[0] for name, space in self.space.items()}
            for name, space in self.space.items():
                yield from (cell.planned(start | {name: value}).experiment for value in space.ends)

    @property
    def total(self) -> int:
        """How many runs there will be."""
        return len(self.cells) * self.trials if self.space else len(self.cells)


def _name(run: Planned) -> str:
    return ", ".join([run.label, *described(run.settings)])


def read_plan(
    source: str | Path | Mapping[str, Any], *, quick: bool = False, as_released: bool = False,
    overrides: Sequence[str] = (), check: bool = True,
) -> Plan:  # fmt: skip
    """The sweep that a TOML file (or its tables, as a dict) asks for; every experiment of it can be made.

    Args:
        source: the file, the name of a preset, or what is in it.
        quick: lay the table [quick] over it; the name gets "-quick", for they are other experiments.
        as_released: the same with [as-released].
        overrides: "part.setting=value"; a list replaces an axis's values, one value fixes it.
        check: make every experiment, which takes some milliseconds each; without it they are only counted.

    Raises:
        StateformError: a file that is no TOML, unknown names (with the nearest), axes without values, an axis that no
            experiment has, an experiment that cannot be made, two that are the same.
    """
    if isinstance(source, Mapping):
        values, where = json.loads(json.dumps(dict(source))), "sweep"
    else:
        path = file_of(source)
        values, where = read_toml(path), re.sub(r"[^\w.-]+", "-", path.stem).strip("-") or "sweep"
    for name in values:
        require(name in KNOWN, f"a sweep has no part {name!r}: {nearest(name, KNOWN)}")
    changes = {name: values.pop(name, None) for name in OVERLAYS}
    if "from" in values:
        require(isinstance(values["from"], str), f"from is {values['from']!r}; expected the folder of a run")
        values = inherited(values)
    values = _flat(values)
    asked = [name for name, on in zip(OVERLAYS, (quick, as_released), strict=True) if on]
    for name in asked:
        change, parts = changes[name], [part for part in KNOWN if part not in OVERLAYS]
        require(isinstance(change, Mapping), f"this sweep has no table [{name}]; leave out --{name}, or write one")
        for part in change:
            require(part in parts, f"[{name}] has no part {part!r}: {nearest(part, parts)}")
        values = _merged(values, _flat(dict(change)))
    values = _override(values, overrides)
    name = values.get("name", where)
    require(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name),
            f"the sweep's name is {name!r}; expected letters, digits, and . _ -")  # fmt: skip
    space, trials = _search(values.get("search"))
    about = values.get("about", "")
    require(isinstance(about, str), f"about is {about!r}; expected a text")
    cells = tuple(_cells(values, space, max(trials, 1)))
    claims = tuple(read_claims(values.get("claims", []), [cell.label for cell in cells]))
    plan = Plan("-".join([name, *asked]), cells, space, trials, about, claims)
    if check:
        plan.check()
    return plan


# -- reading -------------------------------------------------------------------------------------------------------


def _dotted(table: Any, what: str) -> dict[str, Any]:
    """{"model": {"d_state": [4]}} and {"model.d_state": [4]} alike as the latter."""
    require(isinstance(table, Mapping), f"{what} is {table!r}; expected a table of settings by dotted names")
    found: dict[str, Any] = {}
    for name, value in table.items():
        inner = isinstance(value, Mapping) and "." not in name
        found |= {f"{name}.{k}": v for k, v in value.items()} if inner else {name: value}
    for name in found:
        part, dot, _ = name.partition(".")
        require(name == "task" or (dot and part in PARTS),
                f"{what} has {name!r}; expected task.NAME, model.NAME or train.NAME"
                + (f": {nearest(part, PARTS)}" if dot else ""))  # fmt: skip
    return found


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A file's tables with every name of what is varied as one string."""
    values = dict(values)
    if "grid" in values:
        values["grid"] = _dotted(values["grid"], "[grid]")
    if "variants" in values:
        variants = values["variants"]
        require(isinstance(variants, list) and variants and all(isinstance(v, Mapping) for v in variants),
                f"variants is {variants!r}; expected tables [[variants]], or none of them")  # fmt: skip
        values["variants"] = [dict(v) for v in variants]
        for variant in values["variants"]:
            label = variant.get("label")
            require(isinstance(label, str) and label, f"a variant has the label {label!r}; expected a text")
            parts = ("label", "set", "grid", "skip")
            for name in variant:
                require(name in parts, f"the variant {label!r} has no part {name!r}: {nearest(name, parts)}")
            for name in ("set", "grid"):
                variant[name] = _dotted(variant.get(name, {}), f"{name} of the variant {label!r}")
            skip = variant.setdefault("skip", [])
            require(isinstance(skip, list), f"skip of the variant {label!r} is {skip!r}; expected a list of axes")
        labels = [v["label"] for v in values["variants"]]
        twice = next((label for label, count in Counter(labels).items() if count > 1), None)
        require(twice is None, f"two variants have the label {twice!r}; give each its own")
    if "cases" in values:
        cases = values["cases"]
        fits = isinstance(cases, list) and cases and all(isinstance(c, Mapping) and set(c) == {"set"} for c in cases)
        require(fits, f"cases is {cases!r}; expected tables [[cases]], each with `set` alone")
        values["cases"] = [{"set": _dotted(case["set"], "set of a case")} for case in cases]
    if "search" in values:
        search = values["search"]
        require(isinstance(search, Mapping), f"search is {search!r}; expected a table")
        values["search"] = dict(search)
        if "space" in search:
            values["search"]["space"] = _dotted(search["space"], "[search.space]")
    return values


def _merged(values: Any, change: Any) -> Any:
    """Tables are laid over one another, and variants over those of the same label; anything else is replaced."""
    if _labelled(values) and _labelled(change):
        new = {variant["label"]: variant for variant in values}
        for variant in change:
            said = {name: value for name, value in variant.items() if value}
            new[variant["label"]] = _merged(new.get(variant["label"], variant), said)
        return list(new.values())
    if isinstance(values, Mapping) and isinstance(change, Mapping):
        merged = dict(values)
        for name, value in change.items():
            merged[name] = _merged(values[name], value) if name in values else value
        return merged
    return change


def _labelled(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, Mapping) and "label" in v for v in values)


def _override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for text in overrides:
        name, _, rest = (part.strip() for part in text.partition("="))
        part, _, setting = name.partition(".")
        grid = values.get("grid", {})
        space = values.get("search", {}).get("space", {})
        axes = [grid, *(v["grid"] for v in values.get("variants", ()))]
        sets = [part["set"] for part in (*values.get("variants", ()), *values.get("cases", ()))]
        varied, shared = any(name in axis for axis in axes), False
        if name == "task":  # a whole task
            value = read_value(rest)
            require(varied or isinstance(value, str), f"task is {value!r}; expected one task, as the sweep varies none")
            values = values if isinstance(value, list) else values | {"task": value}
        else:
            value = overridden({"task": values.get("task", {})}, [text])[part][setting]
            require(part in (*PARTS, "grid", "search"), f"{name!r} names no setting of a sweep: {nearest(part, KNOWN)}")
            # What only some variants vary is set for the others too, where they have it.
            shared = name not in grid and not isinstance(value, list) and (part == "train" or name in _settings(values))
        for axis in axes:
            if name in axis:
                axis[name] = value if isinstance(value, list) else [value]
        space.pop(name, None)
        for settings in sets:
            settings.pop(name, None)
        if part == "task" and setting and not varied:  # whole tasks elsewhere would replace that of the file
            for axis in axes:
                if isinstance(axis.get("task"), list):
                    axis["task"] = list(dict.fromkeys(_with_option(task, text) for task in axis["task"]))
            for settings in sets:
                if "task" in settings:
                    settings["task"] = _with_option(settings["task"], text)
        if name != "task" and (not varied or shared):
            values = overridden(values, [text])
    if "cases" in values:  # those that differed in what is fixed now are one
        cases = values["cases"]
        values["cases"] = [case for i, case in enumerate(cases) if case not in cases[:i]]
    if "search" in values and not values["search"].get("space", True):  # all that was searched is fixed
        values = {k: v for k, v in values.items() if k != "search"}
    return values


def _with_option(task: Any, text: str) -> str:
    """The text of a whole task with one option of it replaced."""
    options = overridden({"task": task}, [text])["task"]
    name = options.pop("name", "")
    return f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})"


def _axes(grid: Mapping[str, Any], what: str) -> dict[str, list[Any]]:
    for name, axis in grid.items():
        require(isinstance(axis, list), f"{what}: {name} is {axis!r}; expected a list of values")
        require(axis, f"{what}: {name} has no values; give some, or leave it out")
        require(len(axis) <= MOST, f"{what}: {name} has {len(axis):,} values; expected {MOST:,} at most")
        seen: set[tuple[type, str]] = set()
        for x in axis:
            place = type(x), repr(0.0 if x == 0.0 and isinstance(x, float) else x)
            require(place not in seen, f"{what}: {name} has {x!r} twice")
            seen.add(place)
    return dict(grid)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if name == "task":
        values["task"] = value
    else:
        put(values, name, value)


def _cells(values: Mapping[str, Any], space: Mapping[str, Space], trials: int) -> Iterator[Cell]:
    """The combinations of a file; how many runs there will be is known, and small enough, before the first is made."""
    base = {part: values[part] for part in (*PARTS, FROM) if part in values}
    grid = _axes(values.get("grid", {}), "[grid]")
    variants = values.get("variants") or [{"label": "", "set": {}, "grid": {}, "skip": []}]
    cases = [case["set"] for case in values.get("cases") or [{"set": {}}]]
    for axis in grid:
        require(not any(axis in case for case in cases), f"{axis} is both an axis of [grid] and set by a case")
        kept = any(axis not in v["skip"] and axis not in v["set"] for v in variants)
        require(kept, f"every variant skips or sets {axis}, which is an axis of [grid]; leave it out there")
    planned: list[tuple[Mapping[str, Any], dict[str, Any], dict[str, list[Any]]]] = []
    for variant in variants:
        label = variant["label"]
        bare = json.loads(json.dumps(base))
        for name in variant["skip"]:
            require(name in grid or _dropped(bare, name),
                    f"the variant {label!r} skips {name!r}, which is neither an axis nor a setting of the experiment: "
                    f"{nearest(str(name), [*grid, *_settings(base)])}")  # fmt: skip
        own = _axes(variant["grid"], f"grid of the variant {label!r}")
        axes = {name: axis for name, axis in (grid | own).items()
                if name not in variant["skip"] and (name in own or name not in variant["set"])}  # fmt: skip
        for name in space:
            require(name not in axes, f"{name} is both an axis of the grid and searched; leave out one of them")
        planned.append((variant, bare, axes))
    total = trials * len(cases) * sum(math.prod(map(len, axes.values())) for _, _, axes in planned)
    require(total <= MOST, f"the sweep has {total:,} runs; expected {MOST:,} at most: leave out values")
    for variant, bare, axes in planned:
        for case, *chosen in itertools.product(cases, *axes.values()):
            made = json.loads(json.dumps(bare))
            settings = case | dict(zip(axes, chosen))
            # The whole task first: task.NAME is a setting of that one.
            for name, value in sorted((variant["set"] | settings).items(), key=lambda pair: pair[0] != "task"):
                _put(made, name, value)
            yield Cell(variant["label"], settings, made)


def _settings(base: Mapping[str, Any]) -> list[str]:
    return [f"{part}.{name}" for part, table in base.items() if isinstance(table, Mapping) for name in table]


def _dropped(values: dict[str, Any], name: str) -> bool:
    """Leave out a setting; False if there is none of that name."""
    part, _, setting = str(name).partition(".")
    if f"{part}.{setting}" not in _settings(values):
        return False
    del values[part][setting]
    return True


def _search(search: Mapping[str, Any] | None) -> tuple[dict[str, Space], int]:
    if search is None:
        return {}, 0
    parts = ("trials", "space")
    for name in search:
        require(name in parts, f"[search] has no {name!r}: {nearest(name, parts)}")
    trials = search.get("trials", 0)
    require(isinstance(trials, int) and not isinstance(trials, bool) and trials >= 1,
            f"[search] has trials = {trials!r}; expected a whole number, 1 or more")  # fmt: skip
    space = search.get("space") or {}
    require(space, "[search.space] is empty; name settings, e.g. train.lr = {low = 1e-4, high = 1e-2, log = true}")
    return {name: _space(name, value) for name, value in space.items()}, trials


def _space(name: str, value: Any) -> Space:
    what = f"[search.space]: {name}"
    if isinstance(value, list):
        _axes({name: value}, "[search.space]")
        require(all(x is None or isinstance(x, bool | int | float | str) for x in value),
                f"{what} is {value!r}; expected numbers, texts or truth values")  # fmt: skip
        return Space(choices=tuple(value))
    require(isinstance(value, Mapping), f"{what} is {value!r}; expected a list, or {{low = ..., high = ...}}")
    parts = ("low", "high", "log", "step")
    for key in value:
        require(key in parts, f"{what} has no {key!r}: {nearest(key, parts)}")
    numbers = [value.get("low"), value.get("high"), value.get("step", 1)]
    fits = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers)
    require(fits and numbers[0] < numbers[1] and numbers[2] > 0,
            f"{what} is {dict(value)!r}; expected numbers low < high")  # fmt: skip
    log, step = value.get("log", False), value.get("step")
    require(isinstance(log, bool), f"{what}: log is {log!r}; expected true or false")
    require(not log or numbers[0] > 0, f"{what}: low is {numbers[0]}; a logarithmic scale starts above 0")
    require(not log or step is None, f"{what} has both log and step; leave out one of them")
    return Space(low=value["low"], high=value["high"], log=log, step=step)
