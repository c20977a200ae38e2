"""ABC, attention with bounded memory control: slots of which each is a weighted mean of what came.  arXiv 2110.02488

    K_t = sum_{j<=t} exp(s_j - z_t) k_j^T     V_t = sum_{j<=t} exp(s_j - z_t) v_j^T     per slot, s_j = W_s u_j
    y_t = V_t^T softmax(K_t q_t),             z_t = log sum_{j<=t} exp(s_j)

That is gated slot attention with the gates a_t = exp(z_{t-1} - z_t), for which 1 - a_t = exp(s_t - z_t): hence the
base class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...layer import Past
from ...layer.parts import heads, precise
from ..registry import register
from .gsa import GSA


@register("abc")
class ABC(GSA):
    """Heads of attention over slots that are running means.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        n_slots: slots m per head.
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_slots: int = 16) -> None:
        super().__init__(d_model, n_heads, d_state=d_state, n_slots=n_slots)

    def gates(self, u: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        s = precise(self.a_proj(u))
        before, z = past.log_sum("weights", s)
        return heads(before - z, self.n_heads), heads(torch.exp(s - z), self.n_heads)
