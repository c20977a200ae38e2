"""Attention: softmax, linear, normalized."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Layer, Past
from ..layer.parts import heads, pair_up, precise, rope_angles, split_size
from ..system import System
from .registry import register


@register("softmax", paper="arXiv 1706.03762")
class Softmax(Layer):
    """Softmax attention: multi-head, grouped-query or multi-query, with rotary positions.

    alpha_ij = exp(q_i^T k_j / sqrt(n)) / sum_j exp(...). The System has readout "exp", eta = "sum", and the rotation as
    its phase (arXiv 2104.09864).

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        positions: "rope" or "none".
        rope_base: the largest wavelength is 2 pi times about this.
        bias: biases in the projections.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        positions: Literal["rope", "none"] = "rope", rope_base: float = 10_000.0, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.n_kv_heads, self.d_state = n_heads, n_kv_heads or n_heads, d_state or p
        split_size(n_heads, self.n_kv_heads, "n_heads", "n_kv_heads")
        self.positions, self.rope_base = positions, rope_base
        if positions == "rope":
            rope_angles(self.d_state, rope_base)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=bias)
        self.k_proj = nn.Linear(d_model, self.n_kv_heads * self.d_state, bias=bias)
        self.v_proj = nn.Linear(d_model, self.n_kv_heads * p, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q = heads(self.q_proj(u), self.n_heads) * self.d_state**-0.5
        k, v = heads(self.k_proj(u), self.n_kv_heads), heads(self.v_proj(u), self.n_kv_heads)
        if self.positions == "none":
            return System(q, k, v, readout="exp", eta="sum")
        phase = rope_angles(self.d_state, self.rope_base, u.device)
        return System(pair_up(q), pair_up(k, conjugate=True), v, phase=phase, readout="exp", eta="sum")


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1 with all its digits where x is far below 0; what the dtype cannot hold counts as the least it can, so
    that no sum of weights is 0.
    """
    limits = torch.finfo(x.dtype)
    least = 4 * limits.tiny * (limits.eps if x.dtype == torch.float16 else 1.0)
    return F.relu(x) + torch.exp(x.clamp(math.log(least), 0.0))


@register("linear", paper="arXiv 2006.16236")
class Linear(Layer):
    """Linear attention: the features elu(x) + 1 of queries and keys, normalised by their sum.

    S_t = S_{t-1} + phi(k_t) v_t^T,  y_t = phi(q_t)^T S_t / phi(q_t)^T s_t,  s_t = s_{t-1} + phi(k_t) (eq. 16 to 20).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: features per head (default d_model / n_heads).
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model)
        self.n_heads, self.d_state = n_heads, d_state or split_size(d_model, n_heads)
        split_size(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        q = elu_features(q)
        # y does not depend on the size of q: its largest feature becomes 1, so that small ones of k keep their digits.
        return System(q / q.detach().amax(-1, keepdim=True), elu_features(k), v, eta="sum")


ETAS: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": F.softplus, "sigmoid": torch.sigmoid}


@register("normalized", paper="arXiv 2405.15731")
class Normalized(Layer):
    """Normalized attention: linear attention divided by a learned function of the token (eq. 22, 29, 30).

    S_t = S_{t-1} + k_t v_t^T,  y_t = q_t^T S_t / eta(u_t),  eta = exp, softplus or sigmoid of W_eta u_t, per head.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        eta: "exp" (the paper's best), "softplus" or "sigmoid".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None,
        eta: Literal["exp", "softplus", "sigmoid"] = "exp",
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.n_heads, self.d_state, self.eta = n_heads, d_state or split_size(d_model, n_heads), ETAS[eta]
        split_size(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.eta_proj = nn.Linear(d_model, n_heads)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        return System(q, k, v, eta=self.eta(precise(self.eta_proj(u))))
