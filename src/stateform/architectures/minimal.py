"""The smallest recurrences: minGRU and minLSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Layer, Past
from ..layer.parts import precise
from ..system import System
from .registry import register
from .rnn import elementwise


@register("min_gru", paper="arXiv 2410.01201")
class MinGRU(Layer):
    """minGRU: h_t = (1 - z_t) h_{t-1} + z_t W_h u_t,  z_t = sigmoid(W_z u_t) (section 3.1).

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
        z = precise(self.z_proj(u))
        return elementwise(self.h_proj(u), log_decay=F.logsigmoid(-z), b=torch.sigmoid(z))


@register("min_lstm", paper="arXiv 2410.01201")
class MinLSTM(Layer):
    """minLSTM: h_t = f'_t h_{t-1} + i'_t W_h u_t,  f' = f / (f + i),  i' = i / (f + i) (section 3.2).

    The gates before normalising are f, i = sigmoid(W u_t).

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
        balance = F.logsigmoid(precise(self.f_proj(u))) - F.logsigmoid(precise(self.i_proj(u)))
        return elementwise(self.h_proj(u), log_decay=F.logsigmoid(balance), b=torch.sigmoid(-balance))
