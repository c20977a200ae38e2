"""Longhorn: a state-space model whose step is the solution of an online regression.  arXiv 2407.14207

    S_t = (1 - Delta_t * k_t^2) * S_{t-1} + Delta_t x_t k_t     y_t = q_t^T S_t + D x_t
    Delta_t = beta_t / (1 + beta_t k_t^T k_t),     beta_t = sigmoid(W_beta u_t)

A head per channel, with one value each; it stands between a short convolution and a silu gate, as Mamba does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Layer, Past, ShortConv
from ...layer.parts import gated, precise
from ...system import System
from ..registry import register


@register("longhorn")
class Longhorn(Layer):
    """A short convolution, channels that learn online, a gate.

    Args:
        d_model: width.
        d_state: keys.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        rank: rank of the map to beta (default d_model / 16, rounded up).
    """

    contractive = True

    def __init__(
        self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, rank: int | None = None
    ) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        self.d_inner, self.d_state, self.rank = inner, d_state, rank or -(-d_model // 16)
        self.in_proj = nn.Linear(d_model, inner, bias=False)
        self.gate_proj = nn.Linear(d_model, inner, bias=False)
        self.conv = ShortConv(inner, d_conv, "conv", bias=True)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.beta_proj = nn.Linear(self.rank, inner)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        x = self.conv(self.in_proj(u), past)  # [B,T,channels]
        beta, k, q = self.x_proj(x).split([self.rank, self.d_state, self.d_state], -1)
        beta, keys = torch.sigmoid(precise(self.beta_proj(beta))), precise(k).square()
        delta = beta / (1 + beta * keys.sum(-1, keepdim=True))  # [B,T,channels]
        g = torch.log1p(-delta.unsqueeze(-1) * keys.unsqueeze(2))  # [B,T,channels,n]
        return System(q.unsqueeze(2), k.unsqueeze(2), x.unsqueeze(-1), log_decay=g, b=delta, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(gated(y, self.gate_proj(u)))  # [B,T,d_model]
