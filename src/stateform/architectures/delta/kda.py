"""Kimi Delta Attention: the delta rule behind a decay per key.  arXiv 2510.26692

    S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T     y_t = (q_t / sqrt(n))^T S_t     (eq. 1)
    a_t = exp(-exp(A) softplus(W u_t + dt))

The read is normalised per head and gated by a sigmoid. DeltaNet is the special case without decay and gate: hence the
base class.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
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
        allow_negative_eigenvalues: beta in (0,2) instead of (0,1).
        least_log_decay: L, for decays exp(L sigmoid(exp(A) (W u_t + dt))), which are exp(L) at least (GLM-5).
    """

    contractive = True
    later: ClassVar = {"allow_negative_eigenvalues": False, "least_log_decay": None}

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        d_state: int | None = None,
        d_conv: int = 4,
        gate_rank: int | None = None,
        allow_negative_eigenvalues: bool = False,
        least_log_decay: float | None = None,
    ) -> None:
        super().__init__(
            d_model, n_heads, d_state=d_state, d_conv=d_conv, allow_negative_eigenvalues=allow_negative_eigenvalues
        )
        below = least_log_decay is None or -torch.inf < least_log_decay < 0
        require(below, f"least_log_decay is {least_log_decay}; expected a number below 0, or None")
        self.least_log_decay = least_log_decay
        keys, rank = n_heads * self.d_state, gate_rank or split_size(d_model, n_heads)
        self.a_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, keys, bias=False))
        self.gate_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(keys, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        return delta_rule(q, k, v, beta, self.log_decay(u))

    def log_decay(self, u: Tensor) -> Tensor:
        """Compute log a_t, [B,T,H,n]."""
        x = heads(precise(self.a_proj(u)) + precise(self.dt_bias), self.n_heads)
        rate = precise(self.A_log).exp().unsqueeze(-1)
        return -rate * F.softplus(x) if self.least_log_decay is None else self.least_log_decay * torch.sigmoid(rate * x)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u), "sigmoid"))  # [B,T,d_model]
