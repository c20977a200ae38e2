"""MesaNet: the least-squares fit of the values to the keys so far, forgotten by a decay per head.  arXiv 2506.05233

    S_t = a_t S_{t-1} + beta_t k_t v_t^T     G_t = a_t G_{t-1} + beta_t k_t k_t^T
    y_t = S_t^T (G_t + Lambda)^{-1} q_t     a_t = sigmoid(W_a u_t)     beta_t = sigmoid(W_b u_t)

q and k have length 1; Lambda is diagonal, from its lower bound upwards. The published layer takes 30 steps of conjugate
gradients; no steps would be a linear attention with the queries q / (diag G + Lambda).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, above_zero, heads, inverse_softplus, normalised_size, precise, unit
from ...system import System
from ...system.readout import Solver
from ..registry import register


@register("mesa")
class Mesa(Layer):
    """Heads of ridge regression behind short convolutions, normalised.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q and k.
        least_ridge: the lower bound of Lambda.
        solver: "exact", or the iterations "cg" or "chebyshev".
        steps: of an iteration; None goes on to the precision of the state.
        gated: gate the output by silu.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        least_ridge: float = 0.25, solver: Literal["exact", "cg", "chebyshev"] = "exact", steps: int | None = None,
        gated: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        self.n_heads = n_heads
        self.least_ridge, self.solver = above_zero("least_ridge", least_ridge), Solver(solver, steps)
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.q_conv, self.k_conv = ShortConv(keys, d_conv, "q_conv"), ShortConv(keys, d_conv, "k_conv")
        self.a_proj, self.beta_proj = nn.Linear(d_model, n_heads), nn.Linear(d_model, n_heads)
        above = torch.full((n_heads, self.d_state), max(1.0 - least_ridge, 0.01))  # Lambda begins at 1
        self.ridge = nn.Parameter(inverse_softplus(above))
        self.gate_proj = nn.Linear(d_model, d_model, bias=False) if gated else None
        self.norm = HeadNorm(p, eps=1e-5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q = unit(heads(self.q_conv(self.q_proj(u), past), self.n_heads))  # [B,T,H,n]
        k = unit(heads(self.k_conv(self.k_proj(u), past), self.n_heads))  # [B,T,H,n]
        v = heads(self.v_proj(u), self.n_heads)  # [B,T,H,p]
        g, beta = F.logsigmoid(precise(self.a_proj(u))), torch.sigmoid(precise(self.beta_proj(u)))  # [B,T,H]
        ridge = F.softplus(precise(self.ridge)) + self.least_ridge  # [H,n]
        return System(q, k, v, log_decay=g, b=beta, readout="ridge", ridge=ridge, solver=self.solver)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = self.norm(y).flatten(2)
        return self.out_proj(y if self.gate_proj is None else y * F.silu(self.gate_proj(u)))  # [B,T,d_model]
