"""Differential attention: the difference of two softmax attentions over the same values.  arXiv 2410.05258

    y_t = ( softmax(q^1_t K^1^T / sqrt(n)) - lambda softmax(q^2_t K^2^T / sqrt(n)) ) V     (eq. 1)
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init     (eq. 2)

The two are neighbouring heads of one System, which share their values. Each difference is normalised and multiplied
with 1 - lambda_init.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, more_than_a_sign, pair_up, precise, rope_angles, split_size
from ...system import System
from ..registry import register


@register("differential")
class Differential(Layer):
    """Pairs of heads of softmax attention, subtracted.

    Args:
        d_model: width.
        n_heads: pairs of heads.
        d_state: keys of each head (default d_model / n_heads / 2, the paper's).
        lambda_init: 0.8 in the limit of deep layers; the paper takes 0.8 - 0.6 exp(-0.3 depth).
        rope_base: the largest wavelength is 2 pi times about this.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, lambda_init: float = 0.8,
        rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
        require(0 <= lambda_init < 1, f"lambda_init is {lambda_init}; expected 0 or more, less than 1")
        self.n_heads, self.d_state, self.lambda_init = n_heads, d_state or max(2, p // 2), lambda_init
        self.rope_base = rope_base
        rope_angles(self.d_state, rope_base)
        self.q_proj = nn.Linear(d_model, 2 * n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, 2 * n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.lambdas = nn.Parameter(0.1 * torch.randn(4, self.d_state))  # l_q1, l_k1, l_q2, l_k2
        self.norm = HeadNorm(p, eps=1e-5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k = (heads(f(u), 2 * self.n_heads) for f in (self.q_proj, self.k_proj))  # [B,T,2H,n]
        phase = rope_angles(self.d_state, self.rope_base, u.device)  # [1,n/2]
        q, k = pair_up(q * self.d_state**-0.5), pair_up(k, conjugate=True)
        return System(q, k, heads(self.v_proj(u), self.n_heads), phase=phase, readout="exp", eta="sum")

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        q1, k1, q2, k2 = precise(self.lambdas)
        weight = (q1 @ k1).exp() - (q2 @ k2).exp() + self.lambda_init
        one, two = y.unflatten(2, (-1, 2)).unbind(3)  # [B,T,H,p]
        y = self.norm(one - weight.to(y.dtype) * two) * (1 - self.lambda_init)
        return self.out_proj(y.flatten(2))  # [B,T,d_model]
