"""A as smaller blocks, one for each group of poles that can be told from the others.

    left_g A right_g = A_g,    left_g right_g = 1,    left_g right_h = 0 for another group h

by cuts in the complex plane, as long as the coordinates in which both sides part lose few digits. Source: Bavely and
Stewart, SIAM J. Numer. Anal. 16 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, schur, solve_sylvester
from torch import Tensor

LIMIT = 1e4
"""The largest ||X|| of a change of coordinates [1, X; 0, 1] that parts two groups: so many roundings it may cost."""


def separated(A: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Compute the maps (left [m,N], right [N,m]) of each group of poles of A [N,N], complex; right is orthonormal."""
    return [(torch.as_tensor(left), torch.as_tensor(right)) for left, right in _parted(A.numpy(force=True) + 0j)]


def _parted(A: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    two = _halves(A)
    if two is None:
        yield np.eye(len(A), dtype=complex), np.eye(len(A), dtype=complex)
        return
    for left, right in two:
        for inner, outer in _parted(left @ A @ right):
            yield inner @ left, right @ outer


def _halves(A: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Compute the maps of two groups of poles, or None where no cut parts them well enough."""
    for part, at in _cuts(np.linalg.eigvals(A)):
        try:
            T, U, k = schur(A, output="complex", sort=lambda pole, part=part, at=at: part(pole) < at)
        except LinAlgError:  # the poles on both sides of the cut are too near for an order
            continue
        if not 0 < k < len(A):
            continue
        X = solve_sylvester(T[:k, :k], -T[k:, k:], -T[:k, k:])  # T [X; 1] = [X; 1] T_22
        if not np.linalg.norm(X, 2) <= LIMIT:
            continue
        Q, R = np.linalg.qr(U[:, :k] @ X + U[:, k:])
        return [(U[:, :k].conj().T - X @ U[:, k:].conj().T, U[:, :k]), (R @ U[:, k:].conj().T, Q)]
    return None


def _cuts(poles: np.ndarray) -> list[tuple[Callable[[Any], Any], float]]:
    """List cuts along the real and imaginary axes, in a wide gap, with halves as even as can be; the better first."""
    found = []
    for part in (np.real, np.imag) if len(poles) > 1 else ():
        x = np.sort(part(poles))
        even = np.minimum(np.arange(1, len(x)), np.arange(len(x) - 1, 0, -1))
        k = int((np.diff(x) * even).argmax())
        found.append((float((x[k + 1] - x[k]) * even[k]), part, float(x[k] + x[k + 1]) / 2))
    return [(part, at) for _, part, at in sorted(found, key=lambda cut: -cut[0])]
