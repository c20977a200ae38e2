"""One token of a system, straight from its parts as they lie in memory: for decoding."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .ops import call_loops

_AT = ("q", "k", "v", "log_decay", "rate", "b", "d", "f", "w", "S", "end", "y")
"""As in step.h."""
PARTS = frozenset(_AT[:-3])
"""What a system may have. The axes of a part are some of B, H, n and p, in any order; a time axis has size 1."""
ALONE = 2**14
"""Numbers of a state that one thread is to have at least: to wake a second one for fewer takes longer."""


class _TokenJob(ctypes.Structure):
    _fields_ = [
        ("at", ctypes.c_void_p * len(_AT)),
        *((name, ctypes.c_int64) for name in ("B", "H", "n", "p", "threads", "exclusive")),
        ("by", ctypes.c_int64 * (4 * len(_AT))),
    ]


def token(
    parts: Mapping[str, Tensor], axes: Mapping[str, str], S: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor] | None:
    """S' = exp(log_decay rate) S + f (w^T S) + b k v^T and y = q^T S' + d v (exclusive: q^T S + d v).

    Args:
        parts: by name; q, k and v must be there. All real and of one dtype.
        axes: of each part, such as "BTHn". A head axis may be a divisor of H.
        S: contiguous [B,H,n,p].

    Returns:
        y [B,1,H,p] and S', or None where numbers that should lie side by side do not.
    """
    names = tuple(parts)
    laid = tuple([(axes[name], x.shape, x.stride()) for name, x in parts.items()])
    job = _job(names, laid, S.shape, exclusive, torch.get_num_threads())
    if job is None:
        return None
    B, H, _, p = S.shape
    y, end = S.new_empty(B, 1, H, p), S.new_empty(S.shape)
    job = _TokenJob.from_buffer_copy(job)
    at = {name: x.data_ptr() for name, x in parts.items()}
    at |= {"S": S.data_ptr(), "end": end.data_ptr(), "y": y.data_ptr()}
    job.at[:] = [at.get(name) for name in _AT]
    call_loops(job, "token", S.dtype)
    return y, end


@functools.lru_cache(maxsize=4096)
def _job(names: tuple[str, ...], laid: tuple[Any, ...], shape: torch.Size, exclusive: bool, threads: int) -> Any:
    """The job without its addresses, or None."""
    B, H, n, p = shape
    by: dict[str, tuple[int, int, int, int]] = {
        "S": (H * n * p, n * p, 1, 1), "end": (H * n * p, n * p, 1, 1), "y": (H * p, p, 1, 1)
    }  # fmt: skip
    for name, (axes, sizes, steps) in zip(names, laid, strict=True):
        step = {axis: 0 if size == 1 else step for axis, size, step in zip(axes, sizes, steps, strict=True)}
        inner = step.get("n", 0) or step.get("p", 0)
        if inner not in (0, 1):
            return None
        heads = sizes[axes.index("H")] if "H" in axes else 1
        by[name] = (step.get("B", 0), step.get("H", 0), inner, H // heads if heads > 1 else 1)
    threads = max(1, min(threads, shape.numel() // ALONE))
    job = _TokenJob(B=B, H=H, n=n, p=p, threads=threads, exclusive=exclusive)
    job.by[:] = [step for name in _AT for step in by.get(name, (0, 0, 0, 1))]
    return bytes(job)
