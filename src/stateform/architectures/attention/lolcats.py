"""LoLCATs: a window of softmax and linear attention to all before it, under one normaliser.  arXiv 2410.10254

    y_t = ( sum_near gamma exp(q_t^T k_j / sqrt(n)) v_j + sum_far phi(q_t)^T phi(k_j) v_j ) / eta_t
    eta_t = sum_near gamma exp(q_t^T k_j / sqrt(n)) + sum_far phi(q_t)^T phi(k_j)
    phi(x) = [softmax(W x), softmax(-W x)],     near: t - window < j <= t,     far: j <= t - window

gamma is a number in (0,1) per head, W a matrix per head. The linear sum is the sink of the window: its logarithm is the
sink's logit, its mean the sink's value. Both sums have one scale (the published code shifts the window's by its
largest logit alone). The window is that of sliding_window, and the features are Hedgehog's: hence the base class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Past
from ...layer.parts import precise, rotated
from ...system import Chain, SoftmaxRead, System
from ..registry import register
from .hedgehog import spikes
from .sliding_window import SlidingWindow


@register("lolcats")
class LoLCATs(SlidingWindow):
    """Softmax attention to the last `window` tokens, linear attention to those before.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        window: tokens seen by softmax, the token itself included.
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        window: int = 32, positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, window=window, positions=positions)
        one = torch.eye(self.d_state)
        self.q_map = nn.Parameter(one.repeat(n_heads, 1, 1))  # W of queries [H,n,n]
        self.k_map = nn.Parameter(one.repeat(self.n_kv_heads, 1, 1))
        self.gamma = nn.Parameter(torch.full((n_heads,), -2.197))  # before the sigmoid: 0.1

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past, (q, k, v) = past or Past(), self.heads_of(u)
        near = self.attention(q, k, v)
        if self.positions == "rope":
            q, k = (rotated(x, past.places(u), self.rope_base) for x in (q, k))
        kv = torch.cat([k, v, torch.ones_like(v[..., :1])], -1)  # [B,T,H_kv,n+p+1]
        left = past.extend("left", kv.flatten(2), self.window)[:, : u.shape[1]]  # what left the window; at first, 0
        k, v = precise(left.unflatten(2, kv.shape[2:])).split([self.d_state, v.shape[-1] + 1], -1)
        far = System(spikes(precise(q), self.q_map), spikes(k, self.k_map), v)
        total = past.read("far", far)  # [B,T,H,p+1]: sums of weighted values, and of weights
        weight = total[..., -1]
        logit = torch.where(weight > 0, weight, 1.0).log().masked_fill(weight <= 0, -torch.inf)
        mean = total[..., :-1] / weight.clamp_min(torch.finfo(weight.dtype).tiny).unsqueeze(-1)
        sink = logit - F.logsigmoid(precise(self.gamma))
        read = SoftmaxRead(window=self.window, sink=sink, sink_value=mean.to(near.dtype))
        return Chain(near.q, near.k, near.v, phase=near.phase, readout=read, eta="sum", before=(far,))
