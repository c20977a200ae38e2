"""How much state a causal operator needs: the numerical rank of its blocks between past and future.

y_i = sum_{j<=i} Phi_ij v_j. At a split t the future sees the past through H_t = Phi[t:, :t] alone, so whatever carries
the operator across t has rank H_t numbers there (for each value), and no fewer. The best approximation by r numbers
is off by the singular values sigma_{r+1}, ... of H_t (Eckart and Young), hence at a tolerance

    need_t = min { r : sum_{k>r} sigma_k(H_t)^2 <= tol^2 N^2 },   N = ||H_t||_F  ("block")  or  ||Phi||_F  ("operator").

Source: Dewilde and van der Veen, Time-Varying Systems and Computations (1998): the least state at t is the rank of the
Hankel operator at t (Kronecker's theorem for time-varying systems).

A system with a linear readout has H_t = O_t C_t through its state; thin factors O_t = F M_t and C_t = L_t E, with F and
E orthonormal, are carried over time, and sigma(H_t) = sigma(M_t L_t). Any other operator is read a block of rows at a
time, from the last one, as H_t = U_t R_t + (what was dropped, orthogonal to U_t R_t and measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ...errors import require
from ...system import System
from .by_factors import need_by_factors
from .by_rows import GivenRows, SoftmaxRows, need_by_rows
from .need import StateNeed


@torch.no_grad()
def state_need(
    operator: System | Tensor, tol: float = 1e-2, *, relative: Literal["block", "operator"] = "operator",
    splits: Sequence[int] | int = 16, heads: Sequence[int] | int | None = None, limit: float = 2e9,
) -> StateNeed:  # fmt: skip
    """Find the smallest state that reproduces each head on this input to a relative error, at splits over time.

    Computed in float64. For readouts "linear" and "ridge" the singular values are exact to rounding, with memory linear
    in T; for softmax and given weights they are bounded from both sides, see `StateNeed.ranks`. For vector states
    the operator is that of `System.contributions`: column j scales the input k_j of this text, rows are outputs.

    Args:
        operator: a causal System, from a zero state; or effective attention [T,T], [H,T,T] or [B,H,T,T] (columns: T
            times the micro-steps).
        tol: the error allowed, in the Frobenius norm.
        relative: to the norm of the block H_t, or to that of the whole operator, diagonal included.
        splits: how many, spread evenly, or which ones, among 1..T-1.
        heads: heads wanted (default all; with an output map all heads count together).
        limit: bytes allowed for what is held at a time.

    Raises:
        StateformError: weights that are not causal, a bad tol or splits, or too much memory needed.
    """
    require(isinstance(tol, float | int) and 1e-10 <= tol < 1, f"tol is {tol!r}; expected a number from 1e-10 to 1")
    require(relative in ("block", "operator"), f'relative is {relative!r}; expected "block" or "operator"')
    if not isinstance(operator, System):
        return need_by_rows(GivenRows(operator, heads), tol, relative, splits, limit)
    require(operator.causal, "a state carries the past to the future; this system is not causal")
    system = operator if heads is None else operator.select_heads(heads)
    system = system.to(torch.float64)
    if system.readout.cached:
        return need_by_rows(SoftmaxRows(system, limit), tol, relative, splits, limit)
    return need_by_factors(system, tol, relative, splits, limit)
