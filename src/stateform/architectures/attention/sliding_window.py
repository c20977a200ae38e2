"""Softmax attention to the last `window` tokens: the state is a ring of so many keys and values.  arXiv 2402.19427

    y_t = sum_j alpha_tj v_j,  t - window < j <= t

Softmax attention is the special case of a window as long as the input: hence the base class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...errors import require
from ...layer import Past
from ...system import SoftmaxRead, System
from ..registry import register
from .softmax import Softmax


@register("sliding_window")
class SlidingWindow(Softmax):
    """Softmax attention with a window.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        window: tokens seen, the token itself included.
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        window: int = 32, positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        require(window >= 1, f"window is {window}; expected 1 or more tokens")
        self.window = window

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return replace(super().system(u, past), readout=SoftmaxRead(window=self.window))
