"""Long short-term memory whose gates see the memory too; also with one gate for both.  arXiv 1503.04069

    i, f = sigmoid(W u_t + R h_{t-1} + p c_{t-1} + b)     g = tanh(W_g u_t + R_g h_{t-1} + b_g)     (section 2)
    c_t = f c_{t-1} + i g     o = sigmoid(W_o u_t + R_o h_{t-1} + p_o c_t + b_o)     h_t = o tanh(c_t)
    coupled: f = 1 - i                                                                              (variant CIFG)

The state is (h, c), the output W_o h_t. With p = 0 it is the LSTM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ...system import System
from ..registry import register
from .maps import uniform


@register("peephole_lstm")
class PeepholeLSTM(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of h and of c (default d_model).
        coupled: what is written replaces what is forgotten, f = 1 - i.
    """

    def __init__(self, d_model: int, *, d_state: int | None = None, coupled: bool = False) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        self.gates = 3 if coupled else 4
        self.x_proj, self.h_proj = nn.Linear(d_model, self.gates * d), nn.Linear(d, self.gates * d)
        self.peepholes = nn.Parameter(torch.empty(self.gates - 1, d).uniform_(-(d**-0.5), d**-0.5))
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,gates*d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        h, c = s.chunk(2, -1)  # [...,H,d]
        i, *f, g, o = (x + self.h_proj(h)).chunk(self.gates, -1)
        i = torch.sigmoid(i + self.peepholes[0] * c)
        keep = torch.sigmoid(f[0] + self.peepholes[1] * c) if f else 1 - i
        c = keep * c + i * torch.tanh(g)
        return torch.cat([torch.sigmoid(o + self.peepholes[-1] * c) * torch.tanh(c), c], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2)[..., : self.n // 2])  # [B,T,d_model]
