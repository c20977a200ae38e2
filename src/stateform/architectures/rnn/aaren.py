"""Aaren: attention with one learned query per head, which is a recurrent network.  arXiv 2405.13956

    y_t = sum_{j<=t} exp(q^T k_j / sqrt(n)) v_j / sum_{j<=t} exp(q^T k_j / sqrt(n))

Since the query is the same for every token, two sums and their common scale are all of the past.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Layer, Past
from ...layer.parts import heads, precise, split_size
from ...system import System
from ..registry import register


@register("aaren")
class Aaren(Layer):
    """Heads of attention by a learned query.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state = n_heads, d_state or p
        self.q = nn.Parameter(torch.randn(n_heads, self.d_state))
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        k, v = heads(self.k_proj(u), self.n_heads), heads(self.v_proj(u), self.n_heads)  # [B,T,H,n or p]
        log_b = (precise(k) * precise(self.q)).sum(-1) * self.d_state**-0.5  # [B,T,H]
        one = torch.ones(1, 1, dtype=v.dtype, device=v.device)
        return System(one, one, v, log_b=log_b, eta="sum")
