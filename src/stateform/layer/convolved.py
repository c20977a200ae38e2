"""A short convolution before any layer."""

from __future__ import annotations

from torch import Tensor

from ..errors import require
from ..system import System
from ..system.state import State
from .base import Layer
from .past import Past
from .short_conv import ShortConv


class Convolved(Layer):
    """y = layer(conv(u)): each channel is first mixed over the last `width` tokens (Zoology, 2312.04927).

    Args:
        layer: any Layer.
        width: taps, 2 or more.
    """

    WINDOW = "before"
    """The name in the State of what the convolution has seen."""

    def __init__(self, layer: Layer, width: int) -> None:
        require(isinstance(layer, Layer), f"a {type(layer).__name__} cannot follow a convolution; expected a Layer")
        super().__init__(layer.d_model)
        self.conv = ShortConv(layer.d_model, width, self.WINDOW, activation=None)
        self.layer, self.width = layer, width
        self.contractive = layer.contractive  # type: ignore[misc]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return self.layer.system(self.conv(u, past), past)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.layer.output(y, self.conv(u, past), system, past)

    def init_state(self, batch: int = 1) -> State:
        inner = self.layer.init_state(batch)
        like = self._weight()
        assert like is not None
        window = like.new_zeros(batch, self.width - 1, self.d_model)
        return State({**inner.tensors, self.WINDOW: window}, self.fingerprint)

    def forms(self, x: Tensor) -> list[str]:
        return self.layer.forms(self.conv(x, None))

    def _finite(self, x: Tensor) -> bool:
        return self.layer._finite(x)

    def _run(
        self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        past = Past(state, shared)
        u = self.conv(x, past)
        inner = None
        if state is not None:
            kept = {name: z for name, z in state.tensors.items() if name != self.WINDOW}
            inner = State(kept, self.layer.fingerprint)
        y, new = self.layer._run(u, inner, form, shared)
        return y, State({**new.tensors, **past.kept}, self.fingerprint)
