"""Liquid time-constant network: an equation whose time constants depend on state and input.  arXiv 2006.04439

    dh/dt = -(1/tau + f) h + f A     f = sigmoid(W_r h + W u_t + b)     (eq. 1)
    h <- (h + dt f A) / (1 + dt (1/tau + f))     dt = 1 / unfolds       (algorithm 1)

A token is one unit of time, in `unfolds` fused steps of the solver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Cell, Past
from ..registry import register


@register("ltc")
class LTC(Cell):
    """One cell of the whole width, then a linear map.

    Args:
        d_model: width.
        d_state: size of h (default d_model).
        unfolds: steps of the solver per token.
    """

    def __init__(self, d_model: int, *, d_state: int | None = None, unfolds: int = 6) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        require(unfolds >= 1, f"unfolds is {unfolds}; expected 1 step of the solver or more")
        self.unfolds = unfolds
        self.x_proj, self.h_proj = nn.Linear(d_model, d), nn.Linear(d, d, bias=False)
        self.A = nn.Parameter(torch.randn(d))
        self.log_tau = nn.Parameter(torch.zeros(d))
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)  # [B,T,1,d]

    def cell(self, s: Tensor, x: Any) -> Tensor:
        rate, dt = torch.exp(-self.log_tau), 1 / self.unfolds
        for _ in range(self.unfolds):
            f = torch.sigmoid(x + self.h_proj(s))  # [...,H,d]
            s = (s + dt * f * self.A) / (1 + dt * (rate + f))
        return s
