"""Gated DeltaNet-2: the delta rule erases by a gate per key and writes by a gate per value.  arXiv 2605.22791

    S_t = (I - k_t (e_t * k_t)^T) diag(a_t) S_{t-1} + k_t (s_t * v_t)^T
    e_t = sigmoid(W_e u_t),  s_t = sigmoid(W_s u_t),  a_t = exp(-exp(A) softplus(W u_t + dt))

With both gates equal to beta it is KDA: hence the base class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Past
from ...layer.parts import heads, precise
from ...system import System
from ..registry import register
from .kda import KDA


@register("gated_deltanet2")
class GatedDeltaNet2(KDA):
    """Heads of the delta rule with a decay, an erase gate and a write gate, behind short convolutions.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        gate_rank: rank of the maps to decay and output gate (default d_model / n_heads).
    """

    contractive = False

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        gate_rank: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, d_state=d_state, d_conv=d_conv, gate_rank=gate_rank)
        del self.beta_proj
        self.e_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.s_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = self.reads(u, past)
        erase, write = (torch.sigmoid(heads(f(u), self.n_heads)) for f in (self.e_proj, self.s_proj))  # [B,T,H,n or p]
        g = self.log_decay(u)  # [B,T,H,n]
        return System(q, k, write * v, log_decay=g, f=k, w=(g.exp() * precise(-erase * k)).to(k.dtype))
