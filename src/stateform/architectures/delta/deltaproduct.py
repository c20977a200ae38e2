"""DeltaProduct: n_h delta-rule steps a token, so that A_t is a product of n_h Householder factors.  arXiv 2502.10297

    H_{t,j} = (I - beta_{t,j} k_{t,j} k_{t,j}^T) H_{t,j-1} + beta_{t,j} k_{t,j} v_{t,j}^T,  j = 1 .. n_h     (eq. 2)
    y_t = (q_t / sqrt(n))^T H_{t,n_h}

Gated: the token's decay comes before its first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, heads, normalised_size, precise, unit
from ...system import System
from ..registry import register
from .rule import spread


@register("deltaproduct")
class DeltaProduct(Layer):
    """Heads of several delta-rule steps a token behind short convolutions, normalised.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        n_h: steps a token.
        d_conv: taps of the short convolutions of q, k, v.
        gated: a decay per head, as in Gated DeltaNet.
        allow_negative_eigenvalues: beta in (0,2), which is what the products are for (arXiv 2411.12537).
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_h: int = 2, d_conv: int = 4,
        gated: bool = False, allow_negative_eigenvalues: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        p, self.d_state = normalised_size(d_model, n_heads, d_state)
        require(n_h >= 1, f"n_h is {n_h}; expected 1 or more steps a token")
        self.n_heads, self.n_h = n_heads, n_h
        self.beta_scale = 2.0 if allow_negative_eigenvalues else 1.0
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, n_h * keys, bias=False)
        self.v_proj = nn.Linear(d_model, n_h * d_model, bias=False)
        self.beta_proj = nn.Linear(d_model, n_h * n_heads, bias=False)
        self.q_conv, self.k_conv = ShortConv(keys, d_conv, "q_conv"), ShortConv(n_h * keys, d_conv, "k_conv")
        self.v_conv = ShortConv(n_h * d_model, d_conv, "v_conv")
        self.a_proj = nn.Linear(d_model, n_heads) if gated else None
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def _steps(self, x: Tensor) -> Tensor:
        """Split [B,T,n_h*H*c] into the steps [B,T*n_h,H,c]."""
        return x.unflatten(-1, (self.n_h, self.n_heads, -1)).flatten(1, 2)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q = unit(heads(self.q_conv(self.q_proj(u), past), self.n_heads), self.d_state**-0.5)  # [B,T,H,n]
        k = unit(self._steps(self.k_conv(self.k_proj(u), past)))  # [B,T*n_h,H,n]
        v = self._steps(self.v_conv(self.v_proj(u), past))  # [B,T*n_h,H,p]
        beta = torch.sigmoid(self._steps(self.beta_proj(u)).squeeze(-1)) * self.beta_scale  # [B,T*n_h,H]
        if self.a_proj is None:
            return System(q, k, v, b=beta, f=k, w=spread(-beta, k), micro=self.n_h)
        first = F.logsigmoid(precise(self.a_proj(u)))  # [B,T,H]
        g = F.pad(first.unsqueeze(2), (0, 0, 0, self.n_h - 1)).flatten(1, 2)  # [B,T*n_h,H]
        w = spread((g.exp() * precise(-beta)).to(k.dtype), k)
        return System(q, k, v, log_decay=g, b=beta, f=k, w=w, micro=self.n_h)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))  # [B,T,d_model]
