"""The mixer of LFM2: a short convolution between two gates; its transition is a shift register.  arXiv 2511.23404

    y_t = C_t * sum_j taps_j (B x)_{t-j}     B, C, x = W u     (figure 2)
    S_t = shift S_{t-1} + e_0 (B x)_t

The shift is nilpotent: what leaves the window is forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import require
from ...layer import Layer, Past
from ...system import System
from ..registry import register


@register("short_conv")
class GatedShortConv(Layer):
    """Channels of a short convolution between two gates.

    Args:
        d_model: width (channels, which are the heads).
        d_conv: taps, 2 or more.
    """

    def __init__(self, d_model: int, *, d_conv: int = 3) -> None:
        super().__init__(d_model)
        require(d_conv >= 2, f"a short convolution has {d_conv} taps; expected 2 or more")
        self.b_proj, self.c_proj, self.x_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.taps = nn.Parameter(torch.randn(d_model, d_conv) * d_conv**-0.5)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        n = self.taps.shape[1]
        eye = torch.eye(n, dtype=u.dtype, device=u.device)
        shift = torch.diag(torch.ones(n - 1, dtype=u.dtype, device=u.device), -1)  # [n,n]
        x = self.b_proj(u) * self.x_proj(u)  # [B,T,channels]
        return System(self.taps, eye[:1], x.unsqueeze(-1), transition=shift[None])

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.c_proj(u) * y.flatten(2))  # [B,T,d_model]
