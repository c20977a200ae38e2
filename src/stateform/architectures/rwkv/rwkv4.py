"""RWKV-4 time mixing: per channel an exponentially weighted average, a bonus for the token itself.  arXiv 2305.13048

    y_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)     (eq. 16)
    out_t = W_o (sigmoid(r_t) y_t)                                                          (eq. 17)

r, k and v are linear maps of u_t and u_{t-1}, mixed per channel. As a System: heads are channels, n = p = 1, the decay
is e^{-w}, log_b = k, the read is exclusive, d = e^{u + k}, and eta is the sum of the weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...layer import Layer, Past
from ...layer.parts import precise
from ...system import System
from ..registry import register
from .shared import first_shares, mixed, zigzag


@register("rwkv4")
class RWKV4(Layer):
    """Channels of weighted averages behind a token shift, gated.

    Args:
        d_model: width (channels, which are the heads).

    Parameters: `mix` [3,d_model], the share of the token before in r, k, v (published weights hold 1 minus that);
    `log_w`, with w = exp(log_w), and `bonus`, the paper's u, [d_model] each. In float32 |u + k| must stay below 87.
    """

    contractive = True

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.mix = first_shares(d_model, 0.5, 1.0, 1.0)
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        self.log_w = nn.Parameter(-5 + 8 * torch.linspace(0, 1, d_model) ** 0.7)
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * zigzag(d_model))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_k, at_v = mixed(u, past, *self.mix[1:])
        k, v = precise(self.k_proj(at_k)), self.v_proj(at_v).unsqueeze(-1)  # [B,T,d_model], [B,T,d_model,1]
        one = v.new_ones(1, 1)
        return System(
            one, one, v, log_decay=-precise(self.log_w).exp(), log_b=k, d=(precise(self.bonus) + k).exp(), eta="sum",
            exclusive=True,
        )  # fmt: skip

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        (at_r,) = mixed(u, past, self.mix[0])
        return self.out_proj(torch.sigmoid(self.r_proj(at_r)) * y.flatten(2))  # [B,T,d_model]
