"""Linear attention: the features elu(x) + 1 of queries and keys, normalised by their sum.  arXiv 2006.16236

    S_t = S_{t-1} + phi(k_t) v_t^T     s_t = s_{t-1} + phi(k_t)     phi(x) = elu(x) + 1     (eq. 16 to 20)
    y_t = phi(q_t)^T S_t / phi(q_t)^T s_t

s_t is one more column of the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import heads, split_size
from ...system import System
from ..registry import register


def elu_features(x: Tensor) -> Tensor:
    """Compute elu(x) + 1 with all its digits where x is far below 0. What the dtype cannot hold counts as the least it
    can, so that no sum of weights is 0.
    """
    limits = torch.finfo(x.dtype)
    least = 4 * limits.tiny * (limits.eps if x.dtype == torch.float16 else 1.0)
    return F.relu(x) + torch.exp(x.clamp(math.log(least), 0.0))


@register("linear")
class Linear(Layer):
    """Heads of linear attention between linear maps.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: features per head (default d_model / n_heads).
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model)
        self.n_heads, self.d_state = n_heads, d_state or split_size(d_model, n_heads)
        split_size(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        q = elu_features(q)
        # y does not depend on the size of q: its largest feature becomes 1, so that small ones of k keep their digits.
        return System(q / q.detach().amax(-1, keepdim=True), elu_features(k), v, eta="sum")
