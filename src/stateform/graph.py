"""Graphs that hold for every length: what traced code asks of T, and loops over time in it.

`torch.compile(dynamic=True)` and `torch.export` trace with a symbol for T. A branch on T, or a Python loop of T rounds,
would make the graph hold for the length that was traced alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def any_length(T: int) -> bool:
    """True if a graph is traced in which T stands for many lengths."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes time, and is there once torch traces

    return not has_static_value(T)


def over_time(
    step: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]], state: Tensors, xs: Tensors
) -> tuple[Tensors, Tensors]:
    """Loop over time inside a graph, for any number of steps: torch's own operator for that.

    Args:
        step: from the state before t and x_t [B,...] to the state after t, of the same shapes, and y_t [B,...].
        state: before the first step.
        xs: [B,T,...] each.

    Returns:
        The state after the last step, and y [B,T,...] each.
    """
    from torch._higher_order_ops.scan import scan  # a prototype in torch 2.11 to 2.13, and there under this name

    def fresh(state: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:  # no result may be a view, or be there twice
        state, y = step(state, x)
        return tuple(s.clone() for s in state), tuple(z.clone() for z in y)

    first = tuple(s.clone(memory_format=torch.contiguous_format) for s in state)
    last, ys = scan(fresh, first, tuple(x.movedim(1, 0) for x in xs))
    return last, tuple(y.movedim(0, 1) for y in ys)
