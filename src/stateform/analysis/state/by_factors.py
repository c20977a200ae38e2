"""Reads an operator with a state by thin factors: H_t = O_t C_t with O_t = F M_t, C_t = L_t E, so sigma(M_t L_t)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import require
from ...forms.dense import normaliser
from ...forms.form import chunkwise_or_recurrent
from ...forms.ridge import as_linear
from ...forms.stabilise import stabilise
from ...system import System
from ...system.core import fold
from ...system.shapes import spread_heads
from ..attention.coefficients import has_weights
from .need import StateNeed, check_size, spread_splits


def _inner(E: Tensor) -> Tensor:
    """Sum squares E [..., c, c] over i >= t, j < t, for t = 0..c-1."""
    before = F.pad(E, (1, 0))[..., :-1].cumsum(-1)
    return before.flip(-2).cumsum(-2).flip(-2).diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class _Maps:
    """A stretch of c tokens as linear maps [B,H,...]: alpha [c,o,c*r] and read [c,o,n] to outputs, write [n,c*r] and
    carry [n,n] to the state behind it, from values and from the state before it.
    """

    alpha: Tensor
    read: Tensor
    write: Tensor
    carry: Tensor


def need_by_factors(
    system: System, tol: float, relative: Literal["block", "operator"], splits: Sequence[int] | int, limit: float
) -> StateNeed:
    """Find the state needed from the thin factors of a System, exact to rounding."""
    T, r = system.T, system.micro
    require(system.B * T > 0, "an empty sequence needs no state")
    chosen = spread_splits(splits, T)
    if system.log_b is not None and system.eta == "sum":
        system = stabilise(system)[0]
    if system.readout.gram:
        system = as_linear(system)
    stretches = list(pairwise([0, *chosen, T]))
    longest = max(stop - start for start, stop in stretches)
    numbers = (
        system.B * system.H * (2 * longest * r * (longest * r + 2 * system.n) * system.outputs + 4 * T * system.n * r)
    )
    check_size(16.0 * numbers, limit, f"maps of {longest} tokens with {system.n} states")
    eta = normaliser(system)
    stretched = [_maps(system, start, stop, eta[:, start:stop]) for start, stop in stretches]
    n = stretched[0].carry.shape[-1]

    # Forward: C_t = L_t E_t. Backward: O_t = F_t M_t.
    before, L = [], stretched[0].carry.new_zeros(*stretched[0].carry.shape[:2], n, 0)
    for x in stretched:
        before.append(L)
        L = torch.linalg.qr(torch.cat([x.carry @ L, x.write], -1).mH, mode="r").R.mH
    after, M = [], stretched[0].carry.new_zeros(*stretched[0].carry.shape[:2], 0, n)
    for x in reversed(stretched):
        after.append(M)
        M = torch.linalg.qr(torch.cat([x.read.flatten(2, 3), M @ x.carry], -2), mode="r").R
    after.reverse()

    values, energy, total = [], [], torch.zeros(())
    for x, L, M in zip(stretched, before, after):
        inner = x.alpha.abs().square().sum(3).unflatten(-1, (-1, r)).sum(-1)
        reads = (x.read @ L.unsqueeze(2)).abs().square().sum((-2, -1))
        writes = (M @ x.write).abs().square().sum(-2).unflatten(-1, (-1, r)).sum(-1)
        through = M @ x.carry @ L
        later = reads.flip(-1).cumsum(-1).flip(-1)
        sooner = F.pad(writes, (1, 0))[..., :-1].cumsum(-1)
        energy.append(through.abs().square().sum((-2, -1)).unsqueeze(-1) + later + sooner + _inner(inner))
        total = total + inner.sum((-2, -1)) + reads.sum(-1)
    for L, M in zip(before[1:], after[:-1]):
        sigma = torch.linalg.svdvals(M @ L)
        values.append(F.pad(sigma, (0, n - sigma.shape[-1])))
    found = torch.stack(values, 2) if values else torch.zeros(*total.shape, 0, n, dtype=torch.float64)
    outputs = stretched[0].read.shape[3]
    return StateNeed(chosen, found, torch.zeros_like(found[..., 0]), torch.cat(energy, -1)[..., 1:], total, tol,
                     relative, r, outputs, n)  # fmt: skip


def _maps(system: System, start: int, stop: int, eta: Tensor) -> _Maps:
    """Run the stretch on unit values and unit states in the form chunkwise (recurrent where that does not exist)."""
    part, r, c = system[start:stop], system.micro, stop - start
    core = fold(part)
    units = torch.eye(c * r, c * r + core.n, dtype=torch.float64, device=core.k.device)
    states = core.zero_state()[..., :1].expand(*[-1] * 4, c * r + core.n).clone()
    states[..., c * r :] = torch.eye(core.n, dtype=states.dtype, device=states.device)
    y, end = chunkwise_or_recurrent(part).compute(replace(core, v=units[None, :, None, None], real=False), states)
    at = slice(0, None, r) if part.exclusive else slice(r - 1, None, r)
    y = y[:, at].expand(-1, -1, *core.heads, -1, -1).flatten(2, 3).transpose(1, 2)  # [B,H,c,o,c*r+n]
    end = end.expand(-1, *core.heads, -1, -1).flatten(1, 2)
    (alpha, read), (write, carry) = (x.split([c * r, core.n], -1) for x in (y, end))
    b = spread_heads(part.gate("log_b").exp() if part.log_b is not None else part.gate("b", 1.0), part.H)
    b = b.transpose(1, 2).unsqueeze(2)  # [B|1,H|1,1,c*r|1]
    alpha, write = alpha * b.unsqueeze(2), write * b
    if part.d is not None:
        own = torch.arange(c, device=b.device) * r + (0 if part.exclusive else r - 1)
        direct = spread_heads(part.gate("d"), part.H).transpose(1, 2)[..., None, None]
        alpha = alpha + F.one_hot(own, c * r).unsqueeze(1) * direct
    return _read_through(part, _Maps(alpha / eta_of(eta), read / eta_of(eta), write, carry))


def eta_of(eta: Tensor) -> Tensor:
    """Put eta [B,c,H] under rows [B,H,c,o,...]."""
    return eta.transpose(1, 2)[..., None, None]


def _read_through(system: System, x: _Maps) -> _Maps:
    """Read what is seen of a stretch: all heads through the output map; real parts, the state as real and imaginary."""
    if system.w_out is not None:
        w_out = system.w_out.to(torch.complex128 if x.read.is_complex() else system.w_out.dtype)
        carry = torch.stack([torch.block_diag(*row) for row in x.carry]).unsqueeze(1)
        alpha = torch.einsum("bhinj,ohn->bioj", x.alpha.to(w_out.dtype), w_out).unsqueeze(1)
        read = torch.einsum("bhinm,ohn->biohm", x.read.to(w_out.dtype), w_out).flatten(-2).unsqueeze(1)
        x = _Maps(alpha, read, x.write.flatten(1, 2).unsqueeze(1), carry)
    values = has_weights(system) and system.v is not None and system.v.is_complex()
    real = (system.q is not None or system.w_out is not None) and not values
    if not real or not any(y.is_complex() for y in (x.read, x.write, x.carry)):
        return x
    return _Maps(x.alpha.real if x.alpha.is_complex() else x.alpha, *as_real(x.read, x.write, x.carry))


def as_real(read: Tensor, write: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read a complex state's real outputs from the state [Re; Im]: read [..,n], write [n,..], carry [n,n]."""
    read, write, carry = (x.to(torch.complex128) for x in (read, write, carry))
    turn = torch.cat([torch.cat([carry.real, -carry.imag], -1), torch.cat([carry.imag, carry.real], -1)], -2)
    return torch.cat([read.real, -read.imag], -1), torch.cat([write.real, write.imag], -2), turn
