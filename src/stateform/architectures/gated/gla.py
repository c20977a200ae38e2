"""Gated linear attention: a decay per key, from the input through a low-rank map.  arXiv 2312.06635

    S_t = diag(a_t) S_{t-1} + k_t v_t^T     y_t = (q_t / sqrt(n))^T S_t     (eq. 3)
    a_t = sigmoid(W_2 W_1 u_t)^{1 / temperature}                            (section 4.4)

The read is normalised per head and gated by silu(W_g u_t).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import HeadNorm, above_zero, heads, precise, signed, split_size
from ...system import System
from ..registry import register


@register("gla")
class GLA(Layer):
    """Heads of gated linear attention, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads / 2, the paper's).
        gate_rank: rank of the map to the gates.
        gate_temperature: the exponent is one over this.
        allow_negative_eigenvalues: the decay 2 a - 1 in (-1,1), instead of a in (0,1).
    """

    contractive = True
    later: ClassVar = {"allow_negative_eigenvalues": False}

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        d_state: int | None = None,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        allow_negative_eigenvalues: bool = False,
    ) -> None:
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state, self.gate_temperature = n_heads, d_state or max(1, p // 2), gate_temperature
        above_zero("gate_temperature", gate_temperature)
        self.allow_negative_eigenvalues = allow_negative_eigenvalues
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay_proj = nn.Sequential(nn.Linear(d_model, gate_rank, bias=False), nn.Linear(gate_rank, keys))
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        g = F.logsigmoid(precise(heads(self.decay_proj(u), self.n_heads))) / self.gate_temperature  # [B,T,H,n]
        g, sign = signed(g, self.allow_negative_eigenvalues)
        return System(q * self.d_state**-0.5, k, v, log_decay=g, sign=sign)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))  # [B,T,d_model]
