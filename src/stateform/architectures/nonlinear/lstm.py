"""Long short-term memory; weights and gates as in torch.nn.LSTM.  doi 10.1162/neco.1997.9.8.1735

    i, f, g, o = W u_t + R h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)     h_t = sigmoid(o) tanh(c_t)

The state is (h, c), the output W_o h_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ...system import System
from ..registry import register
from .maps import uniform, weights


@register("lstm")
class LSTM(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of h and of c (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        self.x_proj, self.h_proj = nn.Linear(d_model, 4 * d), nn.Linear(d, 4 * d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,4*d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        h, c = s.chunk(2, -1)  # [...,H,d]
        i, f, g, o = (x + self.h_proj(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def loop(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        maps = weights(self.x_proj, self.h_proj)
        if maps is None:
            return None
        h, c = s.transpose(0, 1).contiguous().chunk(2, -1)
        y, h, c = torch.lstm(u, (h, c), maps, True, 1, 0.0, self.training, False, True)
        return y.unsqueeze(2), torch.cat([h, c], -1).transpose(0, 1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2)[..., : self.n // 2])  # [B,T,d_model]
