"""Kimi Delta Attention: the delta rule behind a decay per key.  arXiv 2510.26692

    S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T     y_t = (q_t / sqrt(n))^T S_t     (eq. 1)
    a_t = exp(-exp(A) softplus(W u_t + dt))

The read is normalised per head and gated by a sigmoid. DeltaNet is the special case without decay and gate: hence the
base class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Past
from ...layer.parts import heads, inverse_softplus, log_uniform, precise, split_size
from ...system import System
from ..registry import register
from .deltanet import DeltaNet
from .rule import delta_rule


@register("kda")
class KDA(DeltaNet):
    """Heads of the delta rule with a decay per key behind short convolutions, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        gate_rank: rank of the maps to decay and gate (default d_model / n_heads).
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        d_state: int | None = None,
        d_conv: int = 4,
        gate_rank: int | None = None,
    ) -> None:
        super().__init__(d_model, n_heads, d_state=d_state, d_conv=d_conv)
        keys, rank = n_heads * self.d_state, gate_rank or split_size(d_model, n_heads)
        self.a_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, keys, bias=False))
        self.gate_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(keys, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        dt = F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))
        g = -precise(self.A_log).exp().unsqueeze(-1) * heads(dt, self.n_heads)  # [B,T,H,n]
        return delta_rule(q, k, v, beta, g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u), "sigmoid"))  # [B,T,d_model]
