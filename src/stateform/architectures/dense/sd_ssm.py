"""Selective dense state-space model: A_t mixes a dictionary of matrices, columns normalised.  arXiv 2412.19350

    h_t = A_t h_{t-1} + B u_t     A_t = normalise(sum_k softmax(W u_t)_k A_k)     (section 3)
    y_t = W_o LayerNorm(h_t)

normalise divides every column by its L_p norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...system import System
from ..registry import register
from .columns import column_normalised


@register("sd_ssm")
class SDSSM(Layer):
    """One dense system, normalised.

    Args:
        d_model: width.
        d_state: n.
        dictionary: number of matrices.
        p: of the norm; between 1.1 and 1.4 in the paper.
    """

    def __init__(self, d_model: int, *, d_state: int = 16, dictionary: int = 6, p: float = 1.2) -> None:
        super().__init__(d_model)
        require(dictionary >= 1, f"dictionary is {dictionary}; expected 1 or more matrices")
        require(p >= 1, f"p is {p}; expected 1 or more")
        self.p = p
        self.A = nn.Parameter(torch.randn(dictionary, d_state, d_state) * d_state**-0.5)
        self.select_proj = nn.Linear(d_model, dictionary)
        self.b_proj = nn.Linear(d_model, d_state, bias=False)
        self.norm = nn.LayerNorm(d_state)
        self.out_proj = nn.Linear(d_state, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        mixed = torch.einsum("btk,kij->btij", self.select_proj(u).softmax(-1), self.A)  # [B,T,n,n]
        A = column_normalised(mixed, self.p).unsqueeze(2)  # [B,T,1,n,n]
        return System(None, self.b_proj(u).unsqueeze(2).to(A.dtype), None, transition=A)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2).to(u.dtype)))  # [B,T,d_model]
