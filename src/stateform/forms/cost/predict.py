"""How long each way to compute a system will take: the choice behind the form `auto`.

A way is a form, or the compiled loops (the form `recurrent`, see stateform.loops). Its time is predicted as

    calls c_1 + loops c_2 + work c_3 + numbers c_4        [seconds]

with the calls (operations started once, in units of the simplest structure), the loops (steps of the recurrence,
chunks, levels of the scan) and the numbers written out counted from the structure, the work from `work`, and four
constants a way, for inference and for training each. They were measured: by `calibrate` on the machine at hand where
that was run, else on those that BUILT_IN names.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...loops.build import cache_folder, processor
from ...system import System
from .. import compiled as _compiled
from .. import scan
from ..form import FORMS
from ..scores import turns_only
from .constants import BUILT_IN
from .work import work

ROOM = {"cpu": 2e9}
ROOM_ELSEWHERE = 16e9
"""Bytes: a way that needs more memory than this, and more than twice what another needs, is not taken."""
SHORT = 4
"""Steps up to which the recurrence is taken without asking: what decides is the call."""
TURN = 60
"""What one unit exp(i phase) costs in float64, in operations."""
Constants = tuple[float, float, float, float]


@dataclass(frozen=True)
class Choice:
    """What `auto` takes for a system, and why."""

    form: str
    backend: str
    """"compiled" or "torch"."""
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    """Predicted, by way; empty where the structure alone decides."""
    source: str = ""
    """Where the constants were measured."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"form": self.form, "backend": self.backend, "reason": self.reason, "seconds": self.seconds,
                "source": self.source}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"form {self.form}, {self.backend}: {self.reason}"]
        if self.seconds:
            lines.append(f"  predicted (constants: {self.source}):")
            ranked = sorted(self.seconds.items(), key=lambda item: item[1])
            lines += [f"    {way:<12} {1e3 * s:10.3g} ms" for way, s in ranked]
        return "\n".join(lines)


def decide(system: System) -> Choice:
    """Choose for a system, by structure, length, batch, device, and whether a gradient is wanted."""
    if system.readout.cached:
        plain = turns_only(system) and not system.readout.tensors() and system.window is None
        if not system.causal or (plain and system.T <= 8192):
            return Choice("matrix", "torch", "all pairs of tokens at once, by torch's fused attention where it fits")
        form = "chunkwise" if system.T > 1 else "recurrent"
        return Choice(form, "torch", "blocks of queries, so that memory is linear in length")
    compiled = system.readout.linear and _compiled.usable(system)
    if not torch.compiler.is_compiling() and system.T * system.micro <= SHORT:
        return Choice("recurrent", "compiled" if compiled else "torch", f"up to {SHORT} steps one after the other")
    if system.readout.gram or torch.compiler.is_compiling():
        return _by_structure(system, compiled)
    return _by_time(system, compiled)


def _by_structure(system: System, compiled: bool) -> Choice:
    """Choose without numbers: a traced graph must not depend on them, and a ridge readout needs the states twice."""
    if compiled:
        return Choice("recurrent", "compiled", "compiled loops exist for this structure")
    if FORMS["scan"].refuses(system) is None and (system.decay_kind != "dense" or system.n <= 16):
        return Choice("scan", "torch", "few numbers a step: a scan over all of them")
    if FORMS["chunkwise"].refuses(system) is None:
        return Choice("chunkwise", "torch", "chunks of matrix products, with memory linear in length")
    return Choice("recurrent", "torch", "a dense transition has no cheap products")


def _by_time(system: System, compiled: bool) -> Choice:
    training = torch.is_grad_enabled() and any(x.requires_grad for x in system.tensors().values())
    table, source = constants(system.device.type, training)
    if not table:
        return _by_structure(system, compiled)
    ways = [way for way in ways_of(system, compiled) if way in table]
    if not ways:
        return _by_structure(system, compiled)
    needs = {way: work(system, "recurrent" if way == "compiled" else way)[1] for way in ways}
    least, room = min(needs.values()), ROOM.get(system.device.type, ROOM_ELSEWHERE)
    seconds = {way: predict(system, way, table[way]) for way in ways if needs[way] <= max(room, 2 * least)}
    best = min(seconds, key=lambda way: seconds[way])
    goal = "forward and backward" if training else "forward"
    reason = (
        f"predicted fastest of {len(seconds)} ways, {goal}, T = {system.T}, B = {system.B}, on {system.device.type}"
    )
    if best == "compiled":
        return Choice("recurrent", "compiled", reason, seconds, source)
    return Choice(best, "torch", reason, seconds, source)


