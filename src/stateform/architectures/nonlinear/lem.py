"""Long expressive memory: two coupled states, each with its own learned time steps.  arXiv 2110.04744

    dt_1 = dt sigmoid(W_1 y_{t-1} + V_1 u_t + b_1)     dt_2 = dt sigmoid(W_2 y_{t-1} + V_2 u_t + b_2)     (eq. 3)
    z_t = (1 - dt_1) z_{t-1} + dt_1 tanh(W_z y_{t-1} + V_z u_t + b_z)
    y_t = (1 - dt_2) y_{t-1} + dt_2 tanh(W_y z_t + V_y u_t + b_y)

The state is (y, z), the output W_o y_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Cell, Past
from ...layer.parts import above_zero
from ...system import System
from ..registry import register
from .maps import uniform


@register("lem")
class LEM(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of y and of z (default d_model).
        dt: the longest time step, at most 1.
    """

    def __init__(self, d_model: int, *, d_state: int | None = None, dt: float = 1.0) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        require(above_zero("dt", dt) <= 1, f"dt is {dt}; expected a time step above 0, at most 1")
        self.dt = dt
        self.x_proj = nn.Linear(d_model, 4 * d)
        self.y_proj, self.z_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.y_proj, self.z_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,4*d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        y, z = s.chunk(2, -1)  # [...,H,d]
        (x_1, x_2, x_z, x_y), (y_1, y_2, y_z) = x.chunk(4, -1), self.y_proj(y).chunk(3, -1)
        dt_1, dt_2 = self.dt * torch.sigmoid(x_1 + y_1), self.dt * torch.sigmoid(x_2 + y_2)
        z = (1 - dt_1) * z + dt_1 * torch.tanh(x_z + y_z)
        y = (1 - dt_2) * y + dt_2 * torch.tanh(x_y + self.z_proj(z))
        return torch.cat([y, z], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        y, _ = y.flatten(2).chunk(2, -1)
        return self.out_proj(y)  # [B,T,d_model]
