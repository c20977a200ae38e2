"""What a layer has seen before the input at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ..forms import compute
from ..system import State, System


class Past:
    """What a layer has seen before the input at hand: its state, the windows of its short convolutions, the position.

    Reading a window records the next one, so that the layer's new state is complete when `system` returns; reading it
    again for the same input gives the same.
    """

    def __init__(self, state: State | None = None, shared: dict[str, Tensor] | None = None, form: str = "auto") -> None:
        self.state = state
        """The layer's state before the input; None at the start of every row."""
        self.kept: dict[str, Tensor] = {}
        """What the layer's new state holds besides that of its System: `system` may add to it, one row a sequence."""
        self.shared: dict[str, Tensor] = {} if shared is None else shared
        """What the layers of one model hand on for this input, [B,T,...] each, by name."""
        self.inner: dict[str, System] = {}
        """The Systems that were read on the way to the layer's, by name."""
        self.form = form
        """How to compute what is read on the way, where that form exists for it."""
        self.made: dict[str, Tensor] = {}
        """What `system` made of this input and `output` needs too, by name."""

    @property
    def position(self) -> Tensor | None:
        """Count the tokens seen before, per row [B]; None at the start of every row."""
        return None if self.state is None else self.state["position"]

    def places(self, x: Tensor, before: int = 0) -> Tensor:
        """Number the tokens of x [B,T,...] in their sequences, from 0, the first `before` being the last of the past:
        [B|1,T]; what would come before the first token has numbers below 0.
        """
        new = torch.arange(x.shape[1], device=x.device)[None] - before
        return new if self.position is None else new + self.position[:, None]

    def read(self, name: str, system: System) -> Tensor:
        """Compute the reads [B,T,H,p] of a System on the way to the layer's, see `Chain`.

        It goes on from its own part of the layer's state, whose tensors are called `name.S` and the like.
        """
        state = None
        if self.state is not None:
            own = {k.removeprefix(f"{name}."): x for k, x in self.state.tensors.items() if k.startswith(f"{name}.")}
            state = State({**own, "position": self.state["position"]})
        exists = self.form == "auto" or system.forms()[self.form] is None
        y, new = compute(system, self.form if exists else "auto", state)
        self.inner[name] = system
        self.kept.update(under(name, new))
        return y

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

    def log_sum(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sum exp(x) [B,T,c] over all tokens so far: the logarithms before each token (-inf at the start) and after."""
        name = f"{name}.log_sum"
        nothing = torch.full_like(x[:, :1], -torch.inf)
        old = nothing if self.state is None else self.state[name].to(x.dtype)
        if self.position is not None:
            old = torch.where((self.position > 0).view(-1, 1, 1), old, nothing)
        total = torch.logaddexp(torch.logcumsumexp(x, 1), old)
        self.kept[name] = total[:, -1:].clone()
        return torch.cat([old, total[:, :-1]], 1), total

    def extend(self, name: str, x: Tensor, width: int) -> Tensor:
        """Put x [B,T,c] behind the `width` steps that came before it (zeros at the start): [B,width+T,c]."""
        return torch.cat([self.window(name, x, width), x], 1)


def under(name: str, state: State) -> dict[str, Tensor]:
    """Name the tensors of the state of an inner System as they are called in that of its layer."""
    return {f"{name}.{key}": x for key, x in state.tensors.items() if key != "position"}