def ways_of(system: System, compiled: bool) -> list[str]:
    """List the ways to choose among; the form matrix would multiply out T^2 products of dense transitions."""
    found = [name for name, form in FORMS.items() if form.refuses(system) is None]
    found = [name for name in found if name != "matrix" or system.transition is None]
    return [*found, "compiled"] if compiled else found


def features(system: System, way: str) -> tuple[float, float, float, float]:
    """Count calls, loops, work and numbers of a way."""
    T = system.T * system.micro
    flops, _ = work(system, "recurrent" if way == "compiled" else way)
    modes = way == "compiled" and system.time_invariant and system.p == 1 and system.q is not None
    if system.phase is not None and way in ("compiled", "chunkwise") and not modes:
        steps = 1 if system.is_constant("phase") else max(1, system.phase.shape[1])
        flops += TURN * T * system.phase.numel() / steps
    return _calls(system, way), _loops(system, way, T), flops, _numbers(system, way, T)


def _calls(system: System, way: str) -> float:
    if way not in ("chunkwise", "matrix"):
        return 1.0
    feedback, wide = system.f is not None, system.decay_kind == "diagonal"
    return 1 + feedback + 2.5 * wide * (1 + 2 * feedback)


def _loops(system: System, way: str, T: int) -> float:
    match way:
        case "recurrent":
            return T
        case "chunkwise":
            return math.ceil(T / 64)
        case "scan":
            per_step = system.B * system.state_heads * system.n * system.columns
            tiles = math.ceil(T / max(64, scan.room(system.device) // max(1, per_step)))
            return tiles * math.log2(T + 1)
    return 0.0


def _numbers(system: System, way: str, T: int) -> float:
    """Count what is written out, roughly: on a GPU that takes longer than the operations on it."""
    n, p, feedback = system.n, system.columns, system.f is not None
    scalar = 2 if system.is_complex else 1
    heads, states = scalar * system.B * system.H * T, scalar * system.B * system.state_heads * T
    outputs = n if system.q is None else 1
    wide = system.decay_kind == "diagonal"
    match way:
        case "chunkwise":
            c = min(64, T)
            pairs, parts = (c * outputs + n * p / c) * (1 + 2 * feedback), (4 * n + 2 * p) * (1 + feedback)
            return heads * (pairs + parts + wide * n * (4 + math.log2(c)) * (1 + 3 * feedback))
        case "matrix":
            return heads * (T * outputs + wide * n * (4 + math.log2(T))) * (1 + 3 * feedback)
        case "scan":
            return states * n * (p + (n if system.transition is not None else 1))
        case "convolution":
            return heads * (2 * n + 4 * p)
        case "recurrent":
            return 3 * states * n * p
    return heads * (2 * n + 2 * p)


def predict(system: System, way: str, by: Constants) -> float:
    """Predict the seconds that a way takes."""
    return sum(c * x for c, x in zip(by, features(system, way), strict=True))


VERSION = 4
"""Of the file of constants: how many a way has."""


def stored() -> dict[str, Any]:
    """Read what `calibrate` kept for this machine and number of threads, or nothing."""
    return stored_in(path())


@functools.cache
def stored_in(file: Path) -> dict[str, Any]:
    """Read the constants in a file; none where there is no such file, or no sense in it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for table in found["constants"].values() for row in table.values()]
        assert all(len(row) == VERSION and min(row) >= 0 for row in rows) and isinstance(found["date"], str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return {}
    return dict(found)


def path() -> Path:
    """Find where `calibrate` keeps the constants of this machine."""
    return cache_folder() / f"constants-{processor()}-{torch.get_num_threads()}.json"


def constants(device: str, training: bool) -> tuple[dict[str, Constants], str]:
    """Look up the constants of all ways on a device (none where none were measured), and where they were measured."""
    key = f"{device}, {'training' if training else 'inference'}"
    mine = stored()
    if key in mine.get("constants", {}):
        return {way: tuple(c) for way, c in mine["constants"][key].items()}, f"this machine, {mine['date']}"
    return BUILT_IN["constants"].get(key, {}), BUILT_IN["machines"].get(device, "")
