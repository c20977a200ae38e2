"""Attention whose queries and keys go through finitely many features of the exponential."""

from __future__ import annotations

from torch import Tensor, nn

from ...layer import Layer, Past
from ...layer.parts import heads, split_size
from ...system import System


class FeatureAttention(Layer):
    """Multi-head attention whose queries and keys go through a feature map."""

    def __init__(self, d_model: int, n_heads: int, d_state: int) -> None:
        super().__init__(d_model)
        split_size(d_model, n_heads)
        self.n_heads, self.d_key = n_heads, d_state
        self.q_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        scale = self.d_key**-0.25
        return System(self.features(q * scale), self.features(k * scale), v, eta="sum")
