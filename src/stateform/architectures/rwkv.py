"""RWKV: every token is mixed with the one before, and reads of the past are told apart from the token itself."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past
from ..layer.parts import above_zero, heads, more_than_a_sign, precise, split_size
from ..system import System
from .registry import register


def mixed(u: Tensor, past: Past | None, *shares: Tensor) -> list[Tensor]:
    """Token shift: u_t + (u_{t-1} - u_t) mu for each share mu of the token before (zero before the first)."""
    before = (past or Past()).extend("shift", u, 1)[:, :-1]
    wide = u.dtype if not shares else torch.promote_types(u.dtype, shares[0].dtype)  # under autocast shares are wider
    return [torch.lerp(u.to(wide), before.to(wide), mu.to(wide)) for mu in shares]


def first_shares(d_model: int, *powers: float) -> nn.Parameter:
    """[len(powers),d_model]: channel i starts with the share 1 - (i / d_model)^power of the token before."""
    i = torch.arange(d_model) / d_model
    return nn.Parameter(torch.stack([1 - i**power for power in powers]))


def direction(x: Tensor) -> Tensor:
    """x / max(||x||, 1e-12) along the last axis. At 0, where the norm has no second derivative, it is linear."""
    if not torch.is_grad_enabled():
        return F.normalize(x, dim=-1)
    there = (x != 0).any(-1, keepdim=True)
    return torch.where(there, F.normalize(torch.where(there, x, 1.0), dim=-1), x / 1e-12)


def zigzag(size: int) -> Tensor:
    """0, 1, -1, 0, 1, -1, ..."""
    return (torch.arange(1, size + 1) % 3 - 1).to(torch.get_default_dtype())


def low_rank(d_model: int, rank: int | None, activation: nn.Module | None = None, *, factor: float) -> nn.Sequential:
    """x -> W_2 act(W_1 x), zero at first; the rank is by default about factor sqrt(d_model), in steps of 32."""
    rank = max(32, round(factor * math.sqrt(d_model) / 32) * 32) if rank is None else rank
    down, up = nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model, bias=False)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1 * max(1.0, math.sqrt(rank / d_model)))
    return nn.Sequential(down, activation or nn.Identity(), up)


def head_norm(d_model: int, n_heads: int, eps: float) -> nn.GroupNorm:
    """The values of each head to mean 0 and variance 1."""
    more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
    return nn.GroupNorm(n_heads, d_model, eps=above_zero("norm_eps", eps))


def normalised(norm: nn.GroupNorm, y: Tensor) -> Tensor:
    """[B,T,H,p] to [B,T,H*p]."""
    return norm(y.flatten(2).flatten(0, 1)).unflatten(0, y.shape[:2])


@register("rwkv4", paper="arXiv 2305.13048")
class RWKV4(Layer):
    """RWKV-4 time mixing: per channel an exponentially weighted average, with a bonus for the token itself.

        y_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)      (eq. 16)
        out_t = W_o (sigmoid(r_t) y_t)                                                           (eq. 17)

    with r, k, v linear maps of u_t and u_{t-1}, mixed per channel. As a System: heads are channels, n = p = 1, the
    decay is e^{-w}, log_b = k, the read is exclusive, d = e^{u + k}, and eta is the sum of the weights.

    Args:
        d_model: width (channels, which are the heads).

    Parameters: `mix` [3,d_model], the share of the token before in r, k, v (published weights hold 1 minus that);
    `log_w`, with w = exp(log_w), and `bonus`, the paper's u, [d_model] each. In float32 |u + k| must stay below 87.
    """

    contractive = True

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.mix = first_shares(d_model, 0.5, 1.0, 1.0)
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.log_w = nn.Parameter(-5 + 8 * torch.linspace(0, 1, d_model) ** 0.7)
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * zigzag(d_model))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_k, at_v = mixed(u, past, *self.mix[1:])
        k, v = precise(self.k_proj(at_k)), self.v_proj(at_v).unsqueeze(-1)
        one = v.new_ones(1, 1)
        return System(
            one, one, v, log_decay=-precise(self.log_w).exp(), log_b=k, d=(precise(self.bonus) + k).exp(), eta="sum",
            exclusive=True,
        )  # fmt: skip

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        (at_r,) = mixed(u, past, self.mix[0])
        return self.out_proj(torch.sigmoid(self.r_proj(at_r)) * y.flatten(2))


@register("rwkv6", paper="arXiv 2404.05892")
class RWKV6(Layer):
    """RWKV-6 (Finch) time mixing, and RWKV-5 (Eagle) by `decay`: a matrix state per head, and a bonus for the token.

        S_t = diag(a_t) S_{t-1} + k_t v_t^T,   y_t = r_t^T (S_{t-1} + diag(bonus) k_t v_t^T)
        out_t = W_o (norm(y_t) silu(g_t)),     a_t = exp(-exp(w_t)),  w_t = w + W_2 tanh(W_1 x_t)

    with r, k, v, g linear maps of u_t and u_{t-1}, mixed per channel. In RWKV-6 the shares of the mix come from the
    token, mu_t = mu + M_2 tanh(M_1 x_t), as the decay does; in RWKV-5 both are constant.

    Args:
        d_model: width.
        n_heads: heads.
        decay: "token" (RWKV-6), or constant (RWKV-5): "channel" for one a key (5.2), "head" for one a head, and one
            bonus (5.1).
        gate: the gate silu(g_t); the first models of version 5 have none.
        mix_rank: of the maps to the shares (decay "token").
        decay_rank: of the map to the decay (decay "token").
        norm_eps: added to the variance of a head's values (the original divides them by 8, then adds 1e-5).

    Parameters: `mix`, the shares of the token before in r, k, v, g (if there is a gate) and w (if from the token), and
    `mix_base`, that in x_t, from which the shares come; `w` and `bonus` [H,n], or [H,1] with decay "head". Published
    weights of version 5 hold 1 minus these shares.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, decay: Literal["token", "channel", "head"] = "token",
        gate: bool = True, mix_rank: int = 32, decay_rank: int = 64, norm_eps: float = 64e-5,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.norm = head_norm(d_model, n_heads, norm_eps)
        self.n_heads, self.decay = n_heads, decay
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.gate_proj = nn.Linear(d_model, d_model, bias=False) if gate else None
        size = n_heads if decay == "head" else d_model
        self.w = nn.Parameter((-6 + 5 * torch.linspace(0, 1, size) ** 0.7).unflatten(0, (n_heads, -1)))
        self.bonus = nn.Parameter(0.1 * zigzag(size).unflatten(0, (n_heads, -1)))
        powers = (
            {"r": 0.5, "k": 1.0, "v": 1.0} | ({"g": 0.5} if gate else {}) | ({"w": 1.0} if decay == "token" else {})
        )
        self.mixes = "".join(powers)
        self.mix = first_shares(d_model, *powers.values())
        if decay == "token":
            self.mix_base = first_shares(d_model, 1.0)
            self.mix_down = nn.Parameter(torch.zeros(len(powers), d_model, mix_rank))
            self.mix_up = nn.Parameter(torch.empty(len(powers), mix_rank, d_model).uniform_(-0.01, 0.01))
            self.decay_map = low_rank(d_model, decay_rank, nn.Tanh(), factor=1)

    def inputs(self, names: str, u: Tensor, past: Past | None) -> list[Tensor]:
        """What the maps named (of r, k, v, g, w) are applied to."""
        at = [self.mixes.index(name) for name in names]
        if self.decay != "token":
            return mixed(u, past, *(self.mix[i] for i in at))
        (x,) = mixed(u, past, *self.mix_base)
        return mixed(u, past, *(self.mix[i] + torch.tanh(x @ self.mix_down[i]) @ self.mix_up[i] for i in at))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_r, at_k, at_v, *at_w = self.inputs(self.mixes.replace("g", ""), u, past)
        r, k, v = (
            heads(proj(x), self.n_heads) for proj, x in ((self.r_proj, at_r), (self.k_proj, at_k), (self.v_proj, at_v))
        )
        w = precise(self.w)
        if at_w:
            w = w + heads(precise(self.decay_map(at_w[0])), self.n_heads)
        elif self.decay == "head":
            w = w.squeeze(-1)
        return System(r, k, v, log_decay=-w.exp(), d=(precise(r) * self.bonus * k).sum(-1), exclusive=True)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = normalised(self.norm, y)
        if self.gate_proj is not None:
            (at_g,) = self.inputs("g", u, past)
            y = y * F.silu(self.gate_proj(at_g))
        return self.out_proj(y)


