"""Gated recurrent unit; weights and gates as in torch.nn.GRU.  arXiv 1406.1078

    r, z = sigmoid(W u_t + R h_{t-1} + b)     n = tanh(W_n u_t + b_n + r (R_n h_{t-1} + c_n))
    h_t = (1 - z) n + z h_{t-1}

The output is W_o h_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ..registry import register
from .maps import uniform, weights


@register("gru")
class GRU(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of h (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        self.x_proj, self.h_proj = nn.Linear(d_model, 3 * d), nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,3*d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), self.h_proj(s).chunk(3, -1)
        z = torch.sigmoid(z_x + z_h)  # [...,H,d]
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (1 - z) * n + z * s

    def loop(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        maps = weights(self.x_proj, self.h_proj)
        if maps is None:
            return None
        h = s.transpose(0, 1).contiguous()
        y, h = torch.gru(u, h, maps, True, 1, 0.0, self.training, False, True)
        return y.unsqueeze(2), h.transpose(0, 1)
