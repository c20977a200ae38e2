"""Draws for the checks: parameters in which every part of a system shows, and decays of every temper."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..forms import FORMS, run
from ..forms.ridge import problem, without_ridge
from ..layer import system_of
from ..system import System
from ..system.core import fold
from ..system.precision import relative_error
from ..system.readout import RidgeRead
from ..system.state import State

M = TypeVar("M", bound=nn.Module)


def copied(module: M) -> M:
    """Copy a module, with what it keeps of earlier calls; results of a computation are copied without their history."""
    kept = (x for m in module.modules() for x in tree_leaves(vars(m)) if isinstance(x, Tensor) and not x.is_leaf)
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in kept})


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw normal numbers in float64, where the generator is: the same ones for every device and default."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw numbers in [0, 1) in float64, where the generator is."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)


def redraw(layer: nn.Module, generator: torch.Generator, how: str) -> None:
    """Draw new parameters: `own` keeps the initialisation and adds noise, `wide` draws vectors anew."""
    with torch.no_grad():
        for p in layer.parameters():
            noise = normal(p.shape, generator).to(p)
            if p.ndim < 2 and how == "wide":
                p.copy_(noise)
            else:
                p.add_(noise * (0.3 if p.ndim < 2 else 0.5 * p.shape[-1] ** -0.5))


def parts_that_matter(system: System) -> dict[str, float]:
    """Measure by how much y changes (relative, largest) without a part of the system: state, decay, feedback, eta."""
    y = run(system)
    without: dict[str, System] = {}
    decay = [x for x in ("log_decay", "phase", "sign", "transition", "forget") if x in system.parts]
    if decay:
        without["decay"] = replace(system, **dict.fromkeys(decay))  # type: ignore[arg-type]
    if system.f is not None:
        without["feedback"] = replace(system, f=None, w=None)
    if system.eta is not None and system.readout.linear:
        without["eta"] = replace(system, eta=None, eta_floor=None)
    if system.readout.gram:
        without["ridge"] = without_ridge(system)
    half = system.T // 2
    changes = {"state": _change(run(system[half:]), y[:, half:])}
    return changes | {name: _change(run(other), y) for name, other in without.items()}


def _change(got: Any, want: Tensor) -> float:
    return float(((got - want).abs().max() / want.abs().max().clamp_min(1e-300)).nan_to_num(math.inf))


def drawn(layer: M, x: Tensor, generator: torch.Generator) -> tuple[M, dict[str, float]]:
    """Copy the layer, with parameters in which every part of its system changes y by over 1%."""
    best: tuple[M, dict[str, float]] | None = None
    for how in ("own", "own", "wide", "wide", "wide", "wide"):
        candidate = copied(layer)
        redraw(candidate, generator, how)
        with torch.no_grad():
            changes = parts_that_matter(system_of(candidate, x))
        if best is None or min(changes.values()) > min(best[1].values()):
            best = candidate, changes
        if min(changes.values()) > 0.01:
            break
    assert best is not None
    return best


REGIMES = ("own", "forgetful", "lasting", "reset", "growing")


def in_regime(system: System, regime: str, generator: torch.Generator) -> System | None:
    """Draw the decays of a system anew: forgetful [1e-4, 0.1], lasting [0.99, 1], a hard reset in mid-chunk followed
    by decays near 1, or growing slightly. None if it has no such decay.
    """
    if regime == "own":
        return system
    parts = system.tensors()
    decay = "forget" if "forget" in parts else "log_decay"
    if decay not in parts:
        return None
    low, high = {"forgetful": (1e-4, 0.1), "lasting": (0.99, 1.0), "reset": (0.99, 1.0), "growing": (1.0, 1.002)}[
        regime
    ]

    def draw(x: Tensor) -> Tensor:
        return (uniform(x.shape, generator) * (high - low) + low).log().to(x)

    g = draw(parts[decay])
    if regime == "reset":
        if system.is_constant(decay) or system.readout.cached:
            return None
        at = g.shape[1] // 3
        g = torch.cat([g[:, :at], torch.full_like(g[:, :1], -math.inf), g[:, at + 1 :]], 1)
    if "rate" in parts:
        if regime == "reset":
            return replace(system, log_decay=(-g, -torch.ones_like(parts["rate"])))
        spread = uniform(parts["rate"].shape, generator).to(g) * 0.1 + 0.9
        return replace(system, log_decay=(-g, -spread))
    return replace(system, **{decay: g})  # type: ignore[arg-type]


def sensitivity(system: System, state: State | None, generator: torch.Generator) -> float:
    """Measure how much larger the relative change of y is than that of the inputs (angles held), in float64.

    Near a zero of its denominator, say, a system loses digits however it is computed.
    """
    small = 2.0**-30

    def moved(name: str, x: Tensor) -> Tensor:
        if name in ("phase", "sign"):
            return x
        noise = normal(x.shape, generator).to(x.device)
        return torch.where(x.abs() < torch.inf, x * (1 + small * noise), x)

    near = system.map(moved)
    if system.readout.gram and system.B * system.T:
        # A solver finds x for a matrix near G + R, by n x n roundings of the size of its norm: here a diagonal of them,
        # times the root of n
        core = fold(system)
        S = core.zero_state() if state is None else state["S"].unflatten(1, core.state_heads)
        G, R = problem(system, core, S, FORMS["recurrent"])
        size = system.n**0.5 * (G.norm().unsqueeze(-1) + R.amax(-1, keepdim=True))
        noise = normal((*size.shape[:-1], system.n), generator).to(size.device)
        ridge = (R + small * size * noise).flatten(2, 3).squeeze(-2)
        read = system.readout
        assert isinstance(read, RidgeRead)
        ridge = ridge.expand(system.B, system.T, -1, -1)
        near = replace(near, readout=replace(read, ridge=ridge, relative=False))
    y, other = (run(s, "recurrent", initial_state=state) for s in (system, near))
    assert isinstance(y, Tensor) and isinstance(other, Tensor)
    return float(relative_error(other, y, heads=True).max()) / small if y.numel() else 0.0


def some_state(system: System) -> State | None:
    """Draw a state as it stands after a few tokens like those of the system; None where there is none to go on from."""
    if system.readout.placed or (system.readout.cached and system.T < 2):
        return None
    _, state = run(system[: max(1, system.T // 4)], "recurrent", return_state=True)
    return state.detach()


def short(dtype: torch.dtype) -> str:
    """Shorten the name of a precision by the package's."""
    return str(dtype).removeprefix("torch.")
