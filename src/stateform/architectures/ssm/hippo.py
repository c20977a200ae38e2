"""HiPPO-LegS, the matrix that most state-space models begin with."""

from __future__ import annotations

import torch
from torch import Tensor


def hippo_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give A [n,n], B [n], and P [n] with A + P P^T normal, in float64 (arXiv 2111.00396, eq. 2, appendix C.1)."""
    i = torch.arange(n, dtype=torch.float64)
    B = torch.sqrt(2 * i + 1)
    A = -(torch.tril(B[:, None] * B[None, :], -1) + torch.diag(i + 1))
    return A, B, torch.sqrt(i + 0.5)


def diagonalised_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give Lambda, B, P in the eigenbasis of the normal part, A = V (diag(Lambda) - P P*) V*; complex128."""
    A, B, P = hippo_legs(n)
    skew = A + P[:, None] * P[None, :] + 0.5 * torch.eye(n, dtype=A.dtype)
    frequency, V = torch.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequency, V.mH @ B.to(V.dtype), V.mH @ P.to(V.dtype)


def legs_imaginary(n: int) -> Tensor:
    """Find the imaginary parts of the eigenvalues of A + P P^T, the positive half, ascending."""
    A, _, P = hippo_legs(n)
    return torch.linalg.eigvals(A + P[:, None] * P[None, :]).imag.sort().values[n // 2 :]
