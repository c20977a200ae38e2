"""Higher-order linear attention: what one linear attention reads is the key or value of another.  arXiv 2510.27258

    y_t = sum_{j<=t} w_tj v_j,     w_tj = sum_{i<=j} (q_t . k_i)(q_j . k_i)        symmetric: (M M^T . L) V
    y_t = sum_{j<=t} w_tj v_j,     w_tj = sum_{j<=i<=t} (q_t . k_i)(q_i . k_j)     asymmetric: M M V

M is Q K^T up to its diagonal, L the causal mask. Symmetric, the keys of the second are S_j q_j with S_j the sum of
k_i k_i^T; asymmetric, its values are the reads of the first. Reads are normalised per head.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, normalised_size, precise
from ...system import Chain, System
from ..registry import register


@register("hla")
class HLA(Layer):
    """Heads of second-order linear attention.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        asymmetric: chain the two by values instead of keys.
        decay: of both states in each step, above 0 up to 1.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, asymmetric: bool = False,
        decay: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        require(0 < decay <= 1, f"decay is {decay}; expected a number above 0, 1 at most")
        self.n_heads, self.asymmetric, self.decay = n_heads, asymmetric, decay
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        q, k = q * self.d_state**-0.5, k * self.d_state**-0.5
        g = None if self.decay == 1 else precise(q).new_full((1,), math.log(self.decay))
        first = System(q, k, v if self.asymmetric else k, log_decay=g)
        z = past.read("first", first)
        k, v = (k, z) if self.asymmetric else (z, v)
        return Chain(q, k, v, log_decay=g, before=(first,))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))  # [B,T,d_model]
