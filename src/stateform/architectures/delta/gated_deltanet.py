"""Gated DeltaNet: the delta rule behind a decay per head.  arXiv 2412.06464

    S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T     y_t = (q_t / sqrt(n))^T S_t     (eq. 10)
    a_t = exp(-exp(A) softplus(W u_t + dt))

The read is normalised per head and gated by silu(W_z u_t). DeltaNet is the special case without decay and gate:
hence the base class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Past
from ...layer.parts import inverse_softplus, log_uniform, precise
from ...system import System
from ..registry import register
from .deltanet import DeltaNet
from .rule import delta_rule


@register("gated_deltanet")
class GatedDeltaNet(DeltaNet):
    """Heads of the gated delta rule behind short convolutions, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        allow_negative_eigenvalues: beta in (0,2) instead of (0,1).
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        allow_negative_eigenvalues: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            d_model, n_heads, d_state=d_state, d_conv=d_conv, allow_negative_eigenvalues=allow_negative_eigenvalues
        )
        self.a_proj = nn.Linear(d_model, n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(n_heads, 1e-3, 1e-1)))
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        g = -precise(self.A_log).exp() * F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))  # [B,T,H]
        return delta_rule(q, k, v, beta, g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))  # [B,T,d_model]
