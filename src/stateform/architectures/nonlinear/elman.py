"""The Elman network, the plain recurrent network.  doi 10.1207/s15516709cog1402_1

    h_t = tanh(W_h h_{t-1} + W_x u_t + b)

The output is W_o h_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ..registry import register
from .maps import uniform


@register("elman")
class Elman(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of the state (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        self.x_proj, self.h_proj = nn.Linear(d_model, d), nn.Linear(d, d, bias=False)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.h_proj(s) + x)
