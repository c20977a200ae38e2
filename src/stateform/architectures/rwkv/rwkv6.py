"""RWKV-6 (Finch) time mixing, and RWKV-5 (Eagle) by `decay`: a matrix state, a bonus for the token.  arXiv 2404.05892

    S_t = diag(a_t) S_{t-1} + k_t v_t^T     y_t = r_t^T (S_{t-1} + diag(bonus) k_t v_t^T)
    a_t = exp(-exp(w_t))     w_t = w + W_2 tanh(W_1 x_t)     out_t = W_o (norm(y_t) silu(g_t))

r, k, v and g are linear maps of u_t and u_{t-1}, mixed per channel. In RWKV-6 the shares of the mix come from the
token, mu_t = mu + M_2 tanh(M_1 x_t), as the decay does; in RWKV-5 both are constant.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import heads, precise
from ...system import System
from ..registry import register
from .shared import first_shares, head_norm, low_rank, mixed, normalised, zigzag


@register("rwkv6")
class RWKV6(Layer):
    """Heads with a decay per key behind a token shift, normalised and gated.

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
        """Find what the maps named (of r, k, v, g, w) are applied to."""
        at = [self.mixes.index(name) for name in names]
        if self.decay != "token":
            return mixed(u, past, *(self.mix[i] for i in at))
        (x,) = mixed(u, past, *self.mix_base)
        return mixed(u, past, *(self.mix[i] + torch.tanh(x @ self.mix_down[i]) @ self.mix_up[i] for i in at))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_r, at_k, at_v, *at_w = self.inputs(self.mixes.replace("g", ""), u, past)  # [B,T,d_model]
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
        return self.out_proj(y)  # [B,T,d_model]
