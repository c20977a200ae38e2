"""GateLoop: a complex decay per key from the input, the modulus a sigmoid, the phase free.  arXiv 2311.01927

    S_t = diag(a_t) S_{t-1} + k_t v_t^T     y_t = Re(q_t^T S_t)     (section 3.1)
    a_t = sigmoid(alpha_t) exp(i beta_t)

A silu gate multiplies the output.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, precise, split_size
from ...system import System
from ..registry import register


@register("gateloop")
class GateLoop(Layer):
    """Heads with a complex decay per key, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state = n_heads, d_state or p
        keys = n_heads * self.d_state
        self.q_proj, self.k_proj = (nn.Linear(d_model, keys, bias=False) for _ in range(2))
        self.v_proj, self.gate_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.modulus_proj, self.phase_proj = nn.Linear(d_model, keys), nn.Linear(d_model, keys)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        g = F.logsigmoid(precise(heads(self.modulus_proj(u), self.n_heads)))  # [B,T,H,n]
        return System(q, k, v, log_decay=g, phase=precise(heads(self.phase_proj(u), self.n_heads)))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))  # [B,T,d_model]
