"""minGRU: the gated recurrent unit whose gate and candidate see the input alone.  arXiv 2410.01201

    h_t = (1 - z_t) h_{t-1} + z_t W_h u_t     z_t = sigmoid(W_z u_t)     (section 3.1)

The output is W_o h_t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import precise
from ...system import System
from ..registry import register
from .elementwise import elementwise


@register("min_gru")
class MinGRU(Layer):
    """Channels of minGRU between linear maps.

    Args:
        d_model: width.
        expand: channels over d_model.
    """

    contractive = True

    def __init__(self, d_model: int, *, expand: int = 1) -> None:
        super().__init__(d_model)
        self.z_proj, self.h_proj = (nn.Linear(d_model, expand * d_model) for _ in range(2))
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        z = precise(self.z_proj(u))  # [B,T,channels]
        return elementwise(self.h_proj(u), log_decay=F.logsigmoid(-z), b=torch.sigmoid(z))
