"""Mamba (S6): per channel and state a decay exp(Delta A), with Delta, B and C from the input.  arXiv 2312.00752

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t     y_t = C_t^T h_t + D x_t     (algorithm 2)
    Delta_t = softplus(W u_t + b)

It stands between a short convolution and a silu gate.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import gated, inverse_softplus, log_uniform, precise, signed
from ...system import System
from ..registry import register


@register("mamba")
class Mamba(Layer):
    """A short convolution, selective channels, a gate.

    Args:
        d_model: width.
        d_state: states per channel.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        dt_rank: rank of the map to Delta (default d_model / 16, rounded up).
        allow_negative_eigenvalues: the decay 2 a - 1 in (-1,1), instead of a in (0,1).
    """

    contractive = True
    later: ClassVar = {"allow_negative_eigenvalues": False}

    def __init__(
        self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None,
        allow_negative_eigenvalues: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.allow_negative_eigenvalues = allow_negative_eigenvalues
        inner = expand * d_model
        self.d_inner, self.d_state, self.dt_rank = inner, d_state, dt_rank or -(-d_model // 16)
        self.in_proj = nn.Linear(d_model, inner, bias=False)
        self.gate_proj = nn.Linear(d_model, inner, bias=False)
        self.conv = ShortConv(inner, d_conv, "conv", bias=True)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(
            torch.arange(1, d_state + 1, dtype=torch.get_default_dtype()).log().expand(inner, d_state).clone()
        )
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(inner, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        x = self.conv(self.in_proj(u), past)  # [B,T,channels]
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = F.softplus(precise(self.dt_proj(dt)))  # [B,T,channels]
        A = -precise(self.A_log).exp()  # [channels,n]
        B, C, x = B.unsqueeze(2), C.unsqueeze(2), x.unsqueeze(-1)
        if self.allow_negative_eigenvalues:
            g, sign = signed(dt.unsqueeze(-1) * A)  # [B,T,channels,n]
            return System(C, B, x, log_decay=g, sign=sign, b=dt, d=self.D)
        return System(C, B, x, log_decay=(dt, A), b=dt, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(gated(y, self.gate_proj(u)))  # [B,T,d_model]
