"""Reads any operator a block of rows at a time, from the last one: H_t = U_t R_t + (what was dropped)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import require
from ...system import System
from ...system.shapes import indices
from .need import StateNeed, check_size, spread_splits

FINE = 0.3
"""The rows that are carried on are compressed to this share of the tolerance: it is what the bounds may lie apart."""


class GivenRows:
    """Rows of weights that are there."""

    def __init__(self, alpha: Tensor, heads: Sequence[int] | int | None) -> None:
        fits = isinstance(alpha, Tensor) and 2 <= alpha.ndim <= 4 and alpha.shape[-2] > 0
        given = list(alpha.shape) if isinstance(alpha, Tensor) else type(alpha).__name__
        require(fits and alpha.shape[-1] % alpha.shape[-2] == 0 and alpha.shape[-1] > 0,
                f"the operator is {given}; expected a System or weights [B,H,T,T] (T * micro columns)")  # fmt: skip
        alpha = alpha[(None,) * (4 - alpha.ndim)].to(torch.complex128 if alpha.is_complex() else torch.float64)
        if heads is not None:
            alpha = alpha[:, indices(heads, alpha.shape[1], "heads")]
        self.B, self.H, self.T, columns = alpha.shape
        self.alpha, self.writes = alpha, columns // self.T
        own = torch.arange(columns, device=alpha.device) // self.writes
        later = alpha.masked_fill(own <= torch.arange(self.T, device=alpha.device)[:, None], 0.0)
        require(
            bool((later == 0).all()), "the weights see the future (entries above the diagonal); expected causal ones"
        )
        require(bool(torch.isfinite(alpha).all()), "the weights hold NaN or inf; expected finite numbers")

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.alpha[:, :, start:stop]


class SoftmaxRows:
    """Rows of an exp readout's weights, made as they are asked for."""

    def __init__(self, system: System, limit: float) -> None:
        self.system, self.limit, self.writes = system, limit, 1
        self.B, self.H, self.T = system.B, system.H, system.T

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.system.coefficients(queries=range(start, stop), limit=self.limit)


def need_by_rows(
    rows: GivenRows | SoftmaxRows, tol: float, relative: Literal["block", "operator"], splits: Sequence[int] | int,
    limit: float,
) -> StateNeed:  # fmt: skip
    """Find the state needed from the rows of an operator, singular values bounded from both sides."""
    B, H, T, r = rows.B, rows.H, rows.T, rows.writes
    require(B * T > 0, "an empty sequence needs no state")
    chosen = spread_splits(splits, T)
    stretches = list(pairwise([0, *chosen, T]))
    longest = max(stop - start for start, stop in stretches)
    check_size(8.0 * B * H * T * r * 4 * longest, limit, f"blocks of {longest} rows and {T * r} columns")
    energy, total = _energies(rows, stretches)
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    kept: dict[tuple[int, int], Tensor] = {}
    lost: dict[tuple[int, int], Tensor] = {}
    for index, (start, stop) in reversed(list(enumerate(stretches))[1:]):
        block = rows(start, stop)[..., : start * r]
        near = energy[..., start - 1 : stop - 1] if relative == "block" else total.unsqueeze(-1)
        for b in range(B):
            for h in range(H):
                Z, gone = block[b, h], torch.zeros(start * r, dtype=torch.float64, device=block.device)
                if (b, h) in kept:
                    Z, gone = torch.cat([Z, kept[b, h][:, : start * r]]), lost[b, h][: start * r]
                least = float(near[b, h].amin()) or float(near[b, h, 0])
                sigma, kept[b, h], dropped = compress(Z, (FINE * tol) ** 2 * least / len(chosen))
                found[b, h, index - 1] = sigma, gone.sum()
                lost[b, h] = gone + dropped
    width = max((len(sigma) for sigma, _ in found.values()), default=0)
    return StateNeed(
        chosen,
        _table(B, H, len(chosen), lambda b, h, s: F.pad(found[b, h, s][0], (0, width - len(found[b, h, s][0])))),
        _table(B, H, len(chosen), lambda b, h, s: found[b, h, s][1]),
        energy, total, tol, relative, r, 1, None,
    )  # fmt: skip


def _energies(rows: GivenRows | SoftmaxRows, stretches: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Compute ||H_t||_F^2 at t = 1..T-1 [B,H,T-1], and ||Phi||_F^2 [B,H], a block of rows at a time."""
    energy, seen, total = [], torch.zeros(()), torch.zeros(())
    for start, stop in reversed(stretches):
        squares = rows(start, stop).abs().square().unflatten(-1, (rows.T, rows.writes)).sum(-1)
        below = squares.flip(2).cumsum(2).flip(2) + seen  # of all rows from i on, for each token of the past
        t = torch.arange(start, stop, device=squares.device)[:, None]
        energy.append(torch.where(torch.arange(rows.T, device=squares.device) < t, below, 0.0).sum(-1))
        seen, total = below[:, :, :1], total + squares.sum((-2, -1))
    return torch.cat(energy[::-1], -1)[..., 1:], total


def _table(B: int, H: int, S: int, entry: Callable[[int, int, int], Tensor]) -> Tensor:
    if S == 0:
        return torch.zeros(B, H, 0, dtype=torch.float64)
    return torch.stack(
        [torch.stack([torch.stack([entry(b, h, s) for s in range(S)]) for h in range(H)]) for b in range(B)]
    )


def left_factors(Z: Tensor) -> tuple[Tensor, Tensor]:
    """Find the left singular vectors and the singular values of Z [..., m, N], as many as the smaller of m and N.

    With Z^H = Q R they are those of R^H, whatever N is.
    """
    W, sigma, _ = torch.linalg.svd(torch.linalg.qr(Z.mH, mode="r").R.mH, full_matrices=False)
    return W, sigma


def compress(Z: Tensor, allowed: float) -> tuple[Tensor, Tensor, Tensor]:
    """Replace Z [m,N] by as few combinations of its rows as leave out at most `allowed` of its squared Frobenius norm.

    Returns:
        All singular values of Z; W^H Z, whose rows are orthogonal; the squares left out, a sum for each column [N].
    """
    if allowed > 1e-10 * float(Z.abs().square().sum()):  # far above what the squares of Z Z^H lose to rounding
        squares, W = torch.linalg.eigh(Z @ Z.mH)
        sigma, W = squares.clamp_min(0).sqrt().flip(0), W.flip(1)
    else:
        W, sigma = left_factors(Z)
    tails = F.pad(sigma.square(), (0, 1)).flip(0).cumsum(0).flip(0)
    k = int((tails <= allowed).int().argmax())
    turned = W.mH @ Z
    return sigma, turned[:k], turned[k:].abs().square().sum(0)
