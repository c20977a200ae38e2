"""minLSTM: the LSTM whose gates see the input alone, normalised to sum to 1.  arXiv 2410.01201

    h_t = f'_t h_{t-1} + i'_t W_h u_t     f' = f / (f + i)     i' = i / (f + i)     (section 3.2)
    f, i = sigmoid(W u_t)

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


@register("min_lstm")
class MinLSTM(Layer):
    """Channels of minLSTM between linear maps.

    Args:
        d_model: width.
        expand: channels over d_model.
    """

    contractive = True

    def __init__(self, d_model: int, *, expand: int = 1) -> None:
        super().__init__(d_model)
        self.f_proj, self.i_proj, self.h_proj = (nn.Linear(d_model, expand * d_model) for _ in range(3))
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        # log f - log i decides: f' is its sigmoid.
        balance = F.logsigmoid(precise(self.f_proj(u))) - F.logsigmoid(precise(self.i_proj(u)))  # [B,T,channels]
        return elementwise(self.h_proj(u), log_decay=F.logsigmoid(balance), b=torch.sigmoid(-balance))
