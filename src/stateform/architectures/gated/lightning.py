"""Lightning attention (MiniMax): a constant decay per head, silu features, RMS norm, sigmoid gate.  arXiv 2401.04658

    S_t = exp(-s_h) S_{t-1} + k_t v_t^T     y_t = q_t^T S_t
    q, k, v = silu(W u)     s_h = 2^{-8 h / H}, h = 1 .. H

The block is that of TransNormerLLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import HeadNorm, heads, precise, split_size
from ...system import System
from ..registry import register


@register("lightning")
class Lightning(Layer):
    """Heads with a constant decay, normalised together and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        slope_scale: factor of all slopes; deeper layers of a model take smaller ones.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, slope_scale: float = 1.0) -> None:
        super().__init__(d_model)
        require(slope_scale >= 0, f"slope_scale is {slope_scale}; a negative one would let the state grow")
        self.n_heads, self.d_state, self.slope_scale = n_heads, d_state or split_size(d_model, n_heads), slope_scale
        split_size(d_model, n_heads)
        self.q_proj, self.k_proj = (nn.Linear(d_model, n_heads * self.d_state, bias=False) for _ in range(2))
        self.v_proj, self.gate_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.norm = HeadNorm(d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (F.silu(heads(f(u), self.n_heads)) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        h = torch.arange(1, self.n_heads + 1, dtype=precise(u).dtype, device=u.device)  # [H]
        return System(q, k, v, log_decay=-self.slope_scale * 2.0 ** (-8 * h / self.n_heads))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2), self.gate_proj(u), "sigmoid"))  # [B,T,d_model]
