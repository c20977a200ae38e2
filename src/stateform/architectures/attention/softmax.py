"""Softmax attention: multi-head, grouped-query or multi-query, with rotary positions.  arXiv 1706.03762

    alpha_tj = exp(q_t^T k_j / sqrt(n)) / sum_{i<=t} exp(q_t^T k_i / sqrt(n))     (eq. 1)
    y_t = sum_{j<=t} alpha_tj v_j

The rotation of queries and keys by their positions (arXiv 2104.09864) is the phase of the System.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ...layer import Layer, Past
from ...layer.parts import heads, pair_up, rope_angles, split_size
from ...system import System
from ..registry import register


@register("softmax")
class Softmax(Layer):
    """Heads of softmax attention between linear maps.

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

    def heads_of(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project to q [B,T,H,n], k [B,T,H_kv,n] and v [B,T,H_kv,p]."""
        k, v = heads(self.k_proj(u), self.n_kv_heads), heads(self.v_proj(u), self.n_kv_heads)
        return heads(self.q_proj(u), self.n_heads), k, v

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return self.attention(*self.heads_of(u))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> System:
        """Give the System of what `heads_of` gave."""
        q = q * self.d_state**-0.5
        if self.positions == "none":
            return System(q, k, v, readout="exp", eta="sum")
        phase = rope_angles(self.d_state, self.rope_base, q.device)  # [1,n/2]
        return System(pair_up(q), pair_up(k, conjugate=True), v, phase=phase, readout="exp", eta="sum")
