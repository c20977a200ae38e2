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


def spikes(x: Tensor, W: Tensor) -> Tensor:
    """Map x [B,T,H,n] by W [H,n,n] to phi(x) [B,T,H,2n]."""
    z = precise(torch.einsum("bthn,hmn->bthm", x, W.to(x.dtype)))
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1).to(x.dtype)


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

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        return System(spikes(q, self.q_map), spikes(k, self.k_map), v, eta="sum")
