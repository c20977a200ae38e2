"""A sweep: the experiments that a file asks for, all made and checked before any of them runs.

The file is an experiment (task, [model], [train]) and what varies in it:

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
    from = "runs/first"                     # begin with the weights of that run, and its settings where none are given
    [quick]                                 # what --quick changes, laid over the file
    grid.train.seed = [0]
    train.steps = 100
    [as-released]                           # likewise, what --as-released changes
    [[claims]]                              # published findings to test, see `claims`

Names may be written as tables or in quotes ("model.d_state" = [4, 8]). The axis `task` names whole tasks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import StateformError, nearest, require
from ..train.config import Experiment, inherited, read_toml
from .claims import Claim, read_claims
from .presets import file_of
from .rows import described
from .tables import (
    FROM,
    KNOWN,
    MOST,
    OVERLAYS,
    PARTS,
    drop_setting,
    flatten,
    merge,
    override,
    put_setting,
    read_axes,
    setting_names,
)


@dataclass(frozen=True)
class Planned:
    """One experiment of a sweep, with its label and the settings that were varied."""

    label: str
    settings: dict[str, Any]
    experiment: Experiment

    @property
    def row(self) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
        """Give its row for `Store.add`: key, label, settings, experiment."""
        return self.experiment.key, self.label, self.settings, self.experiment.to_dict()


@dataclass(frozen=True)
class Combination:
    """A combination of the grid with a variant: the settings of an experiment, or where a search starts from."""

    label: str
    settings: dict[str, Any]
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """Name it in a line."""
        return "  ".join([self.label, *described(self.settings)])

    def planned(self, more: Mapping[str, Any] | None = None) -> Planned:
        """Make the experiment, with more settings if they are given.

        Raises:
            StateformError: the experiment cannot be made; the message names the combination.
        """
        values = json.loads(json.dumps(self.values))
        settings = self.settings | dict(more or {})
        try:
            for name, value in (more or {}).items():
                put_setting(values, name, value)
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
        """True if it holds whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """List the values to check beforehand: all choices, or low and high. The rest lies between them."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class Plan:
    """A sweep: its name, its combinations, and the search in each of them, if there is one."""

    name: str
    cells: tuple[Combination, ...]
    space: dict[str, Space] = field(default_factory=dict)
    trials: int = 0
    about: str = ""
    claims: tuple[Claim, ...] = ()

    @cached_property
    def runs(self) -> list[Planned]:
        """Make the experiments of the grid, in order; none where each combination is searched.

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
        """Raise a StateformError unless every experiment can be made, see `experiments`."""
        for _ in self.experiments():
            pass

    def experiments(self) -> Iterator[Experiment]:
        """Make every experiment of the grid; of a search, those at the ends of its space."""
        yield from (run.experiment for run in self.runs)
        for cell in self.cells if self.space else ():
            start = {name: space.ends[0] for name, space in self.space.items()}
            for name, space in self.space.items():
                yield from (cell.planned(start | {name: value}).experiment for value in space.ends)

    @property
    def total(self) -> int:
        """Count the runs there will be."""
        return len(self.cells) * self.trials if self.space else len(self.cells)


def _name(run: Planned) -> str:
    return ", ".join([run.label, *described(run.settings)])


def read_plan(
    source: str | Path | Mapping[str, Any], *, quick: bool = False, as_released: bool = False,
    overrides: Sequence[str] = (), check: bool = True,
) -> Plan:  # fmt: skip
    """Read the sweep that a TOML file (or its tables, as a dict) asks for, and check that every experiment can be made.

    Args:
        source: the file, the name of a preset, or the tables of a file as a dict.
        quick: lay the table [quick] over it; the name gets "-quick", for they are other experiments.
        as_released: the same with [as-released].
        overrides: "part.setting=value"; a list replaces an axis's values, one value fixes it.
        check: make every experiment, some milliseconds each; False: they are only counted.

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
    values = flatten(values)
    asked = [name for name, on in zip(OVERLAYS, (quick, as_released), strict=True) if on]
    for name in asked:
        change, parts = changes[name], [part for part in KNOWN if part not in OVERLAYS]
        require(isinstance(change, Mapping), f"this sweep has no table [{name}]; leave out --{name}, or write one")
        for part in change:
            require(part in parts, f"[{name}] has no part {part!r}: {nearest(part, parts)}")
        values = merge(values, flatten(dict(change)))
    values = override(values, overrides)
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


def _cells(values: Mapping[str, Any], space: Mapping[str, Space], trials: int) -> Iterator[Combination]:
    """Yield the combinations of a file. Their number is checked before the first is made."""
    base = {part: values[part] for part in (*PARTS, FROM) if part in values}
    grid = read_axes(values.get("grid", {}), "[grid]")
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
            require(name in grid or drop_setting(bare, name),
                    f"the variant {label!r} skips {name!r}, which is neither an axis nor a setting of the experiment: "
                    f"{nearest(str(name), [*grid, *setting_names(base)])}")  # fmt: skip
        own = read_axes(variant["grid"], f"grid of the variant {label!r}")
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
                put_setting(made, name, value)
            yield Combination(variant["label"], settings, made)


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
        read_axes({name: value}, "[search.space]")
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
