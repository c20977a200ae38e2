"""LSSL: the dense HiPPO-LegS matrix, discretised by the bilinear rule with a step per channel.  arXiv 2110.13985

    h_t = (I - dt A / 2)^{-1} (I + dt A / 2) h_{t-1} + (I - dt A / 2)^{-1} dt B u_t     (eq. 3 to 5)
    y_t = C h_t + D u_t

GELU and a gated mixing of the channels follow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...layer import Past
from ...layer.parts import precise
from ...system import System
from ...system.discretise import dense_steps
from ..registry import register
from .channels import Channels
from .hippo import hippo_legs


@register("lssl")
class LSSL(Channels):
    """Channels of dense systems, then GELU and a gated mixing.

    Args:
        d_model: width (channels, which are the heads).
        d_state: states per channel.
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    A: Tensor
    B: Tensor

    def __init__(self, d_model: int, *, d_state: int = 16, dt_min: float = 1e-2, dt_max: float = 1e-1) -> None:
        super().__init__(d_model, dt_min, dt_max)
        A, B, _ = hippo_legs(d_state)
        self.register_buffer("A", A.to(torch.get_default_dtype()))
        self.register_buffer("B", B.to(torch.get_default_dtype()))
        self.C = nn.Parameter(torch.randn(d_model, d_state) / math.sqrt(d_state))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        dt = precise(self.log_dt).exp()[:, None, None]  # [channels,1,1]
        transition, k = dense_steps(precise(self.A), precise(self.B).unsqueeze(-1), dt, "bilinear")
        k = k.squeeze(-1).to(u.dtype)  # [channels,n]
        return System(self.C, k, u.unsqueeze(-1), transition=transition.to(u.dtype), d=self.D)
