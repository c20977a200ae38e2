"""Linear recurrent unit: constant complex diagonal, dense B and C, the modes started on a ring.  arXiv 2303.06349

    h_t = lambda h_{t-1} + gamma B u_t     y_t = Re(C h_t) + D u_t                          (eq. 3, 6, 7)
    lambda = exp(-exp(nu) + i exp(theta))     gamma = sqrt(1 - |lambda|^2) at the start

The modes are the heads of the System.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import above_zero, precise
from ...system import System
from ...system.precision import without_autocast
from ..registry import register


@register("lru")
class LRU(Layer):
    """One diagonal system between dense maps.

    Args:
        d_model: width.
        d_state: modes (complex).
        r_min: least initial modulus.
        r_max: largest initial modulus.
        max_phase: largest initial angle, radians.
    """

    contractive = True

    def __init__(
        self, d_model: int, *, d_state: int = 64, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * math.pi
    ) -> None:
        super().__init__(d_model)
        require(0 <= r_min < r_max <= 1, f"r_min and r_max are {r_min} and {r_max}; expected 0 <= r_min < r_max <= 1")
        above_zero("max_phase", max_phase)
        modulus2 = torch.rand(d_state) * (r_max**2 - r_min**2) + r_min**2
        modulus2 = modulus2.clamp(1e-6, 1 - 1e-6)
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(modulus2)))
        self.theta_log = nn.Parameter(torch.log(max_phase * torch.rand(d_state).clamp_min(1e-6)))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-modulus2))
        self.B = nn.Parameter(torch.randn(d_state, d_model, 2) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) / math.sqrt(d_state))
        self.D = nn.Parameter(torch.randn(d_model))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        B = torch.view_as_complex(precise(self.B)) * precise(self.gamma_log).exp().unsqueeze(-1)  # [n,d_model]
        x = precise(u)
        with without_autocast(u.device):  # there is no complex half precision
            k = torch.complex(x @ B.real.T, x @ B.imag.T).unsqueeze(-1)  # [B,T,n,1]
        C = torch.view_as_complex(precise(self.C)).unsqueeze(-1)  # [d_model,n,1]
        nu, theta = -precise(self.nu_log).exp(), precise(self.theta_log).exp()
        return System(None, k, None, log_decay=nu, phase=theta, w_in=B.unsqueeze(1), w_out=C)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return y.flatten(2).to(u.dtype) + self.D * u
