"""State-space models: S4D and LRU (constant), Mamba and Mamba-2 (selective)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past, ShortConv
from ..layer.parts import HeadNorm, above_zero, gated, heads, inverse_softplus, log_uniform, precise, split_size
from ..system import System
from ..system.discretise import log_decay_and_gain
from ..system.precision import without_autocast
from .registry import register


@register("s4d", paper="arXiv 2206.11893")
class S4D(Layer):
    """S4D: per channel a constant complex diagonal system, discretised exactly (ZOH), then GELU and a gated mixing.

    h_t = exp(dt A) h_{t-1} + u_t,  y_t = 2 Re( C (exp(dt A) - 1)/A h_t ) + D u_t,  A = -exp(.) + i omega (section 3).

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
            omega = _legs_imaginary(d_state)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.A_log = nn.Parameter(torch.full((d_model, half), math.log(0.5)))
        self.A_imag = nn.Parameter(omega.to(torch.get_default_dtype()).expand(d_model, half).clone())
        self.C = nn.Parameter(torch.randn(d_model, half, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        dt = precise(self.log_dt).exp().unsqueeze(-1)
        A = torch.complex(-precise(self.A_log).exp(), precise(self.A_imag))
        step, gain = log_decay_and_gain(A, dt)
        q = 2 * torch.view_as_complex(precise(self.C)) * gain
        ones = torch.ones(1, A.shape[1], dtype=u.dtype, device=u.device)
        return System(q, ones, u.unsqueeze(-1), log_decay=step.real, phase=step.imag, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y.flatten(2))), -1)


def _legs_imaginary(n: int) -> Tensor:
    """Imaginary parts of the eigenvalues of HiPPO-LegS plus its rank-1 correction, the positive half, ascending."""
    i = torch.arange(n, dtype=torch.float64)
    r = torch.sqrt(2 * i + 1)
    A = -(torch.tril(r[:, None] * r[None, :], -1) + torch.diag(i + 1))
    P = torch.sqrt(i + 0.5)
    return torch.linalg.eigvals(A + P[:, None] * P[None, :]).imag.sort().values[n // 2 :]


@register("lru", paper="arXiv 2303.06349")
class LRU(Layer):
    """Linear recurrent unit: constant complex diagonal, dense B and C, the modes started on a ring.

    h_t = lambda h_{t-1} + gamma B u_t,  y_t = Re(C h_t) + D u_t,  lambda = exp(-exp(nu) + i exp(theta)),
    gamma = sqrt(1 - |lambda|^2) at the start (eq. 3, 6, 7).

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
        B = torch.view_as_complex(precise(self.B)) * precise(self.gamma_log).exp().unsqueeze(-1)
        x = precise(u)
        with without_autocast(u.device):  # there is no complex half precision
            k = torch.complex(x @ B.real.T, x @ B.imag.T).unsqueeze(-1)
        C = torch.view_as_complex(precise(self.C)).unsqueeze(-1)
        nu, theta = -precise(self.nu_log).exp(), precise(self.theta_log).exp()
        return System(None, k, None, log_decay=nu, phase=theta, w_in=B.unsqueeze(1), w_out=C)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return y.flatten(2).to(u.dtype) + self.D * u


@register("mamba", paper="arXiv 2312.00752")
class Mamba(Layer):
    """Mamba (S6): per channel and state a decay exp(Delta A), with Delta, B and C from the input.

    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t,  y_t = C_t^T h_t + D x_t,  Delta = softplus(W u + b) (algorithm 2),
    between a short convolution and a silu gate.

    Args:
        d_model: width.
        d_state: states per channel.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        dt_rank: rank of the map to Delta (default d_model / 16, rounded up).
    """

    contractive = True

    def __init__(
        self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None
    ) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        self.d_inner, self.d_state, self.dt_rank = inner, d_state, dt_rank or -(-d_model // 16)
        self.in_proj = nn.Linear(d_model, inner, bias=False)
        self.gate_proj = nn.Linear(d_model, inner, bias=False)
        self.conv = ShortConv(inner, d_conv, "conv", bias=True)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(
            torch.arange(1, d_state + 1, dtype=torch.get_default_dtype()).log().expand(inner, d_state).clone()
        )
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(inner, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        x = self.conv(self.in_proj(u), past)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        dt = F.softplus(precise(self.dt_proj(dt)))
        A = -precise(self.A_log).exp()
        return System(C.unsqueeze(2), B.unsqueeze(2), x.unsqueeze(-1), log_decay=(dt, A), b=dt, d=self.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(gated(y, self.gate_proj(u)))


@register("mamba2", paper="arXiv 2405.21060")
class Mamba2(Layer):
    """Mamba-2 (SSD): one decay exp(Delta A) per head, B and C shared by the heads of a group.

    S_t = exp(Delta_t A) S_{t-1} + Delta_t B_t x_t^T,  y_t = C_t^T S_t + D x_t (eq. 16; section 7 for the block).

    Args:
        d_model: width.
        d_state: keys.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        d_head: values per head (default 64, or the inner width if that is smaller).
        n_groups: groups of heads that share B and C.
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        d_head: int | None = None,
        n_groups: int = 1,
    ) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        d_head = d_head or min(64, inner)
        require(
            inner % d_head == 0,
            f"the inner width expand * d_model = {inner} is not divisible by d_head = {d_head}; choose another d_head",
        )
        self.d_inner, self.d_state, self.n_heads, self.n_groups = inner, d_state, inner // d_head, n_groups
        split_size(self.n_heads, n_groups, "the number of heads", "n_groups")
        self.in_proj = nn.Linear(d_model, inner + 2 * n_groups * d_state, bias=False)
        self.dt_proj = nn.Linear(d_model, self.n_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, inner, bias=False)
        self.conv = ShortConv(inner + 2 * n_groups * d_state, d_conv, "conv", bias=True)
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(self.n_heads, 1e-3, 1e-1)))
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = HeadNorm(inner, eps=1e-5, groups=n_groups)  # as the published implementations do
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        keys = self.n_groups * self.d_state
        x, B, C = self.conv(self.in_proj(u), past).split([self.d_inner, keys, keys], -1)
        dt = F.softplus(precise(self.dt_proj(u)) + precise(self.dt_bias))
        g = -precise(self.A_log).exp() * dt
        return System(
            heads(C, self.n_groups), heads(B, self.n_groups), heads(x, self.n_heads), log_decay=g, b=dt, d=self.D
        )

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2), self.gate_proj(u), first=True))
