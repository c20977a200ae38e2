"""Multi-head latent attention: all heads read one compressed token, whose maps are absorbed.  arXiv 2405.04434

    c_t = RMSNorm(W_DKV u_t)     k_t = [c_t, RoPE(W_KR u_t)]     v_t = c_t            (eq. 9, 15)
    q_t = [W_UK^T W_QC u_t, RoPE(W_QR u_t)] / sqrt(n)     n of the keys W_UK c_t and W_KR u_t of a head
    y_t = W_UV sum_{j<=t} softmax_j(q_t^T k_j) v_j        per head                    (eq. 16 to 19)

Not absorbed, each head has keys [W_UK c_t, RoPE(W_KR u_t)] and values W_UV c_t (eq. 10, 11): the same y, another cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, pair_up, rope_angles, split_size
from ...system import System
from ..registry import register


@register("mla")
class MLA(Layer):
    """Heads of softmax attention over one latent vector a token.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head without positions (default d_model / n_heads), even.
        rank: size of the latent vector c (default 4 d_state, as in the paper), even.
        d_rope: rotated keys, shared by the heads (default about d_state / 2, as in the paper), even.
        rope_base: the largest wavelength is 2 pi times about this.
        absorbed: heads share the keys and values of the cache; otherwise each has its own.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, rank: int | None = None,
        d_rope: int | None = None, rope_base: float = 10_000.0, absorbed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        n = d_state or p
        self.n_heads, self.d_state, self.absorbed, self.rope_base = n_heads, n, absorbed, rope_base
        self.rank = 4 * n if rank is None else rank
        self.d_rope = -(-n // 4) * 2 if d_rope is None else d_rope
        for name, size in (("d_state", n), ("rank", self.rank), ("d_rope", self.d_rope)):
            even = size >= 2 and size % 2 == 0
            require(even, f"{name} is {size}; keys are paired up: expected an even number, 2 or more")
        rope_angles(self.d_rope, rope_base)
        self.q_proj = nn.Linear(d_model, n_heads * (n + self.d_rope), bias=False)
        self.c_proj = nn.Linear(d_model, self.rank + self.d_rope, bias=False)
        self.norm = HeadNorm(self.rank)
        self.k_up = nn.Parameter(torch.randn(n_heads, n, self.rank) * self.rank**-0.5)
        self.v_up = nn.Parameter(torch.randn(n_heads, p, self.rank) * self.rank**-0.5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        scaled = heads(self.q_proj(u), self.n_heads) * (self.d_state + self.d_rope) ** -0.5
        q, q_rope = scaled.split([self.d_state, self.d_rope], -1)  # [B,T,H,.]
        c, k_rope = self.c_proj(u).unsqueeze(2).split([self.rank, self.d_rope], -1)  # [B,T,1,.]
        k = v = self.norm(c)
        if self.absorbed:
            q = torch.einsum("bthn,hnr->bthr", q, self.k_up)
        else:
            k, v = (torch.einsum("btr,hnr->bthn", k.squeeze(2), up) for up in (self.k_up, self.v_up))
            k_rope = k_rope.expand(-1, -1, self.n_heads, -1)
        turned = rope_angles(self.d_rope, self.rope_base, u.device)  # [1,rope/2]
        phase = torch.cat([turned.new_zeros(1, k.shape[-1] // 2), turned], -1)
        q = torch.cat([pair_up(q), pair_up(q_rope)], -1)
        k = torch.cat([pair_up(k, conjugate=True), pair_up(k_rope, conjugate=True)], -1)
        return System(q, k, v, phase=phase, readout="exp", eta="sum")

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = torch.einsum("bthr,hpr->bthp", y, self.v_up) if self.absorbed else y
        return self.out_proj(y.flatten(2))  # [B,T,d_model]
