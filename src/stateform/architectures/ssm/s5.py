"""S5: one complex diagonal system for all channels, with dense B and C, discretised exactly (ZOH).  arXiv 2208.04933

    h_t = exp(dt Lambda) h_{t-1} + (exp(dt Lambda) - 1)/Lambda B u_t     (section 3)
    y_t = 2 Re(C h_t) + D u_t

A gate follows: z = gelu(y), z * sigmoid(W z).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import log_uniform, precise
from ...system import System
from ...system.discretise import log_decay_and_gain
from ...system.precision import without_autocast
from ..registry import register
from .hippo import diagonalised_legs


@register("s5")
class S5(Layer):
    """One diagonal system between dense maps, gated.

    Args:
        d_model: width.
        d_state: states, complex conjugate pairs: d_state / 2 modes are kept.
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    contractive = True

    def __init__(self, d_model: int, *, d_state: int = 64, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        super().__init__(d_model)
        require(d_state % 2 == 0, f"d_state is {d_state}; S5 keeps conjugate pairs: expected an even number")
        half = d_state // 2
        Lambda, _, _ = diagonalised_legs(d_state)
        kept = Lambda[half:]  # frequencies ascend: these are the positive ones
        self.log_decay_rate = nn.Parameter((-kept.real).log().to(torch.get_default_dtype()))
        self.frequency = nn.Parameter(kept.imag.to(torch.get_default_dtype()))
        self.log_dt = nn.Parameter(log_uniform(half, dt_min, dt_max).log())
        self.B = nn.Parameter(torch.randn(half, d_model, 2) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(d_model, half, 2) / math.sqrt(half))
        self.D = nn.Parameter(torch.randn(d_model))
        self.gate_proj = nn.Linear(d_model, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        Lambda = torch.complex(-precise(self.log_decay_rate).exp(), precise(self.frequency))
        step, gain = log_decay_and_gain(Lambda, precise(self.log_dt).exp())
        B = torch.view_as_complex(precise(self.B)) * gain.unsqueeze(-1)  # [n,d_model]
        x = precise(u)
        with without_autocast(u.device):  # there is no complex half precision
            k = torch.complex(x @ B.real.T, x @ B.imag.T).unsqueeze(-1)  # [B,T,n,1]
        C = 2 * torch.view_as_complex(precise(self.C)).unsqueeze(-1)  # [d_model,n,1]
        return System(None, k, None, log_decay=step.real, phase=step.imag, w_in=B.unsqueeze(1), w_out=C)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        z = F.gelu(y.flatten(2).to(u.dtype) + self.D * u)
        return z * torch.sigmoid(self.gate_proj(z))
