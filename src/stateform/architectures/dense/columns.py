"""Transitions whose columns have length 1."""

from __future__ import annotations

from torch import Tensor


def column_normalised(A: Tensor, p: float) -> Tensor:
    """Divide every column of A [..., n, n] by its L_p norm: for p = 1 no step grows in the 1-norm."""
    return A / A.abs().pow(p).sum(-2, keepdim=True).clamp_min(1e-12).pow(1 / p)
