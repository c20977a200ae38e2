"""One system per channel, then a gated mixing of the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import log_uniform
from ...system import System


class Channels(Layer):
    """One system per channel (heads = channels), then GELU and a gated mixing of the channels."""

    def __init__(self, d_model: int, dt_min: float, dt_max: float) -> None:
        super().__init__(d_model)
        self.log_dt = nn.Parameter(log_uniform(d_model, dt_min, dt_max).log())
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return F.glu(self.out_proj(F.gelu(y.flatten(2))), -1)  # [B,T,d_model]
