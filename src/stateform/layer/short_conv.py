"""The short convolution: each channel mixed over its last few tokens, the window carried in the State."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import require
from ..loops.backend import compiled_for
from ..loops.conv import MOST_TAPS, conv_token, short_conv, short_conv_reference
from ..loops.ops import alone, call
from ..system.state import CACHES, PRECISE
from .past import Past

TAKEN = (*PRECISE, *CACHES, "angle", "position")
"""Names in a State that a short convolution cannot have."""


class ShortConv(nn.Module):
    """Causal depthwise convolution over the last `width` tokens; weights as in nn.Conv1d(groups=channels).

    Args:
        channels: c, for inputs [B,T,c].
        width: taps; 0 or 1 taps would be no convolution, so at least 2.
        name: of its window in the State.
        activation: "silu" or None.
    """

    def __init__(
        self, channels: int, width: int, name: str, *, bias: bool = False, activation: str | None = "silu"
    ) -> None:
        super().__init__()
        require(isinstance(width, int) and width >= 2, f"a short convolution has {width!r} taps; expected 2 or more")
        require(activation in ("silu", None), f"activation is {activation!r}; expected 'silu' or None")
        require(name not in TAKEN, f"a short convolution cannot be named {name!r}: the State has that name already")
        self.name, self.width, self.activation = name, width, activation
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return convolve(x, past, self.name, self.weight, self.bias, self.activation == "silu")


def convolve(
    x: Tensor, past: Past | None, name: str, weight: Tensor, bias: Tensor | None = None, activate: bool = False
) -> Tensor:
    """Convolve x [B,T,c] with the taps [c,1,width], then apply silu if asked; `name` is that of the window."""
    past, width = past or Past(), weight.shape[-1]
    same = x.dtype == weight.dtype == (x if bias is None else bias).dtype  # under autocast weights are wider than x
    fits = same and width <= MOST_TAPS and compiled_for(x)
    before = None if past.state is None else past.state[name]
    if fits and before is not None and before.dtype == x.dtype and alone((x, before, weight, bias)):
        found = conv_token(x, before, weight, bias, activate)
        if found is not None:
            y, past.kept[name] = found
            return y
    window = past.window(name, x, width - 1)
    taps = weight.squeeze(1).mT
    if fits:
        return call(short_conv, x, window, taps, bias, activate)
    return short_conv_reference(x, window, taps, bias, activate).to(x.dtype)
