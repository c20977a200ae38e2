"""Comba: the delta rule erases at a key of its own, and the read is corrected by it.  arXiv 2506.02475

    S_t = a_t S_{t-1} - beta_t k_t (p_t^T S_{t-1}) + beta_t k_t v_t^T,     p_t = sigmoid(d) k_t
    y_t = (q_t - D p_t)^T S_t

a and beta are those of the gated delta rule: hence the base class. d and D are numbers per head; what is erased is read
before the decay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Past
from ...layer.parts import precise
from ...system import System
from ..registry import register
from .gated_deltanet import GatedDeltaNet


@register("comba")
class Comba(GatedDeltaNet):
    """Heads of the closed-loop delta rule behind short convolutions, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
    """

    contractive = False

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4) -> None:
        super().__init__(d_model, n_heads, d_state=d_state, d_conv=d_conv)
        self.decay = nn.Parameter(torch.ones(n_heads))  # d
        self.D = nn.Parameter(torch.ones(n_heads))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        g = -precise(self.A_log).exp() * F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))  # [B,T,H]
        p = torch.sigmoid(self.decay).unsqueeze(-1) * k  # [B,T,H,n]
        q = q - self.d_state**-0.5 * self.D.unsqueeze(-1) * p
        return System(q, k, v, log_decay=g, b=beta, f=k, w=-beta.unsqueeze(-1) * p)
