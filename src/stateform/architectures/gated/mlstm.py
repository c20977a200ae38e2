"""The matrix memory of xLSTM: exponential input gate, sigmoid forget gate, a floored normaliser.  arXiv 2405.04517

    S_t = f_t S_{t-1} + i_t k_t v_t^T     n_t = f_t n_{t-1} + i_t k_t     (eq. 19 to 27)
    y_t = q_t^T S_t / max(|q_t^T n_t|, 1)
    f_t = sigmoid(.)     i_t = exp(.)

The layer around it is that of xLSTM 7B (arXiv 2503.13427).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import above_zero, heads, more_than_a_sign, precise, signed, split_size
from ...system import System
from ..registry import register


@register("mlstm")
class MLSTM(Layer):
    """Heads of matrix memory, normalised and gated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads / 2, as in xLSTM 7B).
        gate_cap: gates are bent to +- this by cap tanh(x / cap); None leaves them.
        allow_negative_eigenvalues: the decay 2 f - 1 in (-1,1), instead of f in (0,1).
    """

    contractive = True
    later: ClassVar = {"allow_negative_eigenvalues": False}

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, gate_cap: float | None = 15.0,
        allow_negative_eigenvalues: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.allow_negative_eigenvalues = allow_negative_eigenvalues
        p = more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
        self.n_heads, self.d_state, self.gate_cap = n_heads, d_state or max(1, p // 2), gate_cap
        if gate_cap is not None:
            above_zero("gate_cap", gate_cap)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.i_proj = nn.Linear(d_model, n_heads)
        self.f_proj = nn.Linear(d_model, n_heads)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(d_model))
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():  # begin with long memory and small writes, as the reference initialisation does
            self.f_proj.bias.copy_(torch.linspace(3.0, 6.0, n_heads))
            self.i_proj.bias.fill_(-10.0)

    def _gate(self, x: Tensor) -> Tensor:
        x = precise(x)
        return x if self.gate_cap is None else self.gate_cap * torch.tanh(x / self.gate_cap)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        g, log_b = F.logsigmoid(self._gate(self.f_proj(u))), self._gate(self.i_proj(u))  # [B,T,H]
        g, sign = signed(g, self.allow_negative_eigenvalues)
        q = q * self.d_state**-0.5
        return System(q, k, v, log_decay=g, sign=sign, log_b=log_b, eta="sum", eta_floor=1.0)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = F.layer_norm(precise(y), y.shape[-1:], eps=1e-6).to(y.dtype).flatten(2) * self.norm_weight
        return self.out_proj(y * torch.sigmoid(self.gate_proj(u)))  # [B,T,d_model]
