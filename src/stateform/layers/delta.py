"""The delta rule: before writing v at k, erase what is stored there. Rank-1 feedback f w^T with w = k."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..system import System
from .base import Layer, Past, ShortConv
from .parts import HeadNorm, heads, inverse_softplus, log_uniform, precise, split_size, unit
from .registry import register


@register("deltanet", paper="arXiv 2406.06484")
class DeltaNet(Layer):
    """DeltaNet: S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, y_t = (q_t / sqrt(n))^T S_t (eq. 1 to 3).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        allow_negative_eigenvalues: beta in (0,2) instead of (0,1): I - beta k k^T can reflect (arXiv 2411.12537).
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        allow_negative_eigenvalues: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state, self.beta_scale = n_heads, d_state or p, 2.0 if allow_negative_eigenvalues else 1.0
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.q_conv, self.k_conv = ShortConv(keys, d_conv, "q_conv"), ShortConv(keys, d_conv, "k_conv")
        self.v_conv = ShortConv(d_model, d_conv, "v_conv")
        self.beta_proj = nn.Linear(d_model, n_heads, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def writes(self, u: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k of length 1 (q over sqrt(n)), v and beta."""
        q = heads(self.q_conv(self.q_proj(u), past), self.n_heads)
        k = heads(self.k_conv(self.k_proj(u), past), self.n_heads)
        v = heads(self.v_conv(self.v_proj(u), past), self.n_heads)
        return unit(q) * self.d_state**-0.5, unit(k), v, torch.sigmoid(self.beta_proj(u)) * self.beta_scale

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        return System(q, k, v, b=beta, f=-beta.unsqueeze(-1) * k, w=k)

    def output(self, y: Tensor, u: Tensor, system: System) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))


@register("gated_deltanet", paper="arXiv 2412.06464")
class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet: S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, with a decay a_t per head.

    a_t = exp(-exp(A) softplus(W u_t + dt)); the read (q_t / sqrt(n))^T S_t is normalised per head and gated by
    silu(W_z u_t) (eq. 10).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        allow_negative_eigenvalues: beta in (0,2) instead of (0,1).
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, d_conv: int = 4,
        allow_negative_eigenvalues: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            d_model, n_heads, d_state=d_state, d_conv=d_conv, allow_negative_eigenvalues=allow_negative_eigenvalues
        )
        self.a_proj = nn.Linear(d_model, n_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(n_heads, 1e-3, 1e-1)))
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        g = -precise(self.A_log).exp() * F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))
        f = -(g.exp() * precise(beta)).to(k.dtype).unsqueeze(-1) * k
        return System(q, k, v, log_decay=g, b=beta, f=f, w=k)

    def output(self, y: Tensor, u: Tensor, system: System) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2) * F.silu(self.gate_proj(u)))
