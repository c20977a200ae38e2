"""Retention (RetNet): a constant decay per head, rotary phases, normalised heads and a swish gate.  arXiv 2307.08621

    S_t = gamma_h e^{i theta} S_{t-1} + k_t v_t^T     y_t = Re(q_t^T S_t)     gamma_h = 1 - 2^{-5-h}     (eq. 5 to 8)

The normalisation of each head makes the paper's further scalings of the scores drop out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, pair_up, precise, rope_angles, split_size
from ...system import System
from ..registry import register


@register("retention")
class Retention(Layer):
    """Heads of retention, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads); even.
        expand: width of the values over d_model.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, expand: int = 2) -> None:
        super().__init__(d_model)
        self.n_heads, self.d_state = n_heads, d_state or split_size(d_model, n_heads)
        p = split_size(expand * d_model, n_heads)
        rope_angles(self.d_state, 10_000.0)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, expand * d_model, bias=False)
        self.gate_proj = nn.Linear(d_model, expand * d_model, bias=False)
        self.norm = HeadNorm(p, affine=False)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        k = k * self.d_state**-0.5
        h = torch.arange(self.n_heads, dtype=precise(u).dtype, device=u.device)  # [H]
        phase = rope_angles(self.d_state, 10_000.0, u.device)  # [1,n/2]
        return System(pair_up(q), pair_up(k, conjugate=True), v, log_decay=torch.log1p(-(2.0 ** (-5 - h))), phase=phase)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))  # [B,T,d_model]
