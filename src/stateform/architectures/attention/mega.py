"""Mega: attention whose queries and keys come from damped moving averages of the tokens.  arXiv 2209.10655

    h_t = (1 - alpha * delta) * h_{t-1} + alpha * beta x_t     x'_t = silu( gamma^T h_t / sqrt(m) + omega x_t )
    q = kappa_q * z + mu_q,  k = kappa_k * z + mu_k,  z = silu(W_z x'),  v = silu(W_v x)
    o_t = sum_{j<=t} alpha_tj v_j,     alpha_tj ~ exp( q_t^T k_j / sqrt(n) )
    y = phi * silu( W_h x' + U_h (silu(W_r x') * o) ) + (1 - phi) * x,     phi = sigmoid(W_phi x')

Each channel has m averages with alpha, delta in (0,1). Two Systems in a chain: the averages, where a channel is a head,
and softmax attention with one head. The paper's bias of relative positions is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import above_zero, gated, precise
from ...system import Chain, System
from ..registry import register


@register("mega")
class Mega(Layer):
    """Moving averages, then one head of gated attention; the output replaces the token where phi is open.

    Args:
        d_model: width.
        d_state: keys n.
        expand: values over d_model.
        n_averages: averages m per channel.
    """

    contractive = True

    def __init__(self, d_model: int, *, d_state: int = 64, expand: int = 2, n_averages: int = 16) -> None:
        super().__init__(d_model)
        above_zero("n_averages", n_averages)
        inner, m, self.d_state, self.n_averages = expand * d_model, n_averages, d_state, n_averages
        self.alpha, self.delta = (nn.Parameter(0.2 * torch.randn(d_model, m)) for _ in range(2))
        self.beta = nn.Parameter(0.02 * torch.randn(d_model, m) + (-1.0) ** torch.arange(m))
        self.gamma, self.omega = nn.Parameter(torch.randn(d_model, m)), nn.Parameter(torch.randn(d_model))
        self.z_proj, self.r_proj = nn.Linear(d_model, d_state), nn.Linear(d_model, inner)
        self.kappa, self.mu = nn.Parameter(torch.ones(2, d_state)), nn.Parameter(torch.zeros(2, d_state))
        self.v_proj, self.phi_proj, self.h_proj = (nn.Linear(d_model, c) for c in (inner, d_model, d_model))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def averages(self, u: Tensor) -> System:
        """Give the System of the moving averages of u [B,T,d_model], with its channels as heads."""
        alpha, delta = torch.sigmoid(precise(self.alpha)), torch.sigmoid(precise(self.delta))  # [channels,m]
        q, k = self.gamma * self.n_averages**-0.5, alpha * self.beta
        return System(q, k.to(q.dtype), u.unsqueeze(-1), log_decay=torch.log1p(-alpha * delta), d=self.omega)

    def moved(self, u: Tensor, past: Past) -> Tensor:
        """Give x' [B,T,d_model]; once for the same input."""
        if "moved" not in past.made:
            past.made["moved"] = F.silu(past.read("averages", self.averages(u)).flatten(2))
        return past.made["moved"]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        z, v = F.silu(self.z_proj(self.moved(u, past))).unsqueeze(2), F.silu(self.v_proj(u)).unsqueeze(2)
        q, k = (z * self.kappa + self.mu).split(1, 2)  # [B,T,1,n]
        before = (past.inner["averages"],)
        return Chain(q * self.d_state**-0.5, k, v, readout="exp", eta="sum", before=before)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        x = self.moved(u, past or Past())
        phi = torch.sigmoid(self.phi_proj(x))
        h = F.silu(self.h_proj(x) + self.out_proj(gated(y, self.r_proj(x))))  # [B,T,d_model]
        return phi * h + (1 - phi) * u
