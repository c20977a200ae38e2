"""Block-diagonal recurrence: each head's dense transition is linear in the input, normalised.  arXiv 2309.07412

    h_t = A_t h_{t-1} + B u_t per head     A_t = normalise(W u_t)     y_t = W_o gelu(h_t)     (section 4)

normalise divides every column by its L_p norm.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import heads, split_size
from ...system import System
from ..registry import register
from .columns import column_normalised


@register("block_diagonal")
class BlockDiagonal(Layer):
    """Heads of dense systems, then GELU.

    Args:
        d_model: width.
        n_heads: blocks.
        d_state: size of a block.
        p: of the norm of the columns.
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int = 4, p: float = 1.2) -> None:
        super().__init__(d_model)
        split_size(d_model, n_heads)
        require(p >= 1, f"p is {p}; expected 1 or more")
        self.n_heads, self.d_state, self.p = n_heads, d_state, p
        self.a_proj = nn.Linear(d_model, n_heads * d_state * d_state)
        self.b_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.out_proj = nn.Linear(n_heads * d_state, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        A = self.a_proj(u).unflatten(-1, (self.n_heads, self.d_state, self.d_state))  # [B,T,H,n,n]
        return System(None, heads(self.b_proj(u), self.n_heads), None, transition=column_normalised(A, self.p))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(F.gelu(y.flatten(2)))  # [B,T,d_model]
