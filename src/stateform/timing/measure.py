"""The cost of layers: time in every form and at every length, time of a token from a state, memory, operations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from torch import Tensor, nn

from ..analysis import cost, peak_bytes
from ..architectures import build
from ..clock import Pace, spread, take_turns
from ..forms import choose, exists
from ..forms.scores import turns_only
from ..layer import system_of
from ..system import System

PACE = Pace(most=3, slow=0.5, few=1)
"""A comparison is quick: a job of more than half a second runs one round."""
TOKENS = Pace(most=8)


def blank_cost() -> dict[str, Any]:
    """Give the cost of a row before anything is measured."""
    return {
        "forward_ms": {}, "left_out": [], "auto_form": {}, "decode_us": None, "flops": {}, "memory_bytes": {},
        "peak_bytes": {},
        "crossover": {"T": None, "text": "not measured"},
    }  # fmt: skip


def _is_softmax(system: System) -> bool:
    """True if every token is weighed by its key alone: no window, no forgetting, keys turned by phases at most."""
    read = system.readout
    return read.cached and turns_only(system) and read.window is None and not (read.tensors() or read.refinements())


def measure(
    built: Mapping[str, nn.Module], rows: Mapping[str, dict[str, Any]], x: Tensor,
    lengths: Sequence[int], limit_gb: float, repeats: int, step: Callable[[str], None],
) -> None:  # fmt: skip
    """Fill the cost of every row. All layers take turns, so that a slow moment of the machine hits all alike."""
    layers = {name: copy.deepcopy(layer).to(x.dtype) for name, layer in built.items()}
    reference = next((name for name, layer in layers.items() if _is_softmax(system_of(layer, x[:, :1]))), None)
    if reference is None:
        layers["softmax"] = build("softmax", d_model=x.shape[2]).to(x.dtype).eval()
    softmax: dict[int, float] = {}
    for T in lengths:
        step(f"time at T = {T}")
        part = x[:, :T]
        jobs: dict[tuple[str, str], Callable[[], Any]] = {}
        for name, layer in layers.items():
            system = system_of(layer, part)
            auto = choose(system)
            for form in exists(system) if name in rows else [auto]:
                estimate = cost(system, form)
                if name in rows:
                    table = rows[name]["cost"]
                    table["memory_bytes"].setdefault(form, {})[str(T)] = estimate.bytes
                    table["auto_form"][str(T)] = auto
                    if form == auto:
                        table["flops"][str(T)] = estimate.flops + _projection_flops(layer, system)
                    if estimate.bytes > limit_gb * 1e9:
                        reason = f"estimated {estimate.bytes / 1e9:.1f} GB, the limit is {limit_gb:g} GB"
                        table["left_out"].append({"form": form, "T": T, "reason": reason})
                        continue
                jobs[name, form] = partial(layer, part, form=form)
        for name in layers:
            if name in rows:
                form = rows[name]["cost"]["auto_form"][str(T)]
                if (name, form) in jobs:
                    rows[name]["cost"]["peak_bytes"][str(T)] = peak_bytes(jobs[name, form])
        times: dict[tuple[str, str], list[float]] = {}
        take_turns({key: partial(_ready, job) for key, job in jobs.items()}, repeats, times, pace=PACE)
        for (name, form), found in times.items():
            if name in rows:
                rows[name]["cost"]["forward_ms"].setdefault(form, {})[str(T)] = _without_rounds(found, 1e-3)
            if name == (reference or "softmax"):
                softmax[T] = min(softmax.get(T, 1e3 * median(found)), 1e3 * median(found))
    step_times = _decode({name: layers[name] for name in rows}, x, repeats)
    for name, row in rows.items():
        row["cost"]["decode_us"] = step_times[name]
        row["cost"]["crossover"] = _crossover(row["cost"], softmax, name == reference)


def _ready(job: Callable[[], Any]) -> Callable[[], Any]:
    """Make a job of the clock from a function that needs no preparation."""
    return job


def _without_rounds(times: list[float], unit: float) -> dict[str, float]:
    return {what: value for what, value in spread(times, unit).items() if what != "rounds"}


def _decode(layers: dict[str, nn.Module], x: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Time one token from the state after the longest sequence, in microseconds; layers take turns."""
    token, jobs = x[:, -1], {}
    for name, layer in layers.items():
        step: Callable[..., Any] = layer.step  # type: ignore[assignment]
        jobs[name] = partial(_ready, partial(step, token, layer(x, return_state=True)[1]))
    times: dict[str, list[float]] = {}
    take_turns(jobs, repeats, times, pace=TOKENS)
    return {name: _without_rounds(found, 1e-6) for name, found in times.items()}


def _projection_flops(layer: nn.Module, system: System) -> float:
    """Count two operations per weight and token, for every map from inputs to parts of the system and to the output."""
    weights = sum(
        p.numel()
        for m in layer.modules()
        for name, p in m.named_parameters(recurse=False)
        if name == "weight" and p.ndim > 1
    )
    maps = sum(2 * w.numel() for w in (system.w_in, system.w_out) if w is not None)
    return 2.0 * system.B * system.T * (weights + maps)


def _crossover(cost_: dict[str, Any], softmax: dict[int, float], is_softmax: bool) -> dict[str, Any]:
    if is_softmax:
        return {"T": None, "text": "this is softmax"}
    faster = []
    for T, reference in softmax.items():
        best = [times[str(T)]["median"] for times in cost_["forward_ms"].values() if str(T) in times]
        faster.append((T, bool(best) and min(best) < reference))
    wins = [T for T, ok in faster if ok]
    if not wins:
        return {"T": None, "text": f"slower than softmax up to T = {max(softmax)}"}
    since = next(T for i, (T, _) in enumerate(faster) if all(ok for _, ok in faster[i:])) if faster[-1][1] else None
    if since is None:
        return {"T": None, "text": f"faster than softmax at T = {', '.join(map(str, wins))} alone"}
    return {"T": since, "text": f"faster than softmax from T = {since} on, of the lengths measured"}
