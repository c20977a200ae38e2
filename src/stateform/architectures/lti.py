"""More time-invariant systems: S4, S5, DSS, LSSL, and the short convolution as a shift register."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past
from ..layer.parts import log_uniform, precise
from ..system import System
from ..system.discretise import dense_steps, log_decay_and_gain
from ..system.precision import without_autocast
from .registry import register
from .ssm import S4D


def hippo_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS: A [n,n], B [n], and P [n] with A + P P^T normal; float64 (arXiv 2111.00396, eq. 2, appendix C.1)."""
    i = torch.arange(n, dtype=torch.float64)
    B = torch.sqrt(2 * i + 1)
    A = -(torch.tril(B[:, None] * B[None, :], -1) + torch.diag(i + 1))
    return A, B, torch.sqrt(i + 0.5)


def diagonalised_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, B, P of HiPPO-LegS in the eigenbasis of its normal part, A = V (diag(Lambda) - P P*) V*; complex128."""
    A, B, P = hippo_legs(n)
    skew = A + P[:, None] * P[None, :] + 0.5 * torch.eye(n, dtype=A.dtype)
    frequency, V = torch.linalg.eigh(-1j * skew)
    return -0.5 + 1j * frequency, V.mH @ B.to(V.dtype), V.mH @ P.to(V.dtype)


def log_and_angle(a: Tensor) -> tuple[Tensor, Tensor]:
    """A complex decay as its log modulus and its angle."""
    return a.abs().log(), a.angle()


def pairs_of(z: Tensor) -> nn.Parameter:
    """A complex tensor as a real parameter [..., 2]."""
    return nn.Parameter(torch.view_as_real(z).to(torch.get_default_dtype()).clone())


class _Channels(Layer):
    """One system per channel (heads = channels), then GELU and a gated mixing of the channels."""

    def __init__(self, d_model: int, dt_min: float, dt_max: float) -> None:
        super().__init__(d_model)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y.flatten(2))), -1)


@register("s4", paper="arXiv 2111.00396")
class S4(_Channels):
    """S4: diagonal plus low rank, discretised by the bilinear rule, which is a diagonal decay with rank-1 feedback.

    With A = Lambda - P P* and D = 1 / (2/dt - Lambda): decay = 4 D / dt - 1, f = -(4/dt) D P / (1 + P* D P),
    w = conj(P) D, k = 2 (D B - D P (P* D B) / (1 + P* D P)), y = Re(C h) + D u (Woodbury; appendix C.2).

    Args:
        d_model: width (channels, which are the heads).
        d_state: modes per channel (all of them are kept: the feedback couples conjugate pairs).
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    def __init__(self, d_model: int, *, d_state: int = 32, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        super().__init__(d_model, dt_min, dt_max)
        Lambda, B, P = diagonalised_legs(d_state)
        self.log_decay_rate = nn.Parameter((-Lambda.real).log().to(torch.get_default_dtype()))
        self.frequency = nn.Parameter(Lambda.imag.to(torch.get_default_dtype()))
        self.B, self.P = pairs_of(B), pairs_of(P)
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2) * 0.5**0.5)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        Lambda = torch.complex(-precise(self.log_decay_rate).exp(), precise(self.frequency))
        B, P, C = (torch.view_as_complex(precise(x)) for x in (self.B, self.P, self.C))
        rate = 2 / precise(self.log_dt).exp().unsqueeze(-1)
        D = 1 / (rate - Lambda)
        gain = 1 + (P.conj() * D * P).sum(-1, keepdim=True)
        w = P.conj() * D
        k = 2 * (D * B - D * P * (w * B).sum(-1, keepdim=True) / gain)
        log, phase = log_and_angle(2 * rate * D - 1)
        return System(C, k, u.unsqueeze(-1), log_decay=log, phase=phase, f=-2 * rate * D * P / gain, w=w, d=self.D)


@register("dss", paper="arXiv 2203.14343")
class DSS(S4D):
    """DSS (its exponential form): a constant complex diagonal system whose modes are read with free complex weights.

    h_t = exp(dt Lambda) h_{t-1} + u_t,  y_t = Re( W (exp(dt Lambda) - 1)/Lambda h_t ) + D u_t (proposition 1), with the
    spectrum of HiPPO-LegS at the start.

    Args:
        d_model: width (channels, which are the heads).
        d_state: states per channel; d_state / 2 modes are kept.
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    def __init__(self, d_model: int, *, d_state: int = 64, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        super().__init__(d_model, d_state=d_state, init="legs", dt_min=dt_min, dt_max=dt_max)


@register("s5", paper="arXiv 2208.04933")
class S5(Layer):
    """S5: one complex diagonal system for all channels, with dense B and C, discretised exactly (ZOH).

    h_t = exp(dt Lambda) h_{t-1} + (exp(dt Lambda) - 1)/Lambda B u_t,  y_t = 2 Re(C h_t) + D u_t (section 3), then a
    gate: z = gelu(y), z * sigmoid(W z).

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
        B = torch.view_as_complex(precise(self.B)) * gain.unsqueeze(-1)
        x = precise(u)
        with without_autocast(u.device):  # there is no complex half precision
            k = torch.complex(x @ B.real.T, x @ B.imag.T).unsqueeze(-1)
        C = 2 * torch.view_as_complex(precise(self.C)).unsqueeze(-1)
        return System(None, k, None, log_decay=step.real, phase=step.imag, w_in=B.unsqueeze(1), w_out=C)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        z = F.gelu(y.flatten(2).to(u.dtype) + self.D * u)
        return z * torch.sigmoid(self.gate_proj(z))


@register("lssl", paper="arXiv 2110.13985")
class LSSL(_Channels):
    """LSSL: the dense HiPPO-LegS matrix, discretised by the bilinear rule with a step per channel.

    h_t = (I - dt A / 2)^{-1} (I + dt A / 2) h_{t-1} + (I - dt A / 2)^{-1} dt B u_t,  y_t = C h_t + D u_t (eq. 3 to 5).

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
        dt = precise(self.log_dt).exp()[:, None, None]
        transition, k = dense_steps(precise(self.A), precise(self.B).unsqueeze(-1), dt, "bilinear")
        k = k.squeeze(-1).to(u.dtype)
        return System(self.C, k, u.unsqueeze(-1), transition=transition.to(u.dtype), d=self.D)


@register("short_conv", paper="arXiv 2511.23404")
class GatedShortConv(Layer):
    """The mixer of LFM2: a short convolution between two gates; its transition is a shift register.

    y_t = C_t * sum_j taps_j (B x)_{t-j},  B, C, x = W u (figure 2). S_t = shift S_{t-1} + e_0 (B x)_t, nilpotent.

    Args:
        d_model: width (channels, which are the heads).
        d_conv: taps, 2 or more.
    """

    def __init__(self, d_model: int, *, d_conv: int = 3) -> None:
        super().__init__(d_model)
        require(d_conv >= 2, f"a short convolution has {d_conv} taps; expected 2 or more")
        self.b_proj, self.c_proj, self.x_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.taps = nn.Parameter(torch.randn(d_model, d_conv) * d_conv**-0.5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        n = self.taps.shape[1]
        eye = torch.eye(n, dtype=u.dtype, device=u.device)
        shift = torch.diag(torch.ones(n - 1, dtype=u.dtype, device=u.device), -1)
        x = self.b_proj(u) * self.x_proj(u)
        return System(self.taps, eye[:1], x.unsqueeze(-1), transition=shift[None])

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.c_proj(u) * y.flatten(2))
