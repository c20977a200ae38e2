"""Gated KalmaNet: ridge regression on the keys so far, with a ridge in proportion to them.  arXiv 2511.21016

    S_t = a_t S_{t-1} + beta_t^2 k_t v_t^T     G_t = a_t G_{t-1} + beta_t^2 k_t k_t^T     lambda_t = r ||G_t||_F
    x_t = q_t + alpha_t ((G_t + lambda_t I)^{-1} q_t - q_t)     y_t = S_t^T x_t / sqrt(n)

The condition number is at most 1 + 1/r. q and k have length 1, a_t = exp(-exp(A) softplus(W_a u_t + dt)), alpha_t and
beta_t are sigmoids; the read is normalised per head and gated by silu(W_z u_t). The published layer takes 30 Chebyshev
steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, above_zero, heads, inverse_softplus, log_uniform, normalised_size, precise, unit
from ...system import System
from ...system.readout import Solver
from ..registry import register


@register("kalmanet")
class KalmaNet(Layer):
    """Heads of ridge regression behind short convolutions, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        ridge_ratio: r.
        solver: "exact", or the iterations "cg" or "chebyshev".
        steps: of an iteration; None goes on to the precision of the state.
        mixed: the connection alpha_t; without it, alpha = 1.
        input_gate: beta_t; without it, beta = 1.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        ridge_ratio: float = 0.02, solver: Literal["exact", "cg", "chebyshev"] = "exact", steps: int | None = None,
        mixed: bool = True, input_gate: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        self.n_heads = n_heads
        self.ridge_ratio, self.solver = above_zero("ridge_ratio", ridge_ratio), Solver(solver, steps)
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.q_conv, self.k_conv = ShortConv(keys, d_conv, "q_conv"), ShortConv(keys, d_conv, "k_conv")
        self.v_conv = ShortConv(d_model, d_conv, "v_conv")
        self.a_proj = nn.Linear(d_model, n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(n_heads, 1e-3, 1e-1)))
        self.alpha_proj = nn.Linear(d_model, n_heads) if mixed else None
        self.beta_proj = nn.Linear(d_model, n_heads) if input_gate else None
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q = unit(heads(self.q_conv(self.q_proj(u), past), self.n_heads), self.d_state**-0.5)  # [B,T,H,n]
        k = unit(heads(self.k_conv(self.k_proj(u), past), self.n_heads))  # [B,T,H,n]
        v = heads(self.v_conv(self.v_proj(u), past), self.n_heads)  # [B,T,H,p]
        g = -precise(self.A_log).exp() * F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))  # [B,T,H]
        alpha, beta = (None if f is None else torch.sigmoid(precise(f(u))) for f in (self.alpha_proj, self.beta_proj))
        ratio = torch.full((1,), self.ridge_ratio, dtype=precise(u).dtype, device=u.device)
        return System(
            q, k, v, log_decay=g, b=None if beta is None else (beta + 1e-6).square(), readout="ridge", ridge=ratio,
            relative=True, mix=alpha, solver=self.solver,
        )  # fmt: skip

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2) * F.silu(self.gate_proj(u)))  # [B,T,d_model]
