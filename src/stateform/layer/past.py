"""What a layer has seen before the input at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ..system.state import State


class Past:
    """What a layer has seen before the input at hand: its state, the windows of its short convolutions, the position.

    Reading a window records the next one, so that the layer's new state is complete when `system` returns; reading it
    again for the same input gives the same.
    """

    def __init__(self, state: State | None = None, shared: dict[str, Tensor] | None = None) -> None:
        self.state = state
        """The layer's state before the input; None at the start of every row."""
        self.kept: dict[str, Tensor] = {}
        """What the layer's new state holds besides that of its System: `system` may add to it, one row a sequence."""
        self.shared: dict[str, Tensor] = {} if shared is None else shared
        """What the layers of one model hand on for this input, [B,T,...] each, by name."""
        self.made: dict[str, Tensor] = {}
        """What `system` made of this input and `output` needs too, by name."""

    @property
    def position(self) -> Tensor | None:
        """Count the tokens seen before, per row [B]; None at the start of every row."""
        return None if self.state is None else self.state["position"]

    def window(self, name: str, x: Tensor, width: int) -> Tensor:
        """Give the `width` steps that came before x [B,T,c] (zeros at the start), [B,width,c]."""
        if self.state is None:
            window = x.new_zeros(x.shape[0], width, x.shape[2])
        else:
            window = self.state[name]
            window = window if window.dtype == x.dtype else window.to(x.dtype)
        T = x.shape[1]
        # A copy: a view would keep all of x alive in the state. In a graph what holds for every length.
        inside = not torch.compiler.is_compiling() and width <= T
        self.kept[name] = x[:, T - width :].clone() if inside else torch.cat([window, x], 1)[:, T:]
        return window

    def extend(self, name: str, x: Tensor, width: int) -> Tensor:
        """Put x [B,T,c] behind the `width` steps that came before it (zeros at the start): [B,width+T,c]."""
        return torch.cat([self.window(name, x, width), x], 1)
