"""The T x T matrix of coefficients, and y = alpha v: for short sequences and for looking inside."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import any_length
from ..system import System
from ..system.core import Core, contract
from .form import register_form
from .opaque import opaque
from .pairs import cut, solve_unit_lower


class Matrix:
    """T x T work and memory (an exp readout without extras runs as fused attention, without the memory)."""

    name, letter, order = "matrix", "m", 40
    forward, of_systems = False, True

    def refuses(self, system: System) -> str | None:
        return None

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        if any_length(core.length):
            return opaque(self.name, core, S)
        alpha, read, write, carry = solve(core)
        S = S.unsqueeze(1)
        y = contract("bgroij,bjgrp->bigrop", alpha, core.v.expand(-1, core.length, -1, -1, -1))
        y = y + contract("btgron,bsgrnp->btgrop", read, S)
        end = contract("bgrnj,bjgrp->bgrnp", write, core.v.expand(-1, core.length, -1, -1, -1))
        return y, end + contract("bgrmn,bsgrnp->bgrmp", carry, S)


def solve(core: Core) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the whole stretch as four linear maps: values to reads alpha [B,G,R,o,T,T], first state to reads
    [B,T,G,R,o,n], values to last state [B,G,R,n,T], first state to last state [B,G,R,n,n].
    """
    if core.matrix is not None:
        return _solve_dense(core)
    x = cut(core, core.length)
    alpha = x.read(x.q, x.k, exclusive=x.exclusive)
    read, write = x.from_start(x.q, exclusive=x.exclusive), x.to_end(x.k)
    decay = torch.ones_like(write[..., :1, :]) if x.g is None else torch.exp(x.g.sum(-2, keepdim=True))
    carry = torch.diag_embed(decay.expand(*decay.shape[:-1], core.n).squeeze(-2))
    write = write.mT
    if x.f is not None and x.w is not None:
        L = x.read(x.w, x.f, exclusive=True)
        z_v, z_S = solve_unit_lower(L, x.read(x.w, x.k, exclusive=True), x.from_start(x.w, exclusive=True))
        M, f = x.read(x.q, x.f, exclusive=x.exclusive), x.to_end(x.f).mT
        alpha, read = alpha + contract("...ij,...jk->...ik", M, z_v), read + contract("...ij,...jn->...in", M, z_S)
        write, carry = write + contract("...mj,...jk->...mk", f, z_v), carry + contract("...mj,...jn->...mn", f, z_S)
    if x.end is not None:
        write, carry = x.end.unsqueeze(-1) * write, x.end.unsqueeze(-1) * carry
    # Axes [b,N=1,G,R,o,i,...]: drop N, and o where it is 1.
    return alpha.squeeze(1), read.squeeze(1).movedim(4, 1), write.squeeze(1).squeeze(3), carry.squeeze(1).squeeze(3)


def _solve_dense(core: Core) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the same for dense transitions: all written keys, and the identity, carried along through time."""
    T, n = core.length, core.n
    k = core.k.expand(core.batch, T, *core.state_heads, n).to(core.dtype)
    eye = torch.eye(n, dtype=core.dtype, device=k.device).expand(core.batch, *core.state_heads, n, n)
    columns = torch.cat([eye, k.new_zeros(core.batch, *core.state_heads, n, T)], -1)
    reads = []
    for t in range(T):
        step = core.slice(t, t + 1)
        q, before = step.q.squeeze(1), columns
        written = torch.nn.functional.one_hot(torch.tensor(n + t, device=k.device), n + T).to(k)
        columns = step.transition().apply(columns.unsqueeze(1)).squeeze(1) + k[:, t].unsqueeze(-1) * written
        reads.append(contract("...on,...nj->...oj", q, before if core.exclusive else columns))
    rows = torch.stack(reads, 1)
    return rows[..., n:].movedim(1, 4), rows[..., :n], columns[..., n:], columns[..., :n]


STRETCH = 64
"""Steps that chosen rows are computed over at a time."""


def solve_rows(core: Core, at: list[int]) -> Tensor:
    """Compute chosen rows of alpha [B,G,R,o,rows,T], back in time from stretch to stretch: lambda [B,G,R,n,o,rows] maps
    the state at the end of a stretch to the later reads, so that lambda^T write are the weights of its values, and
    carry^T lambda the map of the state before it. Memory rows x T.
    """
    dtype = torch.promote_types(core.dtype, core.q.dtype)
    lam = core.k.new_zeros(core.batch, *core.heads, core.n, core.q.shape[-2], len(at), dtype=dtype)
    pieces = []
    for start in reversed(range(0, core.length, STRETCH)):
        part = core.slice(start, min(start + STRETCH, core.length))
        alpha, read, write, carry = (x.to(dtype) for x in solve(part))
        rows = contract("bgrnoi,bgrnj->bgroij", lam, write).expand(*lam.shape[:3], -1, -1, part.length)
        lam = contract("bgrmn,bgrmoi->bgrnoi", carry, lam)
        here = [(i, t - start) for i, t in enumerate(at) if start <= t < start + part.length]
        if here:
            place, own = (list(x) for x in zip(*here, strict=True))
            rows, lam = rows.clone(), lam.clone()
            rows[..., place, :] = alpha.expand(*rows.shape[:4], -1, -1)[..., own, :]
            begin = read.expand(core.batch, part.length, *core.heads, -1, -1)[:, own]
            lam[..., place] = begin.permute(0, 2, 3, 5, 4, 1)
        pieces.append(rows)
    return torch.cat(pieces[::-1], -1)


register_form(Matrix())
