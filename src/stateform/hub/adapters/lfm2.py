"""The gated short convolution of LFM2 and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._errors import require
from ...layers.base import Past, convolve
from ...state import State, unchecked
from ...system import System
from ..adapter import Lifted, adapts


@adapts("Lfm2ShortConv", "Lfm2MoeShortConv", "Lfm3ShortConv")
class ShortConv(Lifted):
    """y_t = C_t * (sum_j taps_j (B x)_{t-j} + bias), as `stateform.layers.GatedShortConv`: a shift register.

    S holds the inputs before the one at hand, the oldest first, as the cache does: the reads are exclusive, and the
    newest tap is the direct term. Form "auto" convolves.
    """

    windows = ()

    @staticmethod
    def width(module: Any) -> int:
        return int(module.conv.in_channels)

    def check(self, module: Any) -> None:
        taps = module.conv.kernel_size[0]
        require(taps >= 2, f"a {type(module).__name__} of {taps} taps has no state; expected 2 or more")

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        before, _, x = m.in_proj(u).chunk(3, -1)
        taps = m.conv.weight.squeeze(1)
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

    def _run(
        self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        if form != "auto" or not x.numel():
            return super()._run(x, state, form, shared)
        m: Any = self.module
        before, behind, u = m.in_proj(x).chunk(3, -1)
        window = {} if state is None else {"conv": state["S"].squeeze(-1).mT}
        past = Past(unchecked(window, "") if window else None)
        y = m.out_proj(behind * convolve(before * u, past, "conv", m.conv.weight, m.conv.bias))
        seen = x.new_zeros(x.shape[0], dtype=torch.long) if state is None else state["position"]
        S = past.kept["conv"].mT.unsqueeze(-1)
        return y, unchecked({"S": S, "position": seen + x.shape[1]}, self.fingerprint)

    def read(self, cache: Any) -> State | None:
        kept = cache.get_conv_state(self.index)
        if kept is None:
            return None
        position = torch.zeros(kept.shape[0], dtype=torch.long, device=kept.device)
        return unchecked({"S": kept[..., 1:].unsqueeze(-1), "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        layer, window = cache.layers[self.index], state["S"].squeeze(-1)
        if layer.has_previous_state[0]:
            layer.conv_states[0][..., 1:].copy_(window)
        else:  # theirs is one longer: the oldest is not read
            cache.update_conv_state(torch.nn.functional.pad(window, (1, 0)), self.index)