@register("rwkv7", paper="arXiv 2503.14456")
class RWKV7(Layer):
    """RWKV-7 (Goose) time mixing: the delta rule behind a decay per key, erasing at one key and writing at another.

        S_t = (diag(a_t) - (eta_t kappa_t) kappa_t^T) S_{t-1} + k'_t v_t^T,   y_t = r_t^T S_t
        a_t = exp(-e^{-1/2} sigmoid(w_t)),  kappa_t = k_t xi / ||k_t xi||,  k'_t = k_t (1 + (eta_t - 1) alpha)
        out_t = W_o (g_t (norm(y_t) + (sum_n r_t rho k'_t) v_t)),  g_t = G_2 sigmoid(G_1 x_t)

    with r, k, v linear maps, w and the in-context learning rate eta = sigmoid(.) low-rank maps, of u_t and u_{t-1},
    mixed per channel. The values of the first layer of a model go on to the later ones, as `shared["v_first"]`:
    v_t = v + (v_first - v) sigmoid(.), of low rank too. A layer on its own is the first one, and has v_first = v.

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
        r, k, v = self.r_proj(at_r), self.k_proj(at_k), self.v_proj(at_v)
        v_first = past.shared.setdefault("v_first", v)
        require(
            v_first.shape == v.shape,
            f"the shared v_first has shape {list(v_first.shape)}, v {list(v.shape)}; expected the values that the "
            "first layer found for the same tokens: give `shared` an empty dict in each call of a model",
        )
        v = v + (v_first - v) * torch.sigmoid(self.residual + self.residual_map(at_v))
        eta = torch.sigmoid(precise(self.rate) + precise(self.rate_map(at_eta)))
        w = precise(self.w) + precise(self.decay_map(at_w))
        kappa = direction(heads(precise(k) * self.xi, self.n_heads))
        f = kappa * heads(eta, self.n_heads)
        k = (precise(k) * (1 + (eta - 1) * self.alpha)).to(v.dtype)
        r, k, v, g = (heads(x, self.n_heads) for x in (r, k, v, -math.exp(-0.5) * torch.sigmoid(w)))
        return System(r, k, v, log_decay=g, f=f.to(v.dtype), w=-kappa.to(v.dtype))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        r, k, v = system.q, system.k, system.v
        assert r is not None and v is not None
        own = ((precise(r) * self.rho * k).sum(-1, keepdim=True) * v).flatten(2)
        (at_g,) = mixed(u, past, self.mix[5])
        return self.out_proj((normalised(self.norm, y) + own).to(y.dtype) * self.gate_map(at_g))
