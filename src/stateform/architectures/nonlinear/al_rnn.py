"""The almost-linear recurrent network: a few of its units are rectified, the others linear.  arXiv 2410.14240

    z_t = A z_{t-1} + W phi(z_{t-1}) + C u_t + h

phi rectifies the last P units and leaves the others; A is diagonal.
Between the planes at which a unit is rectified it is a linear system: 2^P of them in all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...forms.newton import Newton
from ...layer import Cell, Past
from ..registry import register
from .maps import uniform


@register("al_rnn")
class ALRNN(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: M, the units (default d_model).
        rectified: P, how many of them are rectified (default a quarter, one at least).
    """

    newton = Newton(damped=True)  # its planes make plain steps go back and forth

    def __init__(self, d_model: int, *, d_state: int | None = None, rectified: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        self.rectified = max(1, d // 4) if rectified is None else rectified
        require(0 <= self.rectified <= d, f"rectified is {rectified}; expected none to all of the {d} units")
        self.x_proj, self.h_proj = nn.Linear(d_model, d), nn.Linear(d, d, bias=False)
        self.A = nn.Parameter(torch.empty(d).uniform_(0.5, 0.9))
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(0.5 / d, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        linear, rectified = s.split([self.n - self.rectified, self.rectified], -1)
        return self.A * s + self.h_proj(torch.cat([linear, rectified.relu()], -1)) + x
