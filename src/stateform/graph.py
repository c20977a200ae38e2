"""Graphs that hold for every length: what traced code asks of T, and loops over time in it.

`torch.compile(dynamic=True)` and `torch.export` trace with a symbol for T. A branch on T, or a Python loop of T rounds,
would make the graph hold for the length that was traced alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import require

Tensors = tuple[Tensor, ...]


def any_length(T: int) -> bool:
    """True if a graph is traced in which T stands for many lengths."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # slow, but loaded already while torch traces

    return not has_static_value(T)


def require_exportable(what: str, why: str, instead: str) -> None:
    """Raise while torch.export traces: here the operations depend on values, which a graph cannot hold."""
    require(
        not torch.compiler.is_exporting(), f"torch.export cannot write down {what} for other inputs: {why}; {instead}"
    )


def constant(x: float) -> float:
    """Make x a plain number: torch.compile(dynamic=True) makes a symbol of it, which no loop over time may hold."""
    if not torch.compiler.is_compiling():
        return x
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    return float(guard_scalar(x))


Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
"""From the state before t and the x_t [B,...] to the state after t, of the same shapes, and the y_t [B,...]."""


def one_by_one(step: Step, state: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    """Compute the state after the last step, and the y [B,T,...], from one or more x [B,T,...]."""
    found = []
    for now in zip(*(x.unbind(1) for x in xs), strict=True):
        state, y = step(state, now)
        found.append(y)
    return state, tuple(torch.stack(ys, 1) for ys in zip(*found, strict=True))


def over_time(step: Step, state: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    """Compute the same as `one_by_one` inside a graph, for any number of steps, with torch's operator for that."""
    from torch._higher_order_ops.scan import scan  # a prototype in torch 2.11 to 2.13, and there under this name

    def fresh(state: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:  # `scan` refuses views, and a tensor twice
        state, y = step(state, x)
        return tuple(s.clone() for s in state), tuple(z.clone() for z in y)

    first = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
    last, ys = scan(fresh, first, tuple(x.movedim(1, 0) for x in xs))
    return last, tuple(y.movedim(0, 1) for y in ys)
