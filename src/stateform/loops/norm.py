"""Normalised and gated rows in one pass, and their gradient in another."""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .backend import compiled_for
from .ops import call, call_loops, differentiable, operator

Gate = Literal["silu", "sigmoid"]
_GATES = {"silu": 1, "sigmoid": 2}
CHUNK = 2**14
"""Numbers that one thread takes at a time, and has at least."""


class _NormJob(ctypes.Structure):
    _fields_ = [
        *((x, ctypes.c_int64) for x in ("tokens", "numbers", "width", "weights", "chunk", "threads", "gate", "first")),
        *((x, ctypes.c_void_p) for x in ("x", "g", "weight", "y", "gy", "dx", "dg", "dweight")),
        *((x, ctypes.c_int64) for x in ("x_step", "g_step")),
        *((x, ctypes.c_double) for x in ("scale", "share", "eps")),
    ]


def normed(
    x: Tensor, width: int = 0, *, scale: float = 1.0, share: float = 1.0, eps: float = 0.0,
    weight: Tensor | None = None, gate: Tensor | None = None, activation: Gate = "silu", first: bool = False,
) -> Tensor | None:  # fmt: skip
    """Compute x / sqrt(share |x|^2 + eps) over parts of `width` numbers (0: x), times weight and activation(gate).

    Args:
        x: [B,T,...]. weight: as long as a part, or as all that a token has. gate: as many numbers as x has.
        first: the gate acts on x, not on what comes out.

    Returns:
        [B,T,...], or None where the loops do not exist.
    """
    if not compiled_for(x) or not all(z is None or z.dtype == x.dtype for z in (weight, gate)) or not x.numel():
        return None
    kind = 0 if gate is None else _GATES[activation]
    if torch.compiler.is_compiling():  # what lies where is not known yet
        x, weight, gate = (None if z is None else z.contiguous() for z in (x, weight, gate))  # type: ignore[assignment]
        graphed: Tensor = norm(x, weight, gate, width, scale, share, eps, kind, first)
        return graphed
    laid = _rows(x.shape, x.stride())
    beside = laid if gate is None else _rows(gate.shape, gate.stride())
    if laid is None or beside is None or laid[:2] != beside[:2] or not (weight is None or weight.is_contiguous()):
        return None
    y: Tensor = call(norm, x, weight, gate, width, scale, share, eps, kind, first)
    return y


@operator("stateform::norm")
def norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, width: int, scale: float, share: float, eps: float,
    kind: int, first: bool,
) -> Tensor:  # fmt: skip
    """Compute as `normed` does; `kind` 0 for no gate, 1 for silu, 2 for sigmoid."""
    y = x.new_empty(x.shape)
    job = _job(x, weight, gate, width, scale, share, eps, kind, first)
    job.y = y.data_ptr()
    call_loops(job, "norm", x.dtype)
    return y


def _job(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, width: int, scale: float, share: float, eps: float,
    kind: int, first: bool,
) -> _NormJob:  # fmt: skip
    laid = _rows(x.shape, x.stride())
    assert laid is not None
    beside = laid if gate is None else _rows(gate.shape, gate.stride())
    assert beside is not None
    (tokens, numbers, step), threads = laid, max(1, min(torch.get_num_threads(), x.numel() // CHUNK))
    return _NormJob(
        tokens, numbers, width, 0 if weight is None else weight.numel(), max(1, CHUNK // numbers), threads, kind, first,
        x.data_ptr(), None if gate is None else gate.data_ptr(), None if weight is None else weight.data_ptr(),
        None, None, None, None, None, step, beside[2], scale, share, eps,
    )  # fmt: skip


@norm.register_fake
def _(x, weight, gate, width, scale, share, eps, kind, first):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@operator("stateform::norm_backward")
def norm_backward(
    gy: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, width: int, scale: float, share: float,
    eps: float, kind: int, first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of x, weight and gate (nothing where there was none)."""
    gy = gy.contiguous()  # held here: a job has only addresses
    job = _job(x, weight, gate, width, scale, share, eps, kind, first)
    job.chunk = max(1, -(-job.tokens // (4 * job.threads)))
    dx = x.new_empty(x.shape)
    dgate = x.new_empty(0 if gate is None else gate.shape)
    dweight = x.new_empty(-(-job.tokens // job.chunk), *(weight.shape if weight is not None else (0,)))
    job.gy, job.dx, job.dg = gy.data_ptr(), dx.data_ptr(), dgate.data_ptr() if gate is not None else None
    job.dweight = None if weight is None else dweight.data_ptr()
    call_loops(job, "norm_back", x.dtype)
    return dx, dweight.sum(0), dgate


@norm_backward.register_fake
def _(gy, x, weight, gate, width, scale, share, eps, kind, first):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(0 if z is None else z.shape) for z in (x, weight, gate))


def norm_reference(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, width: int, scale: float, share: float, eps: float,
    kind: int, first: bool,
) -> Tensor:  # fmt: skip
    """Compute what `norm` computes, in plain torch."""
    shape, z = x.shape, x.flatten(2)
    a = None if gate is None else (F.silu if kind == 1 else torch.sigmoid)(gate.flatten(2))
    z = z * a if a is not None and first else z
    if width:
        parts = z.unflatten(-1, (-1, width))
        parts = parts * (scale * torch.rsqrt(share * parts.square().sum(-1, keepdim=True) + eps))
        z = parts.flatten(2)
    if weight is not None:
        z = (z.unflatten(-1, (-1, weight.numel())) * weight.flatten()).flatten(2)
    return (z * a if a is not None and not first else z).view(shape)


differentiable(norm, norm_backward, norm_reference, 3)


@functools.lru_cache(maxsize=4096)
def _rows(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Count tokens, numbers that each of them has side by side, and the step from one to the next; None where they do
    not.
    """
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
