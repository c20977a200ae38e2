"""Hedgehog: linear attention with learned features that are softmaxes over the keys of a head.  arXiv 2402.04347

    phi(x) = [softmax(W x), softmax(-W x)]
    y_t = sum_j phi(q_t) . phi(k_j) v_j / sum_j phi(q_t) . phi(k_j)

W, of queries and keys apart, is a matrix per head and begins as the identity. But for the features it is linear
attention: hence the base class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Past
from ...layer.parts import heads, precise
from ...system import System
from ..registry import register
from .linear import Linear


@register("hedgehog")
class Hedgehog(Linear):
    """Heads of linear attention with learned spiky features.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head before the features, of which there are twice as many (default d_model / n_heads).
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model, n_heads, d_state=d_state)
        one = torch.eye(self.d_state).expand(n_heads, -1, -1)
        self.q_map, self.k_map = nn.Parameter(one.clone()), nn.Parameter(one.clone())  # [H,n,n]

    def features(self, x: Tensor, W: Tensor) -> Tensor:
        """Map x [B,T,H,n] to phi(x) [B,T,H,2n]."""
        z = precise(torch.einsum("bthn,hmn->bthm", heads(x, self.n_heads), W))
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).to(x.dtype)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k = self.features(self.q_proj(u), self.q_map), self.features(self.k_proj(u), self.k_map)
        return System(q, k, heads(self.v_proj(u), self.n_heads), eta="sum")
