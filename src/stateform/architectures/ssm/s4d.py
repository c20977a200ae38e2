"""S4D: per channel a constant complex diagonal system, discretised exactly (ZOH).  arXiv 2206.11893

    h_t = exp(dt A) h_{t-1} + u_t     A = -exp(.) + i omega     (section 3)
    y_t = 2 Re(C (exp(dt A) - 1)/A h_t) + D u_t

GELU and a gated mixing of the channels follow.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import log_uniform, precise
from ...system import System
from ...system.discretise import log_decay_and_gain
from ..registry import register
from .hippo import legs_imaginary


@register("s4d")
class S4D(Layer):
    """Channels of diagonal systems, then GELU and a gated mixing.

    Args:
        d_model: width (channels, which are the heads).
        d_state: states per channel, complex conjugate pairs: d_state / 2 are kept.
        init: "lin" (omega_n = pi n), "inv" or "legs" (the imaginary part approximated) (section 4).
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: Literal["lin", "inv", "legs"] = "lin",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__(d_model)
        require(d_state % 2 == 0, f"d_state is {d_state}; S4D keeps conjugate pairs: expected an even number")
        half = d_state // 2
        n = torch.arange(half)
        omega = math.pi * n if init == "lin" else d_state / math.pi * (d_state / (2 * n + 1) - 1)
        if init == "legs":
            omega = legs_imaginary(d_state)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.A_log = nn.Parameter(torch.full((d_model, half), math.log(0.5)))
        self.A_imag = nn.Parameter(omega.to(torch.get_default_dtype()).expand(d_model, half).clone())
        self.C = nn.Parameter(torch.randn(d_model, half, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        dt = precise(self.log_dt).exp().unsqueeze(-1)  # [channels,1]
        A = torch.complex(-precise(self.A_log).exp(), precise(self.A_imag))  # [channels,n]
        step, gain = log_decay_and_gain(A, dt)
        q = 2 * torch.view_as_complex(precise(self.C)) * gain  # [channels,n]
        ones = torch.ones(1, A.shape[1], dtype=u.dtype, device=u.device)
        return System(q, ones, u.unsqueeze(-1), log_decay=step.real, phase=step.imag, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y.flatten(2))), -1)  # [B,T,d_model]
