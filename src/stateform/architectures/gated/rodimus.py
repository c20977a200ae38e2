"""Rodimus: a temperature shapes how a gate forgets and what it lets in.  arXiv 2410.06577

    S_t = diag(exp(-tau_t g_t)) S_{t-1} + (g_t^tau_t * k_t) v_t^T     y_t = q_t^T S_t
    g_t = softplus(W_g u_t + b),  tau_t = sigmoid(W_tau u_t + b),  k_t of length 1

The read is normalised per head and gated by silu(W_z u_t).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, heads, normalised_size, precise, unit
from ...system import System
from ..registry import register


@register("rodimus")
class Rodimus(Layer):
    """Heads of data-dependent tempered selection behind a short convolution.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolution.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4) -> None:
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        self.n_heads, keys = n_heads, n_heads * self.d_state
        self.conv = ShortConv(d_model, d_conv, "conv")
        self.q_proj, self.k_proj = (nn.Linear(d_model, keys, bias=False) for _ in range(2))
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.g_proj, self.tau_proj = nn.Linear(d_model, keys), nn.Linear(d_model, keys)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        x = self.conv(u, past)
        q, k = heads(self.q_proj(x), self.n_heads), unit(heads(self.k_proj(x), self.n_heads))  # [B,T,H,n]
        g = F.softplus(precise(heads(self.g_proj(x), self.n_heads)))
        tau = torch.sigmoid(precise(heads(self.tau_proj(x), self.n_heads)))
        k = (g.pow(tau) * k).to(k.dtype)
        return System(q * self.d_state**-0.5, k, heads(self.v_proj(x), self.n_heads), log_decay=-tau * g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))  # [B,T,d_model]
