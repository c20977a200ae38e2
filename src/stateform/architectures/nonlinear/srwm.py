"""The self-referential weight matrix: it makes the keys and steps by which it is rewritten.  arXiv 2202.05780

    y_t, q_t, k_t, beta_t = W_{t-1} x_t
    W_t = W_{t-1} + sigmoid(beta_t) * W_{t-1} ( softmax(q_t) - softmax(k_t) ) softmax(k_t)^T

It is the delta rule: what W holds at k_t is replaced by what it holds at q_t. The rows of W that make y, q, k and beta
have a step beta each. The state is (W_t - W_0, y_t) with a learned W_0; x_t is the token, as a softmax per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layer import Cell, Past
from ...layer.parts import heads, split_size
from ...system import System
from ..registry import register


@register("srwm")
class SRWM(Cell):
    """Heads of matrices that rewrite themselves.

    Args:
        d_model: width.
        n_heads: heads.
    """

    def __init__(self, d_model: int, n_heads: int = 8) -> None:
        d = split_size(d_model, n_heads)
        rows = [d, d, d, 4]  # of y, q, k, beta
        super().__init__(d_model, d * sum(rows) + d, n_heads)
        self.d, self.rows = d, rows
        self.W = nn.Parameter(torch.randn(n_heads, d, sum(rows)) * d**-0.5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():
            self.W[..., -4:] -= 1.0

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return heads(u, self.n_heads).softmax(-1)  # [B,T,H,d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        shift = s[..., : -self.d].unflatten(-1, (self.d, -1))
        W = self.W + shift  # [...,H,d,rows]
        y, q, k, beta = torch.einsum("...hd,...hdr->...hr", x, W).split(self.rows, -1)
        q, k = q.softmax(-1), k.softmax(-1)
        steps = torch.cat([b.expand(*b.shape[:-1], n) for b, n in zip(beta.split(1, -1), self.rows, strict=True)], -1)
        write = torch.sigmoid(steps) * torch.einsum("...hd,...hdr->...hr", q - k, W)
        shift = shift + k.unsqueeze(-1) * write.unsqueeze(-2)
        return torch.cat([shift.flatten(-2), y], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        return self.out_proj(y[..., -self.d :].flatten(2))  # [B,T,d_model]
