"""FoX, the forgetting transformer: softmax attention whose weights fade by gates of the tokens.  arXiv 2503.02130

    alpha_ij ~ exp( q_i^T k_j / sqrt(n) + log f_{j+1} + ... + log f_i ),     f_t = sigmoid(W_f u_t)

With all gates open it is softmax attention: hence the base class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Past
from ...layer.parts import HeadNorm, precise
from ...system import SoftmaxRead, System
from ..registry import register
from .softmax import Softmax


@register("fox")
class FoX(Softmax):
    """Heads of softmax attention with a forget gate each.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        positions: "none" or "rope".
        qk_norm: queries and keys are normalised per head (the Pro block).
        gate: the output is normalised per head and gated by a sigmoid of the token (the Pro block).
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        positions: Literal["rope", "none"] = "none", qk_norm: bool = False, gate: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        self.f_proj = nn.Linear(d_model, n_heads)
        self.q_norm, self.k_norm = (HeadNorm(self.d_state) if qk_norm else None for _ in range(2))
        self.norm = HeadNorm(d_model // n_heads) if gate else None
        self.gate_proj = nn.Linear(d_model, d_model, bias=False) if gate else None

    def heads_of(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads_of(u)
        if self.q_norm is None or self.k_norm is None:
            return q, k, v
        return self.q_norm(q), self.k_norm(k), v

    def system(self, u: Tensor, past: Past | None = None) -> System:
        g = F.logsigmoid(precise(self.f_proj(u)))  # [B,T,H]
        return replace(super().system(u, past), readout=SoftmaxRead(forget=g))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        if self.norm is None or self.gate_proj is None:
            return super().output(y, u, system, past)
        return self.out_proj(self.norm(y).flatten(2) * torch.sigmoid(self.gate_proj(u)))  # [B,T,d_model]
