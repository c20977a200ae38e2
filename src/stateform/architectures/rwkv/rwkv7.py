"""RWKV-7 (Goose) time mixing: behind a decay per key, erase at one key and write at another.  arXiv 2503.14456

    S_t = (diag(a_t) - (eta_t kappa_t) kappa_t^T) S_{t-1} + k'_t v_t^T     y_t = r_t^T S_t
    a_t = exp(-e^{-1/2} sigmoid(w_t))     kappa_t = k_t xi / ||k_t xi||     k'_t = k_t (1 + (eta_t - 1) alpha)
    out_t = W_o (g_t (norm(y_t) + (sum_n r_t rho k'_t) v_t))     g_t = G_2 sigmoid(G_1 x_t)

r, k and v are linear maps, w and the in-context learning rate eta = sigmoid(.) low-rank maps, of u_t and u_{t-1}, mixed
per channel. The values of the first layer of a model go on to the later ones, as `shared["v_first"]`:
v_t = v + (v_first - v) sigmoid(.), of low rank too. A layer on its own is the first one, and has v_first = v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import heads, precise
from ...system import System
from ..registry import register
from .shared import first_shares, head_norm, low_rank, mixed, normalised


def direction(x: Tensor) -> Tensor:
    """Divide x by max(||x||, 1e-12) along the last axis; linear at 0, where the norm has no second derivative."""
    if not torch.is_grad_enabled():
        return F.normalize(x, dim=-1)
    there = (x != 0).any(-1, keepdim=True)
    return torch.where(there, F.normalize(torch.where(there, x, 1.0), dim=-1), x / 1e-12)


@register("rwkv7")
class RWKV7(Layer):
    """Heads of a generalised delta rule behind a token shift, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        decay_rank: of the map to w (all four: by default as in the original, 32 or more, growing as sqrt(d_model)).
        rate_rank: of the map to eta.
        value_rank: of the map to the share of v_first.
        gate_rank: of the map to g.
        norm_eps: added to the variance of a head's values.

    Parameters, and in brackets the names of published weights: `mix` [6,d_model], the shares of the token before in r,
    w, k, v, eta, g (x_r .. x_g); `w`, `rate`, `residual` (w0, a0, v0) beside their maps (w1 and w2, ...); `xi`, `alpha`
    (k_k, k_a) and `rho` [H,n] (r_k).
    """

    # Not declared contractive: no decay or eigenvalue is above 1, but a step may stretch a state for a while.

    def __init__(
        self, d_model: int, n_heads: int = 4, *, decay_rank: int | None = None, rate_rank: int | None = None,
        value_rank: int | None = None, gate_rank: int | None = None, norm_eps: float = 64e-5,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.norm = head_norm(d_model, n_heads, norm_eps)
        self.n_heads = n_heads
        self.mix = first_shares(d_model, 0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        for proj, scale in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            nn.init.uniform_(proj.weight, -scale * d_model**-0.5, scale * d_model**-0.5)
        self.decay_map = low_rank(d_model, decay_rank, nn.Tanh(), factor=2.5)
        self.rate_map = low_rank(d_model, rate_rank, factor=2.5)
        self.residual_map = low_rank(d_model, value_rank, factor=1.7)
        self.gate_map = low_rank(d_model, gate_rank, nn.Sigmoid(), factor=5)
        over_model, over_head = torch.linspace(0, 1, d_model), torch.linspace(-1, 1, d_model // n_heads).repeat(n_heads)
        over_head = over_head * over_head.abs()
        self.w = nn.Parameter(-5.5 + 6 * over_model + 2.5 * over_head)
        self.rate = nn.Parameter(-0.39 + 0.4 * over_model + 0.3 * over_head)
        self.residual = nn.Parameter(0.93 - 0.4 * over_model)
        self.xi = nn.Parameter(0.76 - 0.1 * over_model)
        self.alpha = nn.Parameter(torch.full((d_model,), 1.02))
        self.rho = nn.Parameter(torch.full((n_heads, d_model // n_heads), -0.04))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        at_r, at_w, at_k, at_v, at_eta = mixed(u, past, *self.mix[:5])
        r, k, v = self.r_proj(at_r), self.k_proj(at_k), self.v_proj(at_v)  # [B,T,d_model]
        v_first = past.shared.setdefault("v_first", v)
        require(
            v_first.shape == v.shape,
            f"the shared v_first has shape {list(v_first.shape)}, v {list(v.shape)}; expected the values that the "
            "first layer found for the same tokens: give `shared` an empty dict in each call of a model",
        )
        v = v + (v_first - v) * torch.sigmoid(self.residual + self.residual_map(at_v))
        eta = torch.sigmoid(precise(self.rate) + precise(self.rate_map(at_eta)))  # [B,T,d_model]
        w = precise(self.w) + precise(self.decay_map(at_w))  # [B,T,d_model]
        kappa = direction(heads(precise(k) * self.xi, self.n_heads))  # [B,T,H,n]
        f = kappa * heads(eta, self.n_heads)  # [B,T,H,n]
        k = (precise(k) * (1 + (eta - 1) * self.alpha)).to(v.dtype)
        r, k, v, g = (heads(x, self.n_heads) for x in (r, k, v, -math.exp(-0.5) * torch.sigmoid(w)))  # [B,T,H,n]
        return System(r, k, v, log_decay=g, f=f.to(v.dtype), w=-kappa.to(v.dtype))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        r, k, v = system.q, system.k, system.v
        assert r is not None and v is not None
        own = ((precise(r) * self.rho * k).sum(-1, keepdim=True) * v).flatten(2)  # [B,T,d_model]
        (at_g,) = mixed(u, past, self.mix[5])
        return self.out_proj((normalised(self.norm, y) + own).to(y.dtype) * self.gate_map(at_g))  # [B,T,d_model]
