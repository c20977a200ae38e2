"""Finding the softmax heads of a model, and putting other Systems in their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...convert import random_features, realise
from ...convert.certificate import outputs
from ...errors import require
from ...system import SoftmaxRead, System
from ..runs import Runs, as_it_is
from .fit import Fitted


def substitute(method: str, n: int, seed: int, fitted: Fitted | None, lags: Tensor, system: System) -> System:
    """Make the System that replaces the softmax heads of `system`."""
    if method == "fitted":
        assert fitted is not None
        return fitted.system(system)
    if method == "window":
        read = system.readout
        assert isinstance(read, SoftmaxRead)
        return replace(system, readout=replace(read, window=min(n, system.window or n)))
    if method == "lag":
        return _lagged(system, lags, n)
    return random_features(system, n, seed=seed).system


def softmax_systems(runs: Runs) -> dict[str, System]:
    """Find the Systems of the causal softmax mixers on the text."""
    found: dict[str, System] = {}

    def keep(name: str) -> Callable[[System], Tensor]:
        def change(system: System) -> Tensor:
            if system.readout.cached and system.causal:
                found[name] = system.detach()
            return as_it_is(system)

        return change

    known = {name for name, error in runs.same().items() if error <= 1}  # the others are not their Systems
    runs({name: keep(name) for name in known})
    return {name: found[name] for name in runs.modules if name in found}


def chosen_heads(names: list[str], systems: dict[str, System], heads: Sequence[str] | None) -> dict[str, list[int]]:
    """Read which heads of which layers are meant; None: all."""
    if heads is None:
        return {name: list(range(system.H)) for name, system in systems.items()}
    require(len(heads) > 0, 'no heads are named; expected "layer:head" each, or None for all')
    found: dict[str, list[int]] = {}
    for given in heads:
        layer, colon, head = given.rpartition(":") if isinstance(given, str) else ("", "", "")
        require(colon and head.isdigit(), f'the head is {given!r}; expected "layer:head", e.g. "0:3"')
        name = names[int(layer)] if layer.isdigit() and int(layer) < len(names) else layer
        require(name in systems, f"{layer!r} is no layer with softmax heads; there are {', '.join(systems)}")
        H = systems[name].H
        require(int(head) < H, f"{name} has heads 0..{H - 1}; got {head}")
        if int(head) not in found.setdefault(name, []):
            found[name].append(int(head))
    return {name: sorted(found[name]) for name in systems if name in found}


def with_heads(index: list[int], change: Callable[[System], System]) -> Callable[[System], Tensor]:
    """Replace the y of some heads of a System by that of another System."""

    def reads(system: System) -> Tensor:
        y = outputs(system).clone()
        y[:, :, index] = outputs(change(system.select_heads(index))).to(y.dtype)
        return y

    return reads


def without_heads(index: list[int]) -> Callable[[System], Tensor]:
    """Replace the y of some heads of a System by 0."""

    def reads(system: System) -> Tensor:
        y = outputs(system).clone()
        y[:, :, index] = 0
        return y

    return reads


def mean_by_lag(alpha: Tensor) -> Tensor:
    """Compute the mean weight of each lag, [H,T]."""
    T = alpha.shape[-1]
    return torch.stack([alpha.diagonal(-lag, -2, -1).mean((0, -1)) for lag in range(T)], -1)


def _lagged(system: System, K: Tensor, n: int) -> System:
    """Realise constant weights K of each lag as a recurrence of order n (at most what K can show), with eta = "sum"."""
    assert system.v is not None
    order = min(n, K.shape[1] // 2)
    probe = system.v.new_zeros(1, 1, len(K), 1)
    made = realise(K, probe, order=order, rtol=math.inf).system
    return replace(made, v=system.v, eta="sum")
