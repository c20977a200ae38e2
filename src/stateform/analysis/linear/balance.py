"""Balanced truncation: fewer states, with an error that is known before anything is run.

With F_P F_P^T = P, F_Q F_Q^T = Q and F_Q^T F_P = U diag(sigma) V^T, the states W^T x with

    W = F_Q U_r sigma_r^{-1/2},  T = F_P V_r sigma_r^{-1/2},  W^T T = I;     A_r = W^T A T,  B_r = W^T B,  C_r = C T

are the r that carry most, and ||G - G_r||_inf <= 2 sum_{k > r} sigma_k. Source: Moore (IEEE TAC 26, 1981), Tombs and
Postlethwaite (Int. J. Control 46, 1987); the bound in discrete time: Al-Saggaf and Franklin (IEEE TAC 32, 1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...system import System
from .control import Hankel, freqresp, own_frequencies
from .gramian import gram
from .statespace import StateSpace, written


@dataclass(frozen=True, eq=False)
class Balanced:
    """A system and its truncation to the balanced states that carry most."""

    original: StateSpace
    reduced: StateSpace
    hankel: Hankel
    left: Tensor
    """W^T [H,r,N]: the states kept, W^T x."""
    right: Tensor
    """T [H,N,r]: the state that they stand for, T W^T x."""

    @property
    def order(self) -> int:
        """r, the states kept in each head."""
        return self.reduced.N

    @property
    def bound(self) -> Tensor:
        """2 sum_{k > r} sigma_k [H]: no input's energy is amplified by more into the difference of the outputs."""
        return self.hankel.bound(self.order)

    def error(self, omega: Tensor | None = None) -> Tensor:
        """Compute the largest gain of G - G_r on a grid of frequencies, [H]: the H-infinity error from below.

        Args:
            omega: the grid (default: for each head `own_frequencies` of both systems, the angles of their poles
                included).
        """
        both = (self.original, self.reduced)
        grid = torch.cat([own_frequencies(s) for s in both], -1) if omega is None else omega
        G, G_r = (freqresp(s, grid).G for s in both)
        return torch.linalg.matrix_norm(G - G_r, 2).amax(-1)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "states": self.original.N, "order": self.order, "bound": self.bound.tolist(),
            "error": self.error().tolist(), "hankel": self.hankel.to_dict(),
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.original.N} states to {self.order}: gain of the error at most {float(self.bound.max()):.3g} by the "
            f"Hankel bound, {float(self.error().max()):.3g} at the worst of the frequencies tried"
        )


@torch.no_grad()
def balred(system: System | StateSpace, order: int | None = None, *, tol: float | None = None) -> Balanced:
    """Truncate a time-invariant system with |poles| < 1 in balanced coordinates, all heads to as many states.

    Args:
        system: time-invariant.
        order: states to keep.
        tol: instead: the fewest with 2 sum_{k > r} sigma_k <= tol sigma_1 in every head. As ||G||_inf >= sigma_1 for
            what goes through the state, the H-infinity error is then at most `tol` of it.

    Raises:
        StateformError: another kind of system, an order out of range, or both or neither of order and tol.
    """
    require((order is None) != (tol is None), "give either the order, or the tol that it is to be found from")
    s = written(system)
    F_P, F_Q = gram(s, "cf"), gram(s, "of")
    U, sigma, Vh = torch.linalg.svd(F_Q.mT @ F_P, full_matrices=False)
    values = torch.nn.functional.pad(sigma, (0, s.N - sigma.shape[-1]))
    hankel = Hankel(values)
    if tol is not None:
        require(0 < tol < float("inf"), f"tol is {tol}; expected a number above 0")
        tails = 2 * (values.flip(-1).cumsum(-1).flip(-1))  # of the values from k on
        order = max(1, int((tails > tol * values[:, :1]).sum(-1).max()))
    fits = isinstance(order, int) and not isinstance(order, bool) and 1 <= order <= s.N
    require(fits, f"order is {order!r}; expected 1 to {s.N} states")
    assert order is not None
    kept = sigma[:, :order]
    # states below rounding carry nothing: they become zeros
    there = kept > s.N * torch.finfo(kept.dtype).eps * values[:, :1]
    root = torch.where(there, kept, 1.0).rsqrt() * there
    left = root.unsqueeze(-1) * (U[..., :order].mT @ F_Q.mT)
    right = F_P @ Vh[..., :order, :].mT * root.unsqueeze(-2)
    reduced = StateSpace(left @ s.A @ right, left @ s.B, s.C @ right, s.D, s.exclusive)
    return Balanced(s, reduced, hankel, left, right)
