"""What flows through a stack of layers: the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StateformError, require
from ...forms import run
from ...system import System

Mix = Callable[[Tensor], Any]
"""Y [B,T,d] to the same shape: a layer, a function, or a function that gives a System (whose reads are taken)."""


def is_model(thing: Any) -> bool:
    """True if it is a model: blocks around mixers, run by `hidden`."""
    return isinstance(thing, nn.Module) and hasattr(thing, "blocks") and hasattr(thing, "hidden")


def layers_of(stack: Mix | Sequence[Mix]) -> list[Mix]:
    """List the layers of a stack: a sequence of them, or a single one."""
    several = isinstance(stack, (Sequence, nn.Sequential, nn.ModuleList))
    found: list[Any] = list(stack) if several else [stack]  # type: ignore[arg-type]
    require(len(found) > 0, "the stack has no layers; give at least one")
    for layer in found:
        require(callable(layer), f"a layer of the stack is a {type(layer).__name__}; expected a function of [B,T,d]")
    return found


def mixed(layer: Mix, Y: Tensor) -> Tensor:
    """Compute what a layer makes of Y [B,T,d]: the reads of a System, heads side by side, causal or not."""
    out = layer(Y)
    if isinstance(out, System):
        out = run(out, "auto" if out.causal else "matrix")
    out = out[0] if isinstance(out, tuple) else out
    out = out.flatten(2) if out.ndim > 3 else out
    if out.shape != Y.shape:
        raise StateformError(
            f"a layer gave {list(out.shape)} for an input of shape {list(Y.shape)}; expected the same shape"
        )
    return out


def stream(thing: Any, inputs: Tensor, nudge: Tensor | None = None) -> list[Tensor]:
    """Compute the residual stream x_0 (embeddings), x_1, ..., x_L (after each block), [B,T,d] each.

    Args:
        thing: a model with `inputs` its tokens [B,T]; or a layer or a sequence of layers, with `inputs` x_0 itself.
        inputs: see above.
        nudge: [B|1,T|1,d], added to x_0.

    Raises:
        StateformError: a model in training with dropout (two runs would differ), layers that do not keep the shape.
    """
    if not is_model(thing):
        xs = [inputs if nudge is None else inputs + nudge]
        for layer in layers_of(thing):
            xs.append(mixed(layer, xs[-1]))
        return xs
    _require_still(thing)
    found: list[Tensor] = []

    def first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0] if nudge is None else args[0] + nudge
        found.append(x)
        return (x, *args[1:])

    def after(_: nn.Module, __: Any, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    hooks = [thing.blocks[0].register_forward_pre_hook(first)]
    hooks += [block.register_forward_hook(after) for block in thing.blocks]
    with _removed_afterwards(hooks):
        thing.hidden(inputs)
    return found


def _require_still(model: nn.Module) -> None:
    active = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training and m.p > 0]
    require(not active, "the model drops values at random (training mode, dropout > 0); call model.eval() first")


@contextmanager
def _removed_afterwards(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def frobenius(x: Tensor) -> Tensor:
    """Compute ||.||_F over the last two axes, of a real or complex tensor."""
    return torch.linalg.vector_norm(x, dim=(-2, -1))
