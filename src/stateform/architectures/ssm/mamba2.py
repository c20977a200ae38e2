"""Mamba-2 (SSD): one decay exp(Delta A) per head, B and C shared by the heads of a group.  arXiv 2405.21060

    S_t = exp(Delta_t A) S_{t-1} + Delta_t B_t x_t^T     y_t = C_t^T S_t + D x_t     (eq. 16)

The block around it is that of section 7.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, heads, inverse_softplus, log_uniform, precise, signed, split_size
from ...system import System
from ..registry import register


@register("mamba2")
class Mamba2(Layer):
    """A short convolution, selective heads, a gated norm.

    Args:
        d_model: width.
        d_state: keys.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        d_head: values per head (default 64, or the inner width if that is smaller).
        n_groups: groups of heads that share B and C.
        allow_negative_eigenvalues: the decay 2 a - 1 in (-1,1), instead of a in (0,1).
    """

    contractive = True
    later: ClassVar = {"allow_negative_eigenvalues": False}

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        d_head: int | None = None,
        n_groups: int = 1,
        allow_negative_eigenvalues: bool = False,
    ) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        d_head = d_head or min(64, inner)
        require(
            inner % d_head == 0,
            f"the inner width expand * d_model = {inner} is not divisible by d_head = {d_head}; choose another d_head",
        )
        self.d_inner, self.d_state, self.n_heads, self.n_groups = inner, d_state, inner // d_head, n_groups
        split_size(self.n_heads, n_groups, "the number of heads", "n_groups")
        self.allow_negative_eigenvalues = allow_negative_eigenvalues
        self.in_proj = nn.Linear(d_model, inner + 2 * n_groups * d_state, bias=False)
        self.dt_proj = nn.Linear(d_model, self.n_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, inner, bias=False)
        self.conv = ShortConv(inner + 2 * n_groups * d_state, d_conv, "conv", bias=True)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(self.n_heads, 1e-3, 1e-1)))
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = HeadNorm(inner, eps=1e-5, groups=n_groups)  # as the published implementations do
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        keys = self.n_groups * self.d_state
        x, B, C = self.conv(self.in_proj(u), past).split([self.d_inner, keys, keys], -1)
        dt = F.softplus(precise(self.dt_proj(u)) + precise(self.dt_bias))  # [B,T,H]
        g = -precise(self.A_log).exp() * dt  # [B,T,H]
        g, sign = signed(g, self.allow_negative_eigenvalues)
        B, C = heads(B, self.n_groups), heads(C, self.n_groups)  # [B,T,G,n]
        return System(C, B, heads(x, self.n_heads), log_decay=g, sign=sign, b=dt, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2), self.gate_proj(u), first=True))  # [B,T,d_model]
