"""Mamba-3: a state-space model by the trapezoidal rule, with rotations that the tokens choose.  arXiv 2603.15569

    S_t = a_t R_t S_{t-1} + (1 - lambda_t) Delta_t a_t R_t B_{t-1} x_{t-1}^T + lambda_t Delta_t B_t x_t^T
    y_t = Re(C_t^T S_t) + D x_t
    a_t = exp(Delta_t A_t),  R_t = diag(exp(i pi Delta_t tanh(W_theta u_t))),  lambda_t = sigmoid(W_lambda u_t)

Each token takes two steps of a System: the end of the last interval, then its own. B and C are normalised and have a
bias per head; there is no convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, gated, heads, inverse_softplus, log_uniform, pair_up, precise, split_size
from ...system import System
from ..registry import register


@register("mamba3")
class Mamba3(Layer):
    """Selective heads with trapezoidal steps, gated.

    Args:
        d_model: width.
        d_state: keys, an even number.
        expand: inner width over d_model.
        d_head: values per head (default 64, or the inner width if that is smaller).
        least_decay: |A| is this at least.
    """

    contractive = True

    def __init__(
        self, d_model: int, *, d_state: int = 64, expand: int = 2, d_head: int | None = None,
        least_decay: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        inner = expand * d_model
        H = split_size(inner, d_head or min(64, inner), "expand * d_model", "d_head")
        require(d_state % 2 == 0, f"d_state is {d_state}; expected an even number: keys turn in pairs")
        require(0 < least_decay < 1, f"least_decay is {least_decay}; expected a number above 0, less than 1")
        self.d_inner, self.d_state, self.n_heads, self.least_decay = inner, d_state, H, least_decay
        self.x_proj, self.gate_proj = (nn.Linear(d_model, inner, bias=False) for _ in range(2))
        self.B_proj, self.C_proj = (nn.Linear(d_model, d_state, bias=False) for _ in range(2))
        self.B_norm, self.C_norm = HeadNorm(d_state), HeadNorm(d_state)
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(H, d_state)) for _ in range(2))
        self.dt_proj, self.A_proj, self.trap_proj = (nn.Linear(d_model, H) for _ in range(3))
        self.theta_proj = nn.Linear(d_model, d_state // 2, bias=False)
        self.D = nn.Parameter(torch.ones(H))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform(H, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        C = self.C_norm(self.C_proj(u)).unsqueeze(2) + self.C_bias  # [B,T,H,n]
        B, x = self.B_norm(self.B_proj(u)), self.x_proj(u)
        both = past.extend("trapezoid", torch.cat([B, x], -1), 1)  # [B,1+T,n+inner]
        B, x = both.split([self.d_state, self.d_inner], -1)
        dt = F.softplus(precise(self.dt_proj(u)))  # [B,T,H]
        g = -F.softplus(precise(self.A_proj(u))).clamp_min(self.least_decay) * dt
        share = torch.sigmoid(precise(self.trap_proj(u)))
        angle = torch.pi * dt.unsqueeze(-1) * torch.tanh(precise(self.theta_proj(u))).unsqueeze(2)  # [B,T,H,n/2]
        none = torch.zeros_like(g)
        keys, values = B.unsqueeze(2) + self.B_bias, heads(x, self.n_heads)  # [B,1+T,H,n or p]
        return System(
            pair_up(C), pair_up(_two_steps(keys[:, :-1], keys[:, 1:]), conjugate=True),
            _two_steps(values[:, :-1], values[:, 1:]), log_decay=_two_steps(g, none),
            phase=_two_steps(torch.zeros_like(angle), angle),
            b=_two_steps((1 - share) * dt * g.exp(), share * dt), d=self.D, micro=2,
        )  # fmt: skip

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(gated(y, self.gate_proj(u)))  # [B,T,d_model]


def _two_steps(first: Tensor, second: Tensor) -> Tensor:
    """Interleave what a token does first and second, [B,T,...] each: [B,2T,...]."""
    return torch.stack([first, second], 2).flatten(1, 2)
