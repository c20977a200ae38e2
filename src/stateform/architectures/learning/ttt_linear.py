"""TTT-Linear: the state is a linear model W, trained on each token to rebuild the value from the key.  arXiv 2407.04620

Per head f(x; W) = x + LN(W^T x) (section 2.7), loss l(W; t) = 1/2 ||f(k_t; W) - v_t||^2, and all `block` tokens of
a mini-batch take their gradients at W', the weights before it (section 2.4). With W = W_0 + S:

    v'_t = -dl(W'; t)/dz at z = W'^T k_t (without inner norm: v_t - W'^T k_t)
    S_t = S_{t-1} + b_t k_t v'_t^T     b_t = base_lr sigmoid(W_b u_t) / n     y_t = f(q_t; W_0 + S_t)

The System has no decay, and its values are the errors v' instead of v. They depend on the state, not linearly, and
are found one block after another. Averaged, as in the authors' code, what a block has learned so far counts c_i
times at its i-th token, c_i = 1/i + learned:

    W_t = W' + c_i sum_j b_j k_j v'_j^T,  j in the block of t up to t

Two states are then side by side, A for all blocks with the last c and G for the present one, reset where it begins:
W_t = W_0 + A_t + (c_i - c_last) G_t. The keys are [c_last k, k], the queries [q, (c_i - c_last) q].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...graph import Tensors, any_length, one_by_one, over_time
from ...layer import Layer, Past, ShortConv
from ...layer.parts import above_zero, heads, precise, precise_linear, rope_angles, rotated, split_size
from ...system import System
from ...system.precision import without_autocast
from ..registry import register
from .inner_norm import InnerNorm, descent


@register("ttt_linear")
class TTTLinear(Layer):
    """Heads of linear models that learn, normalised.

    Args:
        d_model: width.
        n_heads: heads; keys and values have d_model / n_heads.
        block: tokens of a mini-batch. With 1, inner_norm=False and averaged=False it is DeltaNet.
        base_lr: n times the largest step b_t.
        inner_norm: the layer norm (and the residual) inside f. Without it the training diverges, as gradient descent
            does, where the sum of b_t ||k_t||^2 over a block exceeds 2.
        averaged: the weights c_i.
        bias: a bias in the inner model, a last key that is always 1.
        positions: "rope" (of the place in the block) or "none".
        rope_base: the largest wavelength is 2 pi times about this.
        gate: gelu(W_g u_t) times the output's norm, as in the authors' Mamba backbone.
        share_qk: one projection for q and k, told apart by their short convolutions, as in that backbone.
        d_conv: taps of these.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, block: int = 16, base_lr: float = 1.0, inner_norm: bool = True,
        averaged: bool = True, bias: bool = True, positions: Literal["rope", "none"] = "rope",
        rope_base: float = 10_000.0, gate: bool = False, share_qk: bool = False, d_conv: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        require(block >= 1, f"block is {block}; expected 1 or more tokens")
        require(d_conv >= 2, f"d_conv is {d_conv}; expected 2 or more taps")
        self.n_heads, self.block, self.base_lr, self.bias = n_heads, block, above_zero("base_lr", base_lr), bias
        self.positions, self.rope_base = positions, rope_base
        if positions == "rope":
            rope_angles(p, rope_base)
        self.q_proj, self.v_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.k_proj = self.q_proj if share_qk else nn.Linear(d_model, d_model, bias=False)
        self.q_conv, self.k_conv = (
            ShortConv(d_model, d_conv, name, bias=True, activation=None) if share_qk else None
            for name in ("q_conv", "k_conv")
        )
        self.lr_proj = nn.Linear(d_model, n_heads)
        W0 = torch.cat([0.02 * torch.randn(n_heads, p, p), torch.zeros(n_heads, 1 if bias else 0, p)], 1)
        self.W0 = nn.Parameter(W0)
        self.inner_norm = InnerNorm(n_heads, p) if inner_norm else None
        self.c = nn.Parameter(torch.zeros(block)) if averaged else None
        self.norm = nn.LayerNorm(d_model, eps=1e-6)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False) if gate else None
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def counts(self) -> Tensor:
        """Give c_1 .. c_block, 0 or more."""
        assert self.c is not None
        c = precise(self.c)
        return (1 / torch.arange(1, self.block + 1, device=c.device, dtype=c.dtype) + c).clamp_min(0)

    def errors(self, W: Tensor, k: Tensor, target: Tensor) -> Tensor:
        """Find v' [B,t,H,p] at the weights W [B,H,n,p], for keys [B,t,H,n] and what W^T k (or its norm) should be."""
        z = torch.einsum("bthn,bhnp->bthp", k, W)
        return target - z if self.inner_norm is None else descent(self.inner_norm, z, target)

    def learn(
        self, k: Tensor, target: Tensor, written: Tensor, S: Tensor, start: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Find v' of all tokens, and the state at the start of the last one's block, one step a block.

        Args:
            k: [B,T,H,n].
            target: what W^T k (or its norm) should be, [B,T,H,p].
            written: the key with which v' adds to the weights of later blocks, [B,T,H,n].
            S: the state before the first token, [B,H,n,p].
            start: the state at the start of its block.
            first: its place in the block, [B] (None: 0). Where rows differ they are shifted, so that their blocks begin
                together; what is empty writes nothing.
        """
        B, T = k.shape[:2]
        W0, many = precise(self.W0), any_length(T)
        blocks = (T - 1 + (0 if first is None else self.block - 1)) // self.block + 1
        if many:
            blocks = blocks + 1  # two or more: a graph would hold for one, or for more than one
        elif blocks <= 1:
            return self.errors(W0 + start, k, target), start
        at = torch.arange(T, device=k.device).expand(B, T) + (0 if first is None else first[:, None])
        slots = (torch.arange(B, device=k.device)[:, None], at // self.block, at % self.block)
        ends = torch.arange(blocks, device=k.device) == slots[1][:, -1:]

        def by_block(x: Tensor) -> Tensor:
            return x.new_zeros(B, blocks, self.block, *x.shape[2:]).index_put(slots, x)

        def step(state: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            (S, start, last), (k, target, written, end) = state, x
            last = torch.where(end[:, None, None, None], start, last)
            values = self.errors(W0 + start, k, target)
            S = S + torch.einsum("bthn,bthp->bhnp", written, values)
            return (S, S, last), (values,)

        xs, state = (*map(by_block, (k, target, written)), ends), (S, start, start)
        (_, _, last), (values,) = over_time(step, state, xs) if many else one_by_one(step, state, xs)
        return values[slots], last

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        # Not in half precision: training that sees other roundings goes other ways.
        q, k, v = (precise_linear(f, u) for f in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_conv is not None and self.k_conv is not None:
            q, k = self.q_conv(q, past), self.k_conv(k, past)
        q, k, v = (heads(x, self.n_heads) for x in (q, k, v))
        b = self.base_lr / k.shape[-1] * torch.sigmoid(precise_linear(self.lr_proj, u))
        first = None if past.position is None else past.position % self.block
        place = torch.arange(u.shape[1], device=u.device).expand(u.shape[:2])
        place = (place if first is None else place + first[:, None]) % self.block
        if self.positions == "rope":
            q, k = (rotated(x, place, self.rope_base) for x in (q, k))
        target = v if self.inner_norm is None else v - k
        if self.bias:
            q, k = (F.pad(x, (0, 1), value=1.0) for x in (q, k))
        counts = None if self.c is None else self.counts()
        written = k if counts is None else counts[-1] * k

        if past.state is None or first is None:
            S = start = precise(self.W0).new_zeros(len(u), *self.W0.shape)
        else:
            if counts is None:
                S, start = past.state["S"], past.state["start"]
            else:
                S, present = past.state["S"].chunk(2, 2)
                start = S - counts[-1] * present
            start = torch.where(first[:, None, None, None] > 0, start.to(S), S)
        with without_autocast(u.device):
            values, start = self.learn(k, target, b.unsqueeze(-1) * written, S, start, first)

        if counts is None:
            past.kept["start"] = start
            return System(q, k, values, b=b)
        more = (counts[place] - counts[-1])[..., None, None]
        reset = torch.zeros_like(more).masked_fill(place[..., None, None] == 0, -torch.inf)
        keys = k.shape[-1]
        log_decay = torch.cat([torch.zeros_like(reset).expand(-1, -1, -1, keys), reset.expand(-1, -1, -1, keys)], -1)
        q, k = torch.cat([q, more * q], -1), torch.cat([written, k], -1)
        return System(q, k, values, b=b, log_decay=log_decay)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        assert system.q is not None
        q = system.q[..., : self.W0.shape[1]]
        with without_autocast(u.device):
            y = y + torch.einsum("bthn,hnp->bthp", q, precise(self.W0))
            if self.inner_norm is not None:
                y = q[..., : y.shape[-1]] + self.inner_norm(y)
        y = self.norm(y.flatten(2).to(u.dtype))
        if self.gate_proj is not None:
            y = y * F.gelu(self.gate_proj(u), approximate="tanh")
        return self.out_proj(y)  # [B,T,d_model]
