"""Gramians, by their factors: which states inputs reach, and which states outputs show.

    P = sum_{k>=0} A^k B B^T (A^T)^k       controllability:  P = A P A^T + B B^T
    Q = sum_{k>=0} (A^T)^k C^T C A^k       observability:    Q = A^T Q A + C^T C

The factor F with P = F F^T is found without P, so that small Hankel values keep their digits, by doubling: with the
factor F of m terms, [F, A^m F] is one of 2 m terms, and a QR factorisation brings it back to N columns. Convergence is
quadratic. Source: Smith (SIAM J. Appl. Math. 16, 1968) for the doubling, Tombs and Postlethwaite (Int. J. Control 46,
1987) for the square-root method.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import StateformError, require
from ...system import System
from .statespace import StateSpace, dense, finite, real, varying, written

Kind = Literal["c", "o", "cf", "of"]


def poles(system: System | StateSpace) -> Tensor:
    """Compute the eigenvalues of A, complex [H,N], the largest modulus first (if complex, those of [Re h; Im h]).

    Raises:
        StateformError: a system that varies in time, or without a finite state.
    """
    values = torch.linalg.eigvals(written(system).A)
    return values.gather(-1, values.abs().argsort(-1, descending=True))


@torch.no_grad()
def gram(system: System | StateSpace, kind: Kind, horizon: int | None = None) -> Tensor:
    """Compute a Gramian, [H,N,N]; of a system that varies in time [B,H,N,N].

    Args:
        system: time-invariant; with a horizon any system of a finite state (of its first `horizon` tokens: P at their
            end, Q at their start; one column of a matrix state, the columns being alike).
        kind: "c" for P, "o" for Q, "cf" and "of" for the factor F with P = F F^T, Q = F F^T.
        horizon: terms of the sum (default: all, which needs |poles| < 1).

    Raises:
        StateformError: poles on or outside the unit circle and no horizon, no finite state, or matrices too large.
    """
    require(kind in ("c", "o", "cf", "of"), f"kind is {kind!r}; expected 'c', 'o', or their factors 'cf', 'of'")
    whole = isinstance(horizon, int) and not isinstance(horizon, bool) and horizon >= 1
    require(horizon is None or whole, f"horizon is {horizon!r}; expected a whole number of steps, 1 or more")
    if horizon is not None and isinstance(system, System) and varying(system):
        F = _stretch(system, kind[0], horizon)
    else:
        s = written(system)
        F = factor(s.A, s.B, horizon) if kind[0] == "c" else factor(s.A.mT, s.C.mT, horizon)
    return F if kind.endswith("f") else F @ F.mT


def factor(A: Tensor, F: Tensor, terms: int | None = None) -> Tensor:
    """Compute the factor [H,N,m] of sum_{k<terms} A^k F F^H (A^H)^k, A [H,N,N] and F [H,N,i] real or complex.

    Raises:
        StateformError: poles on or outside the unit circle, or too near it, where all terms are wanted.
    """
    if terms is not None:
        power, total = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A), F[..., :0]
        while terms:
            if terms % 2:
                power, total = A @ power, _compressed(torch.cat([A @ total, F], -1))
            A, F, terms = A @ A, _compressed(torch.cat([A @ F, F], -1)), terms // 2
        return total
    largest = torch.linalg.eigvals(A).abs().amax(-1)
    worst = float(largest.max())
    if not worst < 1:
        head = int(largest.argmax())
        raise StateformError(
            f"head {head} has a pole of modulus {worst:.9g}, on or outside the unit circle: the Gramian of all time "
            "does not exist; give horizon=, the steps to sum over"
        )
    for _ in range(64):
        later = A @ F
        size, left = (torch.linalg.matrix_norm(x) for x in (F, later))
        if bool((left <= torch.finfo(F.dtype).eps ** 2 * size).all()):
            return F
        F, A = _compressed(torch.cat([F, later], -1)), A @ A
    raise StateformError(
        f"the sum over all time does not settle in float64 (a pole of modulus {worst:.17g}); give horizon="
    )


def _compressed(F: Tensor) -> Tensor:
    """Find at most N columns with the same F F^H."""
    return F if F.shape[-1] <= F.shape[-2] else torch.linalg.qr(F.mH, mode="r").R.mH


def _stretch(system: System, kind: str, horizon: int) -> Tensor:
    """Compute the factor over the first tokens of a time-varying system: neighbours combined, then pairs of pairs."""
    finite(system)
    require(system.eta != "sum", 'eta = "sum" is a second state that divides the first: the outputs are not linear in '
            "the inputs; take the system without it, dataclasses.replace(system, eta=None)")  # fmt: skip
    require(system.w_out is None, "w_out maps heads together, in time-varying form it is not written out here")
    require(horizon <= system.T, f"horizon is {horizon}; the system has {system.T} tokens")
    A, B, C = real(*dense(system[:horizon].to(torch.float64)), system.q is None)
    A, B, C = (x.transpose(1, 2) for x in (A, B, C))  # [B,H,T,...]
    if kind == "o":
        # y_t = C_t A_t ... A_{s+1} x_s: of the inclusive read, A_t comes between C_t and C_{t-1}
        between = A if system.exclusive else A.roll(-1, 2)
        A, B = between.mT.flip(2), C.mT.flip(2)
    while A.shape[2] > 1:
        if A.shape[2] % 2:  # before the first step nothing was there
            A = torch.cat([torch.eye(A.shape[-1], dtype=A.dtype).expand_as(A[:, :, :1]), A], 2)
            B = torch.cat([torch.zeros_like(B[:, :, :1]), B], 2)
        first, then = (A[:, :, i::2] for i in (0, 1))
        B = _compressed(torch.cat([then @ B[:, :, ::2], B[:, :, 1::2]], -1))
        A = then @ first
    return B.squeeze(2)
