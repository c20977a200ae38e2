"""DeltaNet: before writing v at k, erase what is stored there.  arXiv 2406.06484

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T     y_t = (q_t / sqrt(n))^T S_t     (eq. 1 to 3)

q, k and v come from short convolutions, q and k with length 1. The read is normalised per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, heads, normalised_size, unit
from ...system import System
from ..registry import register
from .rule import delta_rule


@register("deltanet")
class DeltaNet(Layer):
    """Heads of the delta rule behind short convolutions, normalised.

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

    def reads(self, u: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor]:
        """Give q and k of length 1 (q over sqrt(n)), and v."""
        q = heads(self.q_conv(self.q_proj(u), past), self.n_heads)  # [B,T,H,n]
        k = heads(self.k_conv(self.k_proj(u), past), self.n_heads)  # [B,T,H,n]
        v = heads(self.v_conv(self.v_proj(u), past), self.n_heads)  # [B,T,H,p]
        return unit(q, self.d_state**-0.5), unit(k), v

    def writes(self, u: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give q, k, v as `reads`, and beta [B,T,H]."""
        return *self.reads(u, past), torch.sigmoid(self.beta_proj(u)) * self.beta_scale

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return delta_rule(*self.writes(u, past))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))  # [B,T,d_model]
