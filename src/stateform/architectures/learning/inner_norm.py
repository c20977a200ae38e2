"""The normalisation inside a model that learns, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...graph import constant
from ...layer.parts import plain, precise


class InnerNorm(nn.Module):
    """Layer normalisation of each head's values, [B,T,H,p], with a weight and a bias per head, and its gradient."""

    def __init__(self, n_heads: int, p: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(n_heads, p)), nn.Parameter(torch.zeros(n_heads, p))

    def standardised(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Give (z - mean) / std and std."""
        z = z - z.mean(-1, keepdim=True)
        std = torch.sqrt(z.square().mean(-1, keepdim=True) + constant(self.eps))
        return z / std, std

    def forward(self, z: Tensor) -> Tensor:
        return precise(self.weight) * self.standardised(z)[0] + precise(self.bias)

    def descent(self, z: Tensor, target: Tensor) -> Tensor:
        """Find minus the gradient of 1/2 ||LN(z) - target||^2 by z."""
        x, std = self.standardised(z)
        e = precise(self.weight) * (target - precise(self.weight) * x - precise(self.bias))
        return (e - e.mean(-1, keepdim=True) - x * (e * x).mean(-1, keepdim=True)) / std


def descent(norm: nn.Module, z: Tensor, target: Tensor) -> Tensor:
    """Find minus the gradient of 1/2 ||norm(z) - target||^2 by z, through whatever was put on the norm too."""
    if isinstance(norm, InnerNorm) and plain(norm, InnerNorm):
        return norm.descent(z, target)
    y, gradient, *_ = torch.func.vjp(norm, z)
    (by_z,) = gradient(target - y)
    found: Tensor = by_z
    return found
