"""Graphs that hold for every length: what traced code asks of T.

`torch.compile(dynamic=True)` and `torch.export` trace with a symbol for T. A branch on it would make the graph hold for
some lengths alone.
"""

from __future__ import annotations

import torch


def any_length(T: int) -> bool:
    """True if a graph is traced in which T stands for many lengths."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes time, and is there once torch traces

    return not has_static_value(T)
