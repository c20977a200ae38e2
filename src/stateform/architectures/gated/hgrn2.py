"""HGRN2: the forget gate is the decay, what it lets go the key, the output gate the query.  arXiv 2404.07904

    S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T     y_t = o_t^T S_t     (eq. 6 to 8)
    f_t = l + (1 - l) sigmoid(W_f u_t)

o_t = silu(W_o u_t), and the read is normalised per head.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, forget_gate, heads, precise, split_size
from ...system import System
from ..registry import register


@register("hgrn2")
class HGRN2(Layer):
    """Heads of gated linear recurrence, normalised.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        lower_bound: l, the least that is kept; the paper lets it grow with the depth of the layer.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, lower_bound: float = 0.0) -> None:
        super().__init__(d_model)
        require(0 <= lower_bound < 1, f"lower_bound is {lower_bound}; expected 0 or more, less than 1")
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state, self.lower_bound = n_heads, d_state or p, lower_bound
        keys = n_heads * self.d_state
        self.o_proj, self.f_proj = (nn.Linear(d_model, keys, bias=False) for _ in range(2))
        self.i_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        o = F.silu(heads(self.o_proj(u), self.n_heads))  # [B,T,H,n]
        g, let_go = forget_gate(precise(heads(self.f_proj(u), self.n_heads)), self.lower_bound)
        return System(o, let_go.to(o.dtype), heads(self.i_proj(u), self.n_heads), log_decay=g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))  # [B,T,d_model]
