"""Normalized attention: linear attention divided by a learned function of the token.  arXiv 2405.15731

    S_t = S_{t-1} + k_t v_t^T     y_t = q_t^T S_t / eta(u_t)     (eq. 22)
    eta = exp, softplus or sigmoid of W_eta u_t, per head        (eq. 29, 30)

q, k and v are linear maps of the token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import heads, precise, split_size
from ...system import System
from ..registry import register

ETAS: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": F.softplus, "sigmoid": torch.sigmoid}


@register("normalized")
class Normalized(Layer):
    """Heads of normalized attention between linear maps.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        eta: "exp" (the paper's best), "softplus" or "sigmoid".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None,
        eta: Literal["exp", "softplus", "sigmoid"] = "exp",
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.n_heads, self.d_state, self.eta = n_heads, d_state or split_size(d_model, n_heads), ETAS[eta]
        split_size(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.eta_proj = nn.Linear(d_model, n_heads)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        return System(q, k, v, eta=self.eta(precise(self.eta_proj(u))))
