"""ALiBi: softmax attention whose weights fade with distance, each head at its own constant rate.  arXiv 2108.12409

    alpha_ij ~ exp( q_i^T k_j / sqrt(n) - m_h (i - j) ),     m_h = 2^(-8 h / H), h = 1 .. H     (section 3)

For H that is no power of 2, the slopes are those of the next smaller one, then every second one of the next larger.
With slopes of 0 it is softmax attention without positions: hence the base class.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...layer import Past
from ...system import SoftmaxRead, System
from ..registry import register
from .softmax import Softmax


def slopes(n_heads: int) -> Tensor:
    """Give the rate of each head, [H], float64."""
    below = 1 << (n_heads.bit_length() - 1)  # the largest power of 2 that is no more than H

    def powers(n: int) -> Tensor:
        return torch.exp2(-8 * torch.arange(1, n + 1, dtype=torch.float64, device="cpu") / n)

    return torch.cat([powers(below), powers(2 * below)[::2][: n_heads - below]])


@register("alibi")
class ALiBi(Softmax):
    """Heads of softmax attention that fade with distance.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        bias: biases in the projections.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions="none", bias=bias)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        rates = slopes(self.n_heads).to(u.device, torch.promote_types(u.dtype, torch.float32))
        return replace(super().system(u, past), readout=SoftmaxRead(forget=-rates))
