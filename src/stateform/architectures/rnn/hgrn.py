"""HGRN: channels that forget by gates with a lower bound, and take in what they let go.  arXiv 2311.04823

    h_t = f_t h_{t-1} + (1 - f_t) silu(W_i u_t)     f_t = l + (1 - l) sigmoid(W_f u_t)
    y_t = norm(h_t) silu(W_g u_t)

This is the real form, in which the layer was released later; the paper's h is complex and turns by a learned angle too.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, forget_gate, precise
from ...system import System
from ..registry import register
from .elementwise import elementwise


@register("hgrn")
class HGRN(Layer):
    """Channels of a gated recurrence, normalised and gated.

    Args:
        d_model: width.
        expand: channels over d_model.
        lower_bound: l, the least that is kept; the paper lets it grow with the depth of the layer.
    """

    contractive = True

    def __init__(self, d_model: int, *, expand: int = 1, lower_bound: float = 0.0) -> None:
        super().__init__(d_model)
        require(0 <= lower_bound < 1, f"lower_bound is {lower_bound}; expected 0 or more, less than 1")
        inner, self.lower_bound = expand * d_model, lower_bound
        self.i_proj, self.f_proj, self.gate_proj = (nn.Linear(d_model, inner, bias=False) for _ in range(3))
        self.norm = HeadNorm(inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        g, let_go = forget_gate(precise(self.f_proj(u)), self.lower_bound)  # [B,T,channels]
        return elementwise(F.silu(self.i_proj(u)), log_decay=g, b=let_go)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.mT, self.gate_proj(u)))  # [B,T,d_model]
