"""The delta rule: before writing v at k, erase what is stored there. Rank-1 feedback f w^T with f = k.

How much is erased, and through which decay, is in w: what is written then all lies at one key, so that fewer products
are needed than for two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past, ShortConv
from ..layer.parts import HeadNorm, heads, inverse_softplus, log_uniform, normalised_size, precise, split_size, unit
from ..system import System
from .registry import register


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None) -> System:
    """S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T, read by q.

    Args:
        q: [B,T,H,n], or shared by groups of the H heads, as k may be.
        k: [B,T,H,n].
        v: [B,T,H,p].
        beta: [B,T,H].
        g: log decay, none, one a head [B,T,H] or one a key [B,T,H,n].
    """
    if g is None:
        w = spread(-beta, k)
    elif g.ndim == beta.ndim:
        w = spread((g.exp() * precise(-beta)).to(k.dtype), k)
    else:
        w = (g.exp() * precise(spread(-beta, k))).to(k.dtype)
    return System(q, k, v, log_decay=g, b=beta, f=k, w=w)


def spread(c: Tensor, k: Tensor) -> Tensor:
    """c [B,T,H] times k [B,T,H',n], of which H/H' heads in a row share one."""
    if c.shape[2] == k.shape[2]:
        return c.unsqueeze(-1) * k
    return (c.unflatten(2, (k.shape[2], -1)).unsqueeze(-1) * k.unsqueeze(3)).flatten(2, 3)


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
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        self.n_heads = n_heads
        self.beta_scale = 2.0 if allow_negative_eigenvalues else 1.0
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
        return unit(q, self.d_state**-0.5), unit(k), v, torch.sigmoid(self.beta_proj(u)) * self.beta_scale

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return delta_rule(*self.writes(u, past))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
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
        return delta_rule(q, k, v, beta, g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))


@register("kda", paper="arXiv 2510.26692")
class KDA(DeltaNet):
    """Kimi Delta Attention: the delta rule behind a decay per key.

    S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T,  a_t = exp(-exp(A) softplus(W u_t + dt)) (eq. 1);
    the read is normalised per head and gated by a sigmoid.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        d_conv: taps of the short convolutions of q, k, v.
        gate_rank: rank of the maps to decay and gate (default d_model / n_heads).
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        d_state: int | None = None,
        d_conv: int = 4,
        gate_rank: int | None = None,
    ) -> None:
        super().__init__(d_model, n_heads, d_state=d_state, d_conv=d_conv)
        keys, rank = n_heads * self.d_state, gate_rank or split_size(d_model, n_heads)
        self.a_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, keys, bias=False))
        self.gate_proj = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(inverse_softplus(log_uniform(keys, 1e-3, 1e-1)))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, beta = self.writes(u, past)
        dt = F.softplus(precise(self.a_proj(u)) + precise(self.dt_bias))
        g = -precise(self.A_log).exp().unsqueeze(-1) * heads(dt, self.n_heads)
        return delta_rule(q, k, v, beta, g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u), "sigmoid"))


@register("deltaproduct", paper="arXiv 2502.10297")
class DeltaProduct(Layer):
    """DeltaProduct: n_h delta-rule steps a token, so that A_t is a product of n_h Householder factors.

    H_{t,j} = (I - beta_{t,j} k_{t,j} k_{t,j}^T) H_{t,j-1} + beta_{t,j} k_{t,j} v_{t,j}^T,  j = 1 .. n_h, and the read
    y_t = (q_t / sqrt(n))^T H_{t,n_h} (eq. 2). Gated: the token's decay comes before its first step.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        n_h: steps a token.
        d_conv: taps of the short convolutions of q, k, v.
        gated: a decay per head, as in Gated DeltaNet.
        allow_negative_eigenvalues: beta in (0,2), which is what the products are for (arXiv 2411.12537).
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_h: int = 2, d_conv: int = 4,
        gated: bool = False, allow_negative_eigenvalues: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        require(n_h >= 1, f"n_h is {n_h}; expected 1 or more steps a token")
        self.n_heads, self.n_h = n_heads, n_h
        self.beta_scale = 2.0 if allow_negative_eigenvalues else 1.0
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_h * keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_h * d_model, bias=False)
        self.beta_proj = nn.Linear(d_model, n_h * n_heads, bias=False)
        self.q_conv, self.k_conv = ShortConv(keys, d_conv, "q_conv"), ShortConv(n_h * keys, d_conv, "k_conv")
        self.v_conv = ShortConv(n_h * d_model, d_conv, "v_conv")
        self.a_proj = nn.Linear(d_model, n_heads) if gated else None
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def _steps(self, x: Tensor) -> Tensor:
        """[B,T,n_h*H*c] to [B,T*n_h,H,c]."""
        return x.unflatten(-1, (self.n_h, self.n_heads, -1)).flatten(1, 2)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q = unit(heads(self.q_conv(self.q_proj(u), past), self.n_heads), self.d_state**-0.5)
        k = unit(self._steps(self.k_conv(self.k_proj(u), past)))
        v = self._steps(self.v_conv(self.v_proj(u), past))
        beta = torch.sigmoid(self._steps(self.beta_proj(u)).squeeze(-1)) * self.beta_scale
        if self.a_proj is None:
            return System(q, k, v, b=beta, f=k, w=spread(-beta, k), micro=self.n_h)
        first = F.logsigmoid(precise(self.a_proj(u)))
        g = F.pad(first.unsqueeze(2), (0, 0, 0, self.n_h - 1)).flatten(1, 2)
        w = spread((g.exp() * precise(-beta)).to(k.dtype), k)
        return System(q, k, v, log_decay=g, b=beta, f=k, w=w, micro=self.n_h)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))
