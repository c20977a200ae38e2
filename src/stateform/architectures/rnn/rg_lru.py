"""Hawk and Griffin's block: a real-gated linear recurrent unit behind a short convolution.  arXiv 2402.19427

    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t     r, i = sigmoid(W x_t)     (eq. 1 to 4)
    log a_t = -c softplus(Lambda) r_t

x is a linear map of u behind the convolution; gelu(W_y u_t) gates the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past, ShortConv
from ...layer.parts import above_zero, precise, split_size
from ...system import System
from ..registry import register
from .elementwise import elementwise


class BlockLinear(nn.Module):
    """A block-diagonal linear map with bias, one block a head."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        size = split_size(width, n_heads, "the inner width")
        self.weight = nn.Parameter(torch.randn(n_heads, size, size) * size**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_heads, size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, self.bias.shape)
        return (torch.einsum("bthi,hij->bthj", x, self.weight) + self.bias).flatten(2)


@register("rg_lru")
class RGLRU(Layer):
    """A short convolution, channels of the recurrent unit, a gate.

    Args:
        d_model: width.
        n_heads: blocks of the block-diagonal gates.
        expand: inner width over d_model.
        d_conv: taps of the short convolution.
        c: the exponent's scale.
        reset_first: the first token of a sequence has the factor 1 instead of sqrt(1 - a^2), as in transformers.
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        expand: int = 1,
        d_conv: int = 4,
        c: float = 8.0,
        reset_first: bool = False,
    ) -> None:
        super().__init__(d_model)
        inner = expand * d_model
        self.c, self.reset_first = above_zero("c", c), reset_first
        self.x_proj, self.y_proj = nn.Linear(d_model, inner), nn.Linear(d_model, inner)
        self.conv = ShortConv(inner, d_conv, "conv", bias=True, activation=None)
        self.r_gate, self.i_gate = BlockLinear(inner, n_heads), BlockLinear(inner, n_heads)
        a2 = torch.empty(inner).uniform_(0.9**2, 0.999**2)
        self.Lambda = nn.Parameter(torch.log(torch.expm1(-0.5 * torch.log(a2) / c)))  # a = exp(-c softplus(Lambda))
        self.out_proj = nn.Linear(inner, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        x = self.conv(self.x_proj(u), past)  # [B,T,channels]
        g = -self.c * F.softplus(precise(self.Lambda)) * torch.sigmoid(precise(self.r_gate(x)))  # [B,T,channels]
        # 1 - a^2 without cancellation; kept off zero, where the root has no derivative.
        scale = torch.sqrt((-torch.expm1(2 * g)).clamp_min(torch.finfo(g.dtype).tiny))
        if self.reset_first:
            first = torch.arange(u.shape[1], device=u.device) == 0
            before = None if past is None else past.position
            first = first if before is None else first & (before == 0)[:, None]
            scale = torch.where(first[..., None], 1.0, scale)
        return elementwise(x, log_decay=g, b=scale * torch.sigmoid(precise(self.i_gate(x))))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2) * F.gelu(self.y_proj(u), approximate="tanh"))  # [B,T,d_model]
