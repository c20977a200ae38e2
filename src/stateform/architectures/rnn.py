"""Recurrent networks whose gates see the input alone: elementwise linear systems, one head per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Layer, Past, ShortConv
from ..layer.parts import above_zero, precise, split_size
from ..system import System
from .registry import register


def elementwise(x: Tensor, *, log_decay: Tensor, b: Tensor) -> System:
    """h_t = exp(log_decay_t) h_{t-1} + b_t x_t per channel, y_t = h_t; all [B,T,channels]."""
    one = torch.ones(1, 1, dtype=x.dtype, device=x.device)
    return System(one, one, x.unsqueeze(-1), log_decay=log_decay, b=b)


@register("qlstm", paper="arXiv 2405.15731")
class QLSTM(Layer):
    """The quasi-LSTM: an LSTM whose gates do not see the state.

    h_t = f_t h_{t-1} + i_t W_u u_t,  y_t = o_t h_t,  f, i, o = sigmoid(W u_t) (eq. 20). Reversed, the paper's finding:
    f_t = sigmoid(-W_f u_t)^a with a learned (eq. 23, S6's own gate for A = a I).

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
        f = precise(self.f_proj(u))
        g = F.logsigmoid(f) if self.log_a is None else precise(self.log_a).exp() * F.logsigmoid(-f)
        return elementwise(self.u_proj(u), log_decay=g, b=torch.sigmoid(self.i_proj(u)))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2) * torch.sigmoid(self.o_proj(u)))


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


@register("rg_lru", paper="arXiv 2402.19427")
class RGLRU(Layer):
    """The recurrent block of Hawk and Griffin: a real-gated linear recurrent unit behind a short convolution.

    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t,  log a_t = -c softplus(Lambda) r_t,  r, i = sigmoid(W x_t)
    (eq. 1 to 4).

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
        x = self.conv(self.x_proj(u), past)
        g = -self.c * F.softplus(precise(self.Lambda)) * torch.sigmoid(precise(self.r_gate(x)))
        # 1 - a^2 without cancellation; kept off zero, where the root has no derivative.
        scale = torch.sqrt((-torch.expm1(2 * g)).clamp_min(torch.finfo(g.dtype).tiny))
        if self.reset_first:
            first = torch.arange(u.shape[1], device=u.device) == 0
            before = None if past is None else past.position
            first = first if before is None else first & (before == 0)[:, None]
            scale = torch.where(first[..., None], 1.0, scale)
        return elementwise(x, log_decay=g, b=scale * torch.sigmoid(precise(self.i_gate(x))))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2) * F.gelu(self.y_proj(u), approximate="tanh"))
