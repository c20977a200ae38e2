"""Gated slot attention: softmax attention over a bounded number of slots, which fade by gates.  arXiv 2409.07146

    K_t = diag(a_t) K_{t-1} + (1 - a_t) k_t^T     V_t = diag(a_t) V_{t-1} + (1 - a_t) v_t^T     K, V of m slots
    y_t = V_t^T softmax(K_t q_t),                 a_t = sigmoid(W_a u_t)^{1 / temperature}

Two Systems in a chain: in the first each slot is a head, whose read K_t q_t is one number; the second reads V_t with
their softmax. Keys and queries pass a silu, the reads are normalised per head and pass another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import HeadNorm, above_zero, heads, normalised_size, precise
from ...system import Chain, System
from ..registry import register


@register("gsa")
class GSA(Layer):
    """Heads of attention over gated slots.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        n_slots: slots m per head.
        gate_temperature: the exponent is one over this.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_slots: int = 16,
        gate_temperature: float = 8.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        self.n_heads, self.n_slots, self.gate_temperature = n_heads, above_zero("n_slots", n_slots), gate_temperature
        above_zero("gate_temperature", gate_temperature)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.a_proj = nn.Linear(d_model, n_heads * n_slots, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def gates(self, u: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Give log a_t and 1 - a_t, each [B,T,H,m]."""
        g = F.logsigmoid(precise(heads(self.a_proj(u), self.n_heads))) / self.gate_temperature
        return g, -torch.expm1(g)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        past = past or Past()
        q, k = (F.silu(heads(f(u), self.n_heads)) for f in (self.q_proj, self.k_proj))  # [B,T,H,n]
        v, (g, write) = heads(self.v_proj(u), self.n_heads), self.gates(u, past)  # [B,T,H,p], [B,T,H,m]
        write = write.to(v.dtype)
        slots = System(q, k, write.flatten(2).unsqueeze(-1), log_decay=g.flatten(2))  # heads H m
        z = past.read("slots", slots).squeeze(-1).unflatten(2, write.shape[2:])
        return Chain(precise(z).softmax(-1).to(v.dtype), write, v, log_decay=g, before=(slots,))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(F.silu(self.norm(y)).flatten(2))  # [B,T,d_model]
