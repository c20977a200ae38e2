"""The tables of a sweep's file: read, laid over one another, overridden."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import nearest, require
from ..train.config import overridden, put, read_value

PARTS = ("task", "model", "train")
FROM = "from"
"""The part that names the run from whose weights all runs of a sweep begin."""
OVERLAYS = ("quick", "as-released")
"""Tables that are laid over the file if they are asked for; variants are matched by their labels."""
KNOWN = (*PARTS, FROM, "name", "about", "grid", "variants", "cases", "search", "claims", *OVERLAYS)
"""The parts of a file; `about` is for readers."""
MOST = 100_000
"""Runs that a sweep may have."""


def _dotted(table: Any, what: str) -> dict[str, Any]:
    """Write names with dots: {"model": {"d_state": [4]}} becomes {"model.d_state": [4]}, which stays as it is."""
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


def flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Write the names of all settings that vary with dots: "model.d_state"."""
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


def merge(values: Any, change: Any) -> Any:
    """Lay tables over one another, and variants over those of the same label; anything else is replaced."""
    if _labelled(values) and _labelled(change):
        new = {variant["label"]: variant for variant in values}
        for variant in change:
            given = {name: value for name, value in variant.items() if value}
            new[variant["label"]] = merge(new.get(variant["label"], variant), given)
        return list(new.values())
    if isinstance(values, Mapping) and isinstance(change, Mapping):
        merged = dict(values)
        for name, value in change.items():
            merged[name] = merge(values[name], value) if name in values else value
        return merged
    return change


def _labelled(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, Mapping) and "label" in v for v in values)


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Lay "part.setting=value" over the tables: a list replaces an axis's values, one value fixes it."""
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
            # A setting that only some variants vary is set in the base too, for the others.
            shared = (
                name not in grid and not isinstance(value, list) and (part == "train" or name in setting_names(values))
            )
        for axis in axes:
            if name in axis:
                axis[name] = value if isinstance(value, list) else [value]
        space.pop(name, None)
        for settings in sets:
            settings.pop(name, None)
        if part == "task" and setting and not varied:  # a whole task on an axis or in a `set` replaces the file's
            for axis in axes:
                if isinstance(axis.get("task"), list):
                    axis["task"] = list(dict.fromkeys(_with_option(task, text) for task in axis["task"]))
            for settings in sets:
                if "task" in settings:
                    settings["task"] = _with_option(settings["task"], text)
        if name != "task" and (not varied or shared):
            values = overridden(values, [text])
    if "cases" in values:  # cases that differed only in what is now fixed become one
        cases = values["cases"]
        values["cases"] = [case for i, case in enumerate(cases) if case not in cases[:i]]
    if "search" in values and not values["search"].get("space", True):  # every setting that was searched is fixed
        values = {k: v for k, v in values.items() if k != "search"}
    return values


def _with_option(task: Any, text: str) -> str:
    """Replace one option in the text of a whole task."""
    options = overridden({"task": task}, [text])["task"]
    name = options.pop("name", "")
    return f"{name}({', '.join(f'{option}={value!r}' for option, value in options.items())})"


def read_axes(grid: Mapping[str, Any], what: str) -> dict[str, list[Any]]:
    """Check the axes of a grid: a list of values each, none twice."""
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


def put_setting(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a setting of an experiment by its dotted name; "task" sets the whole task."""
    if name == "task":
        values["task"] = value
    else:
        put(values, name, value)


def setting_names(base: Mapping[str, Any]) -> list[str]:
    """List the dotted names of an experiment's settings."""
    return [f"{part}.{name}" for part, table in base.items() if isinstance(table, Mapping) for name in table]


def drop_setting(values: dict[str, Any], name: str) -> bool:
    """Leave out a setting; False if there is none of that name."""
    part, _, setting = str(name).partition(".")
    if f"{part}.{setting}" not in setting_names(values):
        return False
    del values[part][setting]
    return True
