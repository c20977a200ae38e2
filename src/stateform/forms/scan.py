"""An associative scan over the steps (A_t, U_t), U_t = k_t v_t^T: log T depth, every state written out.

    (A_2, U_2) after (A_1, U_1) = (A_2 A_1, A_2 U_1 + U_2)

For elementwise systems (one key or one value, no feedback) and for small dense transitions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..graph import any_length
from ..system import System
from ..system.core import Core, contract
from ..system.transition import Dense, Diagonal, Elements, Identity, Transition, associative_scan
from .form import register_form
from .opaque import opaque

TILE = {"cpu": 2**21, "meta": 2**21}
"""Numbers that the states computed side by side may have; longer sequences go tile by tile."""
TILE_ELSEWHERE = 2**27
"""The same on an accelerator, where starting a kernel costs more than most of them compute."""
MAX_DENSE = 64


def room(device: torch.device) -> int:
    """Say how many numbers a tile may have on a device."""
    return TILE.get(device.type, TILE_ELSEWHERE)


class Scan:
    """T steps' states at once, tile by tile."""

    name, letter, order = "scan", "s", 30
    forward, of_systems = True, True

    def refuses(self, system: System) -> str | None:
        if system.readout.cached:
            return "a scan combines finite states; softmax has none. Use matrix, chunkwise or recurrent"
        if system.decay_kind == "dense":
            return (
                None
                if system.n <= MAX_DENSE
                else f"products of {system.n} x {system.n} matrices; a scan takes n <= {MAX_DENSE}. Use recurrent"
            )
        if system.f is not None:
            return "with feedback the products of transitions are dense; use chunkwise"
        if min(system.n, system.columns) > 1:
            return "a scan writes out all states, T n p numbers; it is for n = 1 or p = 1. Use chunkwise"
        return None

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        if any_length(core.length):
            return opaque(self.name, core, S)
        per_step = (
            core.batch * math.prod(core.state_heads) * core.n * (core.p + (core.n if core.matrix is not None else 1))
        )
        tile = max(64, room(core.k.device) // per_step)
        y = []
        for start in range(0, core.length, tile):
            part = core.slice(start, min(start + tile, core.length))
            states = _states(part, S)
            before = torch.cat([S.unsqueeze(1), states[:, :-1]], 1) if core.exclusive else states
            y.append(contract("...on,...np->...op", part.q, before))
            S = states[:, -1]
        return torch.cat(y, 1), S


def _states(core: Core, S: Tensor) -> Tensor:
    """Compute the state after every step, [B,T,G,R,n,p]."""
    A = core.transition()
    U = core.k.unsqueeze(-1) * core.v.unsqueeze(-2)
    shape = (core.batch, core.length, *core.state_heads)
    U = U.to(core.dtype).expand(*shape, core.n, core.p)
    if isinstance(A, Identity):
        return S.unsqueeze(1) + torch.cumsum(U, 1)
    A = A if isinstance(A, Diagonal) else Dense(A.dense(core.n))
    parts = [x for x in _parts(A) if x is not None]
    trailing = 1 if isinstance(A, Diagonal) else 2
    steps = tuple(
        x.expand(x.shape[0], core.length, *x.shape[2 : x.ndim - trailing], *x.shape[x.ndim - trailing :]) for x in parts
    )

    def op(first: Elements, second: Elements) -> Elements:
        A1, A2 = _transition(A, first[1:]), _transition(A, second[1:])
        product = A2.after(A1, core.n)
        return (A2.apply(first[0]) + second[0], *(x for x in _parts(product) if x is not None))

    out = associative_scan(op, (U, *steps))
    return out[0] + _transition(A, out[1:]).apply(S.unsqueeze(1))


def _parts(A: Transition) -> tuple[Tensor | None, ...]:
    if isinstance(A, Diagonal):
        return (A.log, A.unit)
    assert isinstance(A, Dense)
    return (A.matrix,)


def _transition(like: Transition, parts: Elements) -> Transition:
    if isinstance(like, Dense):
        return Dense(parts[0])
    assert isinstance(like, Diagonal)
    rest = list(parts)
    log = rest.pop(0) if like.log is not None else None
    return Diagonal(log, rest.pop(0) if like.unit is not None else None)


register_form(Scan())
