"""MoBA: softmax attention to the blocks of keys that a query chooses.  arXiv 2502.13189

    s_tb = q_t^T mean_{j in b} k_j
    y_t = sum_j alpha_tj v_j,   j <= t in the block of t, or in one of the n_blocks - 1 before it with the highest s_tb

Softmax attention is the special case in which as many blocks are seen as there are: hence the base class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...forms.scores import Absorbed, product_logits
from ...layer import Past
from ...layer.parts import above_zero
from ...system import SoftmaxRead, System
from ..registry import register
from . import blocks
from .softmax import Softmax


@register("moba")
class MoBA(Softmax):
    """Softmax attention to chosen blocks.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        block: tokens in a block.
        n_blocks: blocks that a query sees, its own among them.
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        block: int = 8, n_blocks: int = 3, positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        self.block, self.n_blocks = above_zero("block", block), above_zero("n_blocks", n_blocks)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        system = super().system(u, past)
        there = Absorbed(system, past.state)
        means = blocks.means(there.keys, past.places(there.keys, there.past), self.block)
        scores = product_logits(there.q, means, self.n_heads).transpose(1, 2)  # [B,T,H,blocks]
        shown = blocks.chosen(scores, past.places(u) // self.block, self.n_blocks)
        return replace(system, readout=SoftmaxRead(blocks=shown, block=self.block))
