"""The pair sum: how much of the write at j is left in the read at i, for all i, j of a stretch of time at once.

    M_ij = sum_n q_in k_jn exp( g_{j+1,n} + ... + g_{i,n} ),   j <= i

Every exponent is the sum over the steps between j and i themselves: a difference of cumulative sums from the start of
the stretch would cancel after a hard reset (lost digits, or NaN at -inf). A diagonal decay is summed by halves: for i
in the right half and j in the left one the exponent splits at the middle into a part of i and a part of j, so that
the block is one matrix product; the same again inside each half.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..system.core import Core, contract
from ..system.precision import angles, cis

BASE = 4
"""A diagonal decay is summed directly in blocks of at most this many steps, by halves above."""


@dataclass(frozen=True)
class Stretch:
    """N stretches of c steps of a Core side by side. Axes [batch, N, G, R, o, c, n]; size 1 where constant or shared.

    Phases and signs are absorbed: with U_t the product of the units from the start of the stretch to t, the coordinates
    S'_t = S_t / U_t have a real, positive decay exp(g), and q, k, f, w carry U.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    f: Tensor | None
    w: Tensor | None
    end: Tensor | None
    """U at the end of the stretch, [..., n|1]."""
    exclusive: bool

    def read(self, x: Tensor, k: Tensor, *, exclusive: bool) -> Tensor:
        """Sum reads x with writes k over pairs, [..., c, c]; exclusive: the decays up to i-1, entries j < i."""
        if not exclusive:
            return pairs(x, k, self.g)
        return before(pairs(F.pad(x[..., 1:, :], (0, 0, 0, 1)), k, self.g))

    def from_start(self, x: Tensor, *, exclusive: bool) -> Tensor:
        """Carry x_i back to the state before the stretch."""
        if self.g is None:
            return x
        sums = since_start(self.g)
        return x * torch.exp(before(sums) if exclusive else sums)

    def to_end(self, k: Tensor) -> Tensor:
        """Carry k_j forward to the state after the stretch (in the coordinates S')."""
        return k if self.g is None else k * torch.exp(until_end(self.g))

    def total(self) -> Tensor | None:
        """Sum the decay over the whole stretch, unit included, [..., n|1]."""
        decay = None if self.g is None else torch.exp(self.g.sum(-2))
        return decay if self.end is None else self.end if decay is None else decay * self.end


def cut(core: Core, c: int) -> Stretch:
    """Cut the core's steps into stretches of c (its length must be a multiple of c)."""

    def axes(x: Tensor | None, o: bool = False) -> Tensor | None:
        if x is None:
            return None
        x = x.unsqueeze(1) if x.shape[1] == 1 else x.unflatten(1, (-1, c))
        x = x if o else x.unsqueeze(5)
        x = x.movedim(2, 5)
        return x.expand(*x.shape[:5], c, x.shape[-1])

    q, k, v, f, w = axes(core.q, True), axes(core.k), axes(core.v), axes(core.f), axes(core.w)
    g, phase, sign = axes(core.decay_log()), axes(core.phase), axes(core.sign)
    assert q is not None and k is not None and v is not None
    unit = None if phase is None else cis(angles(phase)).to(core.dtype)
    if sign is not None:
        signs = torch.cumprod(sign, -2)
        unit = signs if unit is None else unit * signs
    if unit is None:
        return Stretch(q, k, v, g, f, w, None, core.exclusive)
    earlier = torch.cat([torch.ones_like(unit[..., :1, :]), unit[..., :-1, :]], -2)
    back = unit.conj().resolve_conj()
    return Stretch(
        q * (earlier if core.exclusive else unit), k * back, v, g,
        None if f is None else f * back, None if w is None else w * earlier, unit[..., -1, :], core.exclusive,
    )  # fmt: skip


def pairs(q: Tensor, k: Tensor, g: Tensor | None) -> Tensor:
    """Compute M_ij of the module, for q, k [..., c, n] and g [..., c, 1] (scalar), [..., c, n] (diagonal) or None."""
    if g is None:
        return contract("...in,...jn->...ij", q, k).tril()
    if g.shape[-1] == 1:
        return contract("...in,...jn->...ij", q, k) * torch.exp(between(g).squeeze(-1))
    c = q.shape[-2]
    blocks = 1
    while blocks * BASE < c:
        blocks *= 2
    size = -(-c // blocks)
    pad = (0, 0, 0, blocks * size - c)
    q, k, g = F.pad(q, pad), F.pad(k, pad), F.pad(g, pad)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-2, (blocks, size))

    M = contract("...ijn,...jn->...ij", split(q).unsqueeze(-2) * torch.exp(between(split(g))), split(k))
    while blocks > 1:
        left, right = (
            x.unbind(-3)
            for x in (split(k) * torch.exp(until_end(split(g))), split(q) * torch.exp(since_start(split(g))))
        )
        cross = contract("...in,...jn->...ij", torch.stack(right[1::2], -3), torch.stack(left[0::2], -3))
        top = torch.cat([M[..., 0::2, :, :], torch.zeros_like(cross)], -1)
        M = torch.cat([top, torch.cat([cross, M[..., 1::2, :, :]], -1)], -2)
        blocks, size = blocks // 2, size * 2
    return M.squeeze(-3)[..., :c, :c]


def solve_unit_lower(L: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """Solve for (I - L)^{-1} x for each right side, L strictly lower triangular; front axes broadcast, dtypes are
    promoted.
    """
    front = torch.broadcast_shapes(L.shape[:-2], *(x.shape[:-2] for x in right))
    dtype = L.dtype
    for x in right:
        dtype = torch.promote_types(dtype, x.dtype)
    columns = torch.cat([x.to(dtype).expand(*front, *x.shape[-2:]) for x in right], -1)
    A = (torch.eye(L.shape[-1], dtype=dtype, device=L.device) - L).expand(*front, *L.shape[-2:])
    solved = torch.linalg.solve_triangular(A, columns, upper=False, unitriangular=True)
    return solved.split([x.shape[-1] for x in right], -1)


def since_start(g: Tensor) -> Tensor:
    """Sum g_1 + ... + g_i."""
    return torch.cumsum(g, -2)


def until_end(g: Tensor) -> Tensor:
    """Sum g_{j+1} + ... + g_c."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def before(x: Tensor) -> Tensor:
    """Return x_{i-1}, zero at the start."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0))


def between(g: Tensor) -> Tensor:
    """Sum g_{j+1} + ... + g_i at [..., i, j, n], -inf (masked before any exponential) where j > i."""
    c = g.shape[-2]
    later = torch.ones(c, c, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)
    sums = torch.where(later, g.unsqueeze(-2), 0.0).cumsum(-3)
    return sums.masked_fill(later.transpose(0, 1), -torch.inf)
