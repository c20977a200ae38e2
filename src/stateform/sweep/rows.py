"""A run of a sweep as a row of the store, and the check that a row read holds what was written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

_WORDS = {dict: "a table", str: "a text", int: "a number", float: "a fraction", list: "a list", NoneType: "nothing",
          bool: "true or false"}  # fmt: skip
_NUMBER = (int, float, NoneType)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("valid", "best", "loss", "steps", "seconds", "parameters", "state_size"), _NUMBER),
    **dict.fromkeys(("metric", "stopped", "name", "stateform"), (str, NoneType)),
    **dict.fromkeys(("test", "machine", "sources"), (dict, NoneType)),
}
"""The types of the numbers of an outcome that tables and figures use."""


@dataclass(frozen=True)
class Run:
    """A row of the store."""

    id: int
    sweep: str
    key: str
    label: str
    settings: dict[str, Any]
    experiment: dict[str, Any]
    status: str
    worker: str | None
    attempts: int
    crashes: int
    started: str | None
    finished: str | None
    outcome: dict[str, Any] | None
    error: str | None

    @property
    def name(self) -> str:
        """Name it in a line: the label and what was varied."""
        return "  ".join([self.label, *described(self.settings)])


def described(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as people say them: "d_state 8", "seed 0"."""
    return [f"{name.partition('.')[2] or name} {value}" for name, value in settings.items()]


def fault_of(row: Mapping[str, Any]) -> str | None:
    """Name the first part of a row that has a wrong type; None if the row is sound."""
    experiment, outcome = row["experiment"], row["outcome"]
    expected: list[tuple[str, Any, tuple[type, ...]]] = [
        ("settings", row["settings"], (dict,)), ("experiment", experiment, (dict,)),
        ("outcome", outcome, (dict, NoneType)),
    ]  # fmt: skip
    if isinstance(experiment, dict):
        expected += [(part, experiment.get(part), (dict,)) for part in ("task", "model", "train")]
        expected += [("from", experiment["from"], (dict,))] if "from" in experiment else []
        task = experiment.get("task")
        expected += [("the task's name", task.get("name"), (str,))] if isinstance(task, dict) else []
    metrics = outcome.get("metrics") if isinstance(outcome, dict) else {}
    expected.append(("metrics", metrics, (dict,)))
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        expected += [(f"metrics.{name}", value, _KINDS[name])] if name in _KINDS else []
        inner = value.items() if name in ("test", "machine") and isinstance(value, dict) else ()
        for key, one in inner:
            allowed = (*_NUMBER, dict) if name == "test" else (*_NUMBER, str)
            expected.append((f"metrics.{name}.{key}", one, allowed))
            scores = one.items() if isinstance(one, dict) else ()
            expected += [(f"metrics.{name}.{key}.{score}", x, _NUMBER) for score, x in scores]
    for name, value, kinds in expected:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            return f"{name} is {_WORDS.get(type(value), type(value).__name__)}, not {words}"
    return None


def as_json(value: Any) -> str:
    """Write plain values as JSON, see `finite`."""
    return json.dumps(finite(value), allow_nan=False)


def finite(value: Any) -> Any:
    """Replace inf and NaN by None, as JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
