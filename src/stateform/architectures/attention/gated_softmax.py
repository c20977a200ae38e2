"""Softmax attention whose output is gated by a sigmoid of the token, per head or per value.  arXiv 2505.06708

    out_t = W_o (sigmoid(W_g u_t) y_t)     (section 2.2)

y is the output of softmax attention, of which this is the special case with an open gate: hence the base class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Past
from ...system import System
from ..registry import register
from .softmax import Softmax


@register("gated_softmax")
class GatedSoftmax(Softmax):
    """Softmax attention with a gate before the last map.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        gate: "head" (one number a head) or "value".
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        gate: Literal["head", "value"] = "head", positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        require(gate in ("head", "value"), f"gate is {gate!r}; expected 'head' or 'value'")
        self.gate_proj = nn.Linear(d_model, n_heads if gate == "head" else d_model, bias=False)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        gate = torch.sigmoid(self.gate_proj(u)).unflatten(-1, (self.n_heads, -1))
        return self.out_proj((y * gate).flatten(2))  # [B,T,d_model]
