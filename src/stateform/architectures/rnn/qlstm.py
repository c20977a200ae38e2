"""The quasi-LSTM: an LSTM whose gates do not see the state.  arXiv 2405.15731

    h_t = f_t h_{t-1} + i_t W_u u_t     y_t = o_t h_t     f, i, o = sigmoid(W u_t)     (eq. 20)
    reversed, the paper's finding: f_t = sigmoid(-W_f u_t)^a, a learned                (eq. 23)

Reversed, it is the gate of S6 with A = a I.
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


@register("qlstm")
class QLSTM(Layer):
    """Channels of a quasi-LSTM between linear maps.

    Args:
        d_model: width.
        expand: channels over d_model.
        reversed: the reversed sigmoid.
    """

    contractive = True

    def __init__(self, d_model: int, *, expand: int = 1, reversed: bool = False) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        self.u_proj, self.f_proj, self.i_proj, self.o_proj = (nn.Linear(d_model, inner) for _ in range(4))
        self.log_a = nn.Parameter(torch.zeros(inner)) if reversed else None
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        f = precise(self.f_proj(u))  # [B,T,channels]
        g = F.logsigmoid(f) if self.log_a is None else precise(self.log_a).exp() * F.logsigmoid(-f)  # [B,T,channels]
        return elementwise(self.u_proj(u), log_decay=g, b=torch.sigmoid(self.i_proj(u)))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2) * torch.sigmoid(self.o_proj(u)))  # [B,T,d_model]
