"""The event-based GRU: a unit is heard when it exceeds its threshold, which it then loses.  arXiv 2206.06178

    u, r = sigmoid(W x_t + R y_{t-1} + b)     z = tanh(W_z x_t + b_z + r (R_z y_{t-1} + c_z))
    c_t = u (c_{t-1} - theta e_{t-1}) + (1 - u) z     e_t = 1 where c_t > theta, else 0     y_t = e_t c_t

theta in (0,1) is learned. The state is (y_t, c_t - theta e_t), the output W_o y_t; most of y_t is 0.
Gradients are those of the equations, in which the steps e_t have none: no surrogate of their slope is here.
Where c_t is within a rounding of theta, two forms may differ by an event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ...layer.parts import precise_linear
from ...system import System
from ..registry import register
from .maps import uniform


@register("egru")
class EGRU(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: units (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        self.x_proj, self.h_proj = nn.Linear(d_model, 3 * d), nn.Linear(d, 3 * d)
        self.theta = nn.Parameter(torch.randn(d))
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return precise_linear(self.x_proj, u).unsqueeze(2)  # [B,T,1,3*d]; a threshold sees the last digit

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        (y, c), theta = s.chunk(2, -1), torch.sigmoid(self.theta)  # [...,H,d]
        (u_x, r_x, z_x), (u_y, r_y, z_y) = x.chunk(3, -1), self.h_proj(y).chunk(3, -1)
        u = torch.sigmoid(u_x + u_y)
        c = u * c + (1 - u) * torch.tanh(z_x + torch.sigmoid(r_x + r_y) * z_y)
        event = (c > theta).to(c.dtype)
        return torch.cat([event * c, c - theta * event], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2)[..., : self.n // 2])  # [B,T,d_model]
