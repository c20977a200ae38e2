"""The scalar memory of xLSTM: exponential gate, a normaliser, memory mixing within each head.  arXiv 2405.04517

    i, f, z, o = W u_t + R h_{t-1} + b     h_t = sigmoid(o) c_t / n_t                                 (eq. 8 to 17)
    c_t = f' c_{t-1} + exp(i) tanh(z)     n_t = f' n_{t-1} + exp(i)     f' = sigmoid(f) or exp(f)

i and f come from a short convolution of u. The state of a head is (h, a, l) with a = c / n and l = log n, which never
overflow:

    l_t = log(exp(log f' + l_{t-1}) + exp(i))
    w_t = exp(i - l_t) <= 1     a_t = a_{t-1} + w_t (tanh(z) - a_{t-1})

The read is normalised per head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Cell, Past, ShortConv
from ...layer.parts import HeadNorm, heads, split_size
from ...system import System
from ..registry import register

NOTHING = -1000.0
"""The logarithm of a normaliser into which nothing was written: below any gate, and finite."""
FAR = {torch.float64: 40.0}
"""A difference of logarithms beyond which the sum is the larger of the two, to the last digit."""
FAR_IN_SINGLE = 20.0


@register("slstm")
class SLSTM(Cell):
    """Heads of scalar memories, normalised.

    Args:
        d_model: width.
        n_heads: heads, the blocks of R.
        d_conv: taps of the convolution.
        forget: f = sigmoid(.) or exp(.).
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_conv: int = 4, forget: Literal["sigmoid", "exp"] = "sigmoid"
    ) -> None:
        d = split_size(d_model, n_heads)
        super().__init__(d_model, 3 * d, n_heads)
        self.forget = forget
        self.conv = ShortConv(d_model, d_conv, "conv", bias=True)
        self.if_proj, self.zo_proj = nn.Linear(d_model, 2 * d_model), nn.Linear(d_model, 2 * d_model)
        self.R = nn.Parameter(torch.randn(n_heads, d, 4 * d) * d**-0.5)
        self.norm = HeadNorm(d)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():  # begin with long memory, spread over the channels
            self.if_proj.bias[d_model:] = torch.linspace(3.0, 6.0, d_model)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        gates = (*self.if_proj(self.conv(u, past)).chunk(2, -1), *self.zo_proj(u).chunk(2, -1))
        return torch.cat([heads(x, self.n_heads) for x in gates], -1)  # [B,T,H,4*d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        h, a, log_n = s.chunk(3, -1)  # [...,H,d]
        i, f, z, o = (x + torch.einsum("...hd,hde->...he", h, self.R)).chunk(4, -1)
        log_n = log_sum((F.logsigmoid(f) if self.forget == "sigmoid" else f) + log_n, i)
        a = a + torch.exp(i - log_n) * (torch.tanh(z) - a)
        return torch.cat([torch.sigmoid(o) * a, a, log_n], -1)

    def start(self) -> Tensor:
        h = self.R.new_zeros(self.R.shape[:2])
        return torch.cat([h, h, h + NOTHING], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        h = y.chunk(3, -1)[0]
        return self.out_proj(self.norm(h).flatten(2))  # [B,T,d_model]


def log_sum(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(e^a + e^b). torch's own has no second derivative (0/0) where one is far below: it is raised."""
    if torch.is_grad_enabled():
        far = FAR.get(a.dtype, FAR_IN_SINGLE)
        a, b = torch.maximum(a, b - far), torch.maximum(b, a - far)
    return torch.logaddexp(a, b)
