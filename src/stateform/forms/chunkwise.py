"""Chunks of matrix products: one algorithm for every identity, scalar, diagonal and complex diagonal decay, with or
without feedback.

With z_t = S_{t-1}^T w_t the feedback f_t w_t^T S_{t-1} is one more write, f_t z_t^T, so that inside a chunk the system
is decay-only with keys [k f] and values [v z]. With the pair sums (see pairs) L_wk, L_wf (exclusive) and M_qk, M_qf:

    z = w^ S + L_wk v + L_wf z           =>  (I - L_wf) [Z | W] = [L_wk v | w^],   z = Z + W S
    y = M_qk v + M_qf Z + (q^ + M_qf W) S
    S <- (decay + f^T W) S + k^T v + f^T Z

where a hat carries a read back to the chunk's start and a write to its end. Known for DeltaNet as the WY form
(arXiv 2406.06484); here for any decay and any f, w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..graph import any_length
from ..system import System
from ..system.core import Core, contract
from .form import register_form
from .opaque import opaque
from .pairs import BASE, Stretch, cut, solve_unit_lower

TILE = {"cpu": 2**22, "meta": 2**22}
"""Numbers that the chunks computed side by side may take; longer sequences go tile by tile."""
LEAST = 8
"""Steps of a chunk where one of the usual size would be larger than a tile."""
TILE_ELSEWHERE = 2**28
"""The same on an accelerator, where starting a kernel costs more than most of them compute."""


def room(device: torch.device) -> int:
    """Say how many numbers a tile may have on a device."""
    return TILE.get(device.type, TILE_ELSEWHERE)


class Chunkwise:
    """T / chunk_size chunks, memory linear in T."""

    name, letter, order = "chunkwise", "c", 20
    forward, of_systems = True, True
    chunk_size = 64

    def refuses(self, system: System) -> str | None:
        if not system.causal:
            return "a non-causal system has no state; use the form matrix"
        if system.decay_kind == "dense":
            return "a dense transition has no cheap products over a chunk; use recurrent, scan or matrix"
        return None

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        if any_length(core.length):
            return opaque(self.name, core, S)
        T, c = core.length, min(self.chunk_size, core.length)
        while c > LEAST and self._numbers(core, c) > room(core.k.device):
            c //= 2
        tile = c * self._chunks_a_tile(core, c)
        whole = T - T % c
        y = []
        for start in range(0, whole, tile):
            stop = min(start + tile, whole)
            part, S = _chunks(core.slice(start, stop), S, c)
            y.append(part)
        if whole < T:
            part, S = _chunks(core.slice(whole, T), S, T - whole)
            y.append(part)
        return torch.cat(y, 1), S

    def _chunks_a_tile(self, core: Core, c: int) -> int:
        return max(1, room(core.k.device) // self._numbers(core, c))

    def _numbers(self, core: Core, c: int) -> int:
        """Count the numbers that a chunk of c steps takes."""
        wide = max(x.shape[-1] for x in (core.log, core.rate, core.k[..., :1]) if x is not None) > 1
        inside = c * core.q.shape[-2] + 4 * core.n + 2 * core.p + (BASE * core.n if wide else 0)
        return core.batch * math.prod(core.heads) * (c * inside + core.n * core.p)


def _chunks(core: Core, S: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Compute reads [B,T,G,R,o,p] and the state after a core whose length is a multiple of c."""
    x = cut(core, c)
    M_qk = x.read(x.q, x.k, exclusive=x.exclusive)
    y = contract("...ij,...jp->...ip", M_qk if x.v.is_complex() else core.needed(M_qk), x.v)
    q = x.from_start(x.q, exclusive=x.exclusive)
    write = contract("...jn,...jp->...np", x.to_end(x.k), x.v)
    total = x.total()
    carry: Tensor | None = None
    if x.f is not None and x.w is not None:
        Z, W = _feedback(x, x.f, x.w)
        M_qf = x.read(x.q, x.f, exclusive=x.exclusive)
        y = y + core.needed(contract("...ij,...jp->...ip", M_qf, Z))
        q = q + contract("...ij,...jn->...in", M_qf, W)
        f = x.to_end(x.f)
        write = write + contract("...jn,...jp->...np", f, Z)
        carry = contract("...jm,...jn->...mn", f, W)
        decay = torch.ones_like(carry[..., :1, 0]) if x.g is None else torch.exp(x.g.sum(-2))
        carry = carry + torch.diag_embed(decay.expand(*decay.shape[:-1], core.n))
    if x.end is not None:
        write = x.end.unsqueeze(-1) * write
        carry = None if carry is None else x.end.unsqueeze(-1) * carry
    starts, S = _states(S.unsqueeze(3), total, carry, write, core.length // c)
    y = y + core.needed(contract("...in,...np->...ip", q, starts))
    return y.movedim(5, 2).flatten(1, 2), S.squeeze(3)


def _feedback(x: Stretch, f: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Z and W of the module: z = Z + W S for the state S before the chunk."""
    L = x.read(w, f, exclusive=True)
    local = contract("...ij,...jp->...ip", x.read(w, x.k, exclusive=True), x.v)
    start = x.from_start(w, exclusive=True)
    Z, W = solve_unit_lower(L, local, start)
    return Z, W


def _states(S: Tensor, total: Tensor | None, carry: Tensor | None, write: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Compute S before each chunk [B,N,...] and after the last: S <- total S + write; with feedback
    S <- carry S + write.
    """

    def each(x: Tensor) -> list[Tensor]:
        return list(x.unbind(1)) if x.shape[1] > 1 else [x[:, 0]] * N

    writes = each(write)
    S = S + torch.zeros_like(writes[0])
    states = []
    if carry is not None:
        for M, u in zip(each(carry), writes, strict=True):
            states.append(S)
            S = contract("...mn,...np->...mp", M, S) + u
    else:
        decays = [None] * N if total is None else each(total.unsqueeze(-1))
        for a, u in zip(decays, writes, strict=True):
            states.append(S)
            S = u + S if a is None else torch.addcmul(u, a, S) if a.dtype == S.dtype == u.dtype else u + a * S
    return torch.stack(states, 1), S


register_form(Chunkwise())
