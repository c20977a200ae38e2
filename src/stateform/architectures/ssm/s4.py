"""S4: diagonal plus low rank, discretised by the bilinear rule: diagonal with rank-1 feedback.  arXiv 2111.00396

    A = Lambda - P P*     E = 1 / (2/dt - Lambda)     y_t = Re(C h_t) + D u_t     (appendix C.2)
    decay = 4 E / dt - 1     f = -(4/dt) E P / (1 + P* E P)     w = conj(P) E
    k = 2 (E B - E P (P* E B) / (1 + P* E P))

The inverse of I - dt A / 2 is Woodbury's. GELU and a gated mixing of the channels follow.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ...layer import Past
from ...layer.parts import precise
from ...system import System
from ..registry import register
from .channels import Channels
from .hippo import diagonalised_legs


def log_and_angle(a: Tensor) -> tuple[Tensor, Tensor]:
    """Give the log modulus and the angle of a complex decay."""
    return a.abs().log(), a.angle()


def pairs_of(z: Tensor) -> nn.Parameter:
    """Make a real parameter [..., 2] of a complex tensor."""
    return nn.Parameter(torch.view_as_real(z).to(torch.get_default_dtype()).clone())


@register("s4")
class S4(Channels):
    """Channels of diagonal plus low-rank systems, then GELU and a gated mixing.

    Args:
        d_model: width (channels, which are the heads).
        d_state: modes per channel (all of them are kept: the feedback couples conjugate pairs).
        dt_min: least initial step.
        dt_max: largest initial step.
        per_channel: each channel has a Lambda, a B and a P of its own, [channels,n], as in the released code.
    """

    later: ClassVar = {"per_channel": False}

    def __init__(
        self, d_model: int, *, d_state: int = 32, dt_min: float = 1e-3, dt_max: float = 1e-1, per_channel: bool = False
    ) -> None:
        super().__init__(d_model, dt_min, dt_max)
        Lambda, B, P = (x.expand(d_model, -1).clone() if per_channel else x for x in diagonalised_legs(d_state))
        self.log_decay_rate = nn.Parameter((-Lambda.real).log().to(torch.get_default_dtype()))
        self.frequency = nn.Parameter(Lambda.imag.to(torch.get_default_dtype()))
        self.B, self.P = pairs_of(B), pairs_of(P)
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) * 0.5**0.5)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        Lambda = torch.complex(-precise(self.log_decay_rate).exp(), precise(self.frequency))  # [n] or [channels,n]
        B, P, C = (torch.view_as_complex(precise(x)) for x in (self.B, self.P, self.C))
        rate = 2 / precise(self.log_dt).exp().unsqueeze(-1)  # [channels,1]
        D = 1 / (rate - Lambda)  # [channels,n]
        gain = 1 + (P.conj() * D * P).sum(-1, keepdim=True)
        w = P.conj() * D  # [channels,n]
        k = 2 * (D * B - D * P * (w * B).sum(-1, keepdim=True) / gain)  # [channels,n]
        log, phase = log_and_angle(2 * rate * D - 1)
        return System(C, k, u.unsqueeze(-1), log_decay=log, phase=phase, f=-2 * rate * D * P / gain, w=w, d=self.D)
