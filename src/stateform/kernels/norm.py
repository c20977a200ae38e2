"""Normalised and gated rows in one pass, where no gradient is wanted."""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

import torch
from torch import Tensor

from .backend import compiled_for
from .ops import alone, call_loops

Gate = Literal["silu", "sigmoid"]
_GATES = {None: 0, "silu": 1, "sigmoid": 2}
CHUNK = 2**14
"""Numbers that one thread takes at a time, and has at least."""


class _NormJob(ctypes.Structure):
    _fields_ = [
        *((x, ctypes.c_int64) for x in ("tokens", "numbers", "width", "weights", "chunk", "threads", "gate", "first")),
        *((x, ctypes.c_void_p) for x in ("x", "g", "weight", "y")),
        *((x, ctypes.c_int64) for x in ("x_step", "g_step")),
        *((x, ctypes.c_double) for x in ("scale", "share", "eps")),
    ]


def normed(
    x: Tensor, width: int = 0, *, scale: float = 1.0, share: float = 1.0, eps: float = 0.0,
    weight: Tensor | None = None, gate: Tensor | None = None, activation: Gate = "silu", first: bool = False,
) -> Tensor | None:  # fmt: skip
    """scale x / sqrt(share |x|^2 + eps) weight, over parts of `width` numbers (0: x itself), times activation(gate).

    Args:
        x: [B,T,...]. weight: as long as a part, or as all that a token has. gate: as many numbers as x has.
        first: the gate acts on x, not on what comes out.

    Returns:
        [B,T,...], or None where the loops do not exist or more than numbers is wanted: a gradient, a graph.
    """
    given = (x,) if weight is None and gate is None else (x, weight, gate)
    if not (compiled_for(x) and alone(given) and all(z is None or z.dtype == x.dtype for z in given)):
        return None
    laid = _rows(x.shape, x.stride())
    beside = laid if gate is None else _rows(gate.shape, gate.stride())
    if laid is None or beside is None or laid[:2] != beside[:2] or not (weight is None or weight.is_contiguous()):
        return None
    y = x.new_empty(x.shape)
    (tokens, numbers, step), threads = laid, max(1, min(torch.get_num_threads(), x.numel() // CHUNK))
    job = _NormJob(
        tokens, numbers, width, 0 if weight is None else weight.numel(), max(1, CHUNK // numbers), threads,
        0 if gate is None else _GATES[activation], first, x.data_ptr(), None if gate is None else gate.data_ptr(),
        None if weight is None else weight.data_ptr(), y.data_ptr(), step, beside[2], scale, share, eps,
    )  # fmt: skip
    call_loops(job, "norm", x.dtype)
    return y


@functools.lru_cache(maxsize=4096)
def _rows(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Tokens, numbers that each of them has side by side, and the step from one to the next; None where they do not."""
    if len(shape) < 2:
        return None
    (B, T, *inner), (row, step, *steps) = shape, strides
    numbers = 1
    for size, there in zip(reversed(inner), reversed(steps), strict=True):
        if size != 1 and there != numbers:
            return None
        numbers *= size
    step = row if T == 1 else step
    return (B * T, numbers, step) if B == 1 or T == 1 or row == T * step else None
