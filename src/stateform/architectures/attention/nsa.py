"""NSA: compressed, chosen and near keys, each read by softmax attention, the reads gated.  arXiv 2502.11089

    compressed   kc_b = sum_i c_i * k_i,  vc_b likewise, over the tokens i of block b; seen where b is whole
    chosen       the n_blocks blocks with the largest weight of kc_b, summed over the query heads that share keys,
                 the first and the last two among them
    near         t - window < j <= t
    y_t = sum over the three of sigmoid(g_t) softmax(q_t^T k / sqrt(n)) v

Each of the three has keys and values of its own: one System of 3 H heads. The compression is a weighted sum, learned
per place in a block and channel (the paper's is an MLP), and blocks do not overlap. Its key stands at its last token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...forms.scores import Absorbed, product_logits
from ...layer import Layer, Past
from ...layer.parts import above_zero, heads, pair_up, rope_angles, split_size
from ...system import SoftmaxRead, System
from ..registry import register
from . import blocks

BRANCHES = 3


@register("nsa")
class NSA(Layer):
    """Heads of attention with three views of the past.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values of each view, a divisor of n_heads (default 1).
        d_state: keys per head (default d_model / n_heads).
        block: tokens in a block.
        n_blocks: blocks that a query sees whole.
        window: tokens that it sees behind it, itself included.
        rope_base: the largest wavelength is 2 pi times about this.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int = 1, d_state: int | None = None, block: int = 8,
        n_blocks: int = 4, window: int = 32, rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        split_size(n_heads, n_kv_heads, "n_heads", "n_kv_heads")
        self.n_heads, self.n_kv_heads, self.d_state, self.rope_base = n_heads, n_kv_heads, d_state or p, rope_base
        self.block, self.n_blocks = above_zero("block", block), above_zero("n_blocks", n_blocks)
        require(n_blocks >= 3, f"n_blocks is {n_blocks}; expected 3 or more: the first block and the last two are seen")
        self.window, kv = above_zero("window", window), BRANCHES * n_kv_heads
        rope_angles(self.d_state, rope_base)  # refuses what cannot turn
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, kv * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, kv * p, bias=False)
        self.compress = nn.Parameter(torch.full((block, n_kv_heads, self.d_state + p), 1 / block))  # c
        self.gate_proj = nn.Linear(d_model, BRANCHES * n_heads)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def compressed(self, kv: Tensor, past: Past) -> Tensor:
        """Sum keys and values [B,T,H_kv,n+p] over the last `block` tokens, up to each."""
        long = past.extend("block", kv.flatten(2), self.block).unflatten(2, kv.shape[2:])
        last = long.unfold(1, self.block, 1)[:, 1:]  # [B,T,H_kv,n+p,block]
        return torch.einsum("bthci,ihc->bthc", last, self.compress.to(kv.dtype))

    def chosen(self, there: Absorbed, place: Tensor, past: Past) -> Tensor:
        """Choose blocks for each group of query heads: 0 and -inf [B,T,H_kv,blocks]."""
        keys = F.pad(there.keys[:, :, : self.n_kv_heads], (0, 0, 0, 0, 1, 0))  # the first: where there is none
        last = (torch.arange(blocks.count(there.keys, self.block), device=place.device) + 1) * self.block - 1
        column = last - past.places(keys, there.past + 1)[:, :1]
        column = column.clamp(0, keys.shape[1] - 1).expand(len(keys), -1)
        ends = keys.gather(1, column[..., None, None].expand(-1, -1, *keys.shape[2:]))  # [B,blocks,H_kv,n]
        logits = product_logits(there.q[:, :, : self.n_heads], ends, self.n_heads)  # [B,H,T,blocks]
        whole = (last <= place.unsqueeze(-1)).unsqueeze(1)
        weights = logits.masked_fill(~whole, torch.finfo(logits.dtype).min).softmax(-1)
        scores = weights.unflatten(1, (self.n_kv_heads, -1)).sum(2).transpose(1, 2)
        return blocks.chosen(scores, place // self.block, self.n_blocks, first=1, near=2)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past, kv = past or Past(), BRANCHES * self.n_kv_heads
        q, place = heads(self.q_proj(u), self.n_heads) * self.d_state**-0.5, past.places(u)
        both = torch.cat([heads(self.k_proj(u), kv), heads(self.v_proj(u), kv)], -1)  # [B,T,3 H_kv,n+p]
        first, rest = both.split([self.n_kv_heads, kv - self.n_kv_heads], 2)
        k, v = torch.cat([self.compressed(first, past), rest], 2).split(
            [self.d_state, both.shape[-1] - self.d_state], -1
        )
        q, phase = pair_up(q).repeat(1, 1, BRANCHES, 1), rope_angles(self.d_state, self.rope_base, u.device)
        system = System(q, pair_up(k, conjugate=True), v, phase=phase, readout="exp", eta="sum")
        shown = F.pad(self.chosen(Absorbed(system, past.state), place, past), (0, 0, self.n_kv_heads, self.n_kv_heads))
        end = torch.where((place + 1) % self.block == 0, 0.0, -torch.inf).expand(u.shape[:2])
        bias = F.pad(end.unsqueeze(-1), (0, BRANCHES - 1))  # [B,T,3]
        far = torch.tensor([0.0, 0.0, -torch.inf], device=u.device).unsqueeze(1)
        distance = F.pad(far, (self.window, 0))  # [3,window+1]
        return replace(system, readout=SoftmaxRead(bias=bias, distance=distance, blocks=shown, block=self.block))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = heads(self.gate_proj(u), BRANCHES * self.n_heads).sigmoid() * y
        return self.out_proj(y.unflatten(2, (BRANCHES, -1)).sum(2).flatten(2))  # [B,T,d_model]
