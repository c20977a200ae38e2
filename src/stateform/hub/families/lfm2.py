"""The gated short convolution of LFM2 and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...architectures import build
from ...errors import require
from ...layer import Layer, Past
from ...system import System
from ..lifted import Lifted, adapts
from ..twin import Twin, rows


@adapts(lfm2="Lfm2ShortConv", lfm2_moe="Lfm2MoeShortConv", lfm3="Lfm3ShortConv")
class LiftedShortConv(Lifted):
    """y_t = C_t * (sum_j taps_j (B x)_{t-j} + bias), as `stateform.architectures.GatedShortConv`: a shift register.

    S holds the inputs before the one at hand, the oldest first, as the cache does: the reads are exclusive, and the
    newest tap is the direct term.
    """

    finite = False
    left = "a short convolution is one call of torch already"
    windows = ()

    @staticmethod
    def width(module: Any) -> int:
        return int(module.conv.in_channels)

    def check(self, module: Any) -> None:
        taps = module.conv.kernel_size[0]
        require(taps >= 2, f"a {type(module).__name__} of {taps} taps has no state; expected 2 or more")

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        before, _, x = m.in_proj(u).chunk(3, -1)  # [B,T,d]
        taps = m.conv.weight.squeeze(1)  # [d,n + 1], the oldest first
        n = taps.shape[1] - 1
        newest = torch.eye(n, dtype=u.dtype, device=u.device)[-1:]
        shift = torch.diag(torch.ones(n - 1, dtype=u.dtype, device=u.device), 1)
        return System(
            taps[:, :n], newest, (before * x).unsqueeze(-1), transition=shift[None], d=taps[:, n], exclusive=True
        )

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        y = y.flatten(2) if m.conv.bias is None else y.flatten(2) + m.conv.bias
        return m.out_proj(m.in_proj(u).chunk(3, -1)[1] * y)


class Lfm2Twin(Twin, pair="short_conv", model="lfm2"):
    """Lfm2ShortConv."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("short_conv", d_model=d_model)

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "conv_L_cache": layer.taps.shape[1], "conv_bias": False,
            "num_hidden_layers": 1, "layer_types": ["conv"],
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        return {
            "in_proj.weight": rows(layer.b_proj, layer.c_proj, layer.x_proj),
            "conv.weight": layer.taps.detach().flip(1).unsqueeze(1), "out_proj.weight": layer.out_proj.weight,
        }  # fmt: skip
