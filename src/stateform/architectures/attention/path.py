"""PaTH: softmax attention whose positions are products of reflections, which the tokens write.  arXiv 2505.16381

    alpha_ij ~ exp( q_i^T H_i ... H_{j+1} k_j / sqrt(n) + g_{j+1} + ... + g_i )
    H_t = I - beta_t w_t w_t^T,    w_t = conv(W u)_t of length 1,    beta_t = 2 sigmoid(W_b u_t)

The gate g is that of arXiv 2503.02130. With beta = 0 and without it, this is softmax attention without positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import heads, precise, split_size, unit
from ...system import System
from ..registry import register


@register("path")
class Path(Layer):
    """Heads of softmax attention whose keys are reflected on their way.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolution of w.
        rank: width of the map of w (default d_model / 4).
        forget: a forget gate on the weights (PaTH-FoX).
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 3, rank: int | None = None,
        forget: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state = n_heads, d_state or p
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        rank = rank or max(1, d_model // 4)
        self.w_proj = nn.Sequential(
            nn.Linear(d_model, rank, bias=False), nn.Linear(rank, n_heads * self.d_state, bias=False)
        )
        self.w_conv = ShortConv(n_heads * self.d_state, d_conv, "w_conv")
        self.b_proj = nn.Linear(d_model, n_heads)
        self.forget_proj = nn.Linear(d_model, n_heads) if forget else None
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        w = unit(heads(self.w_conv(self.w_proj(u), past), self.n_heads))  # [B,T,H,n]
        beta = 2 * torch.sigmoid(self.b_proj(u)).unsqueeze(-1)  # [B,T,H,1]
        g = None if self.forget_proj is None else F.logsigmoid(precise(self.forget_proj(u)))  # [B,T,H]
        return System(q * self.d_state**-0.5, k, v, f=-beta * w, w=w, forget=g, readout="exp", eta="sum")
