"""One token of a system, straight from its parts as they lie in memory: for decoding."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ops import call_loops

_AT = ("S", "q", "k", "v", "log_decay", "rate", "b", "d", "f", "w", "end", "y")
"""As in step.h."""
PARTS = frozenset(_AT[1:-2])
"""What a system may have. The axes of a part are some of B, H, n and p, in any order; a time axis has size 1."""
ALONE = 2**14
"""Numbers of a state that one thread is to have at least: to wake a second one for fewer takes longer."""


class _TokenJob(ctypes.Structure):
    _fields_ = [
        ("at", ctypes.c_void_p * len(_AT)),
        *((name, ctypes.c_int64) for name in ("B", "H", "n", "p", "threads", "exclusive")),
        ("by", ctypes.c_int64 * (4 * len(_AT))),
        ("grows", ctypes.c_int64),
    ]


MOST_JOBS = 256
"""That a plan keeps."""


class TokenPlan:
    """S' = exp(log_decay rate) S + f (w^T S) + b k v^T and y = q^T S' + d v (exclusive: q^T S + d v), for one token.

    What follows from shapes and strides is kept: to find it would take longer than to compute.

    Args:
        axes: of each part, such as "BTHn". A head axis may be a divisor of H.
        shapes: of each part; q, k and v must be there.
        state: B, H, n, p.
    """

    def __init__(
        self, axes: Mapping[str, str], shapes: Mapping[str, Sequence[int]], state: Sequence[int], exclusive: bool
    ) -> None:
        self.axes, self.shapes, self.state, self.exclusive = axes, shapes, torch.Size(state), exclusive
        self.reads = (state[0], 1, state[1], state[3])
        self.slots = tuple(_AT.index(name) for name in shapes)
        self.jobs: dict[tuple[object, ...], bytes | None] = {}

    def __call__(self, parts: Sequence[Tensor], S: Tensor) -> tuple[Tensor, Tensor, bool] | None:
        """Compute y [B,1,H,p], S' and whether a log decay is above 0 (by more than roundings) or not a number.

        Args:
            parts: in the order of `shapes`, all real and of the dtype of S.
            S: contiguous [B,H,n,p].

        Returns:
            None where numbers that should lie side by side do not.
        """
        threads, strides = torch.get_num_threads(), tuple([x.stride() for x in parts])
        if (threads, strides) not in self.jobs:
            if len(self.jobs) >= MOST_JOBS:
                self.jobs.clear()
            self.jobs[threads, strides] = self._job(threads, strides)
        made = self.jobs[threads, strides]
        if made is None:
            return None
        y, end = S.new_empty(self.reads), S.new_empty(self.state)
        job = _TokenJob.from_buffer_copy(made)
        for slot, x in zip(self.slots, parts, strict=True):
            job.at[slot] = x.data_ptr()
        job.at[0], job.at[-2], job.at[-1] = S.data_ptr(), end.data_ptr(), y.data_ptr()
        call_loops(job, "token", S.dtype)
        return y, end, bool(job.grows)

    def _job(self, threads: int, strides: tuple[tuple[int, ...], ...]) -> bytes | None:
        """Describe the job without its addresses."""
        B, H, n, p = self.state
        by = {"S": (H * n * p, n * p, 1, 1), "end": (H * n * p, n * p, 1, 1), "y": (H * p, p, 1, 1)}
        for (name, sizes), steps in zip(self.shapes.items(), strides, strict=True):
            axes = self.axes[name]
            step = {axis: 0 if size == 1 else step for axis, size, step in zip(axes, sizes, steps, strict=True)}
            inner = step.get("n", 0) or step.get("p", 0)
            wide = any(axis in "np" and size > 1 for axis, size in zip(axes, sizes, strict=True))
            if inner != wide and not (inner == 0 and name in ("log_decay", "rate")):
                return None
            heads = sizes[axes.index("H")] if "H" in axes else 1
            by[name] = (step.get("B", 0), step.get("H", 0), inner, H // heads if heads > 1 else 1)
        threads = max(1, min(threads, self.state.numel() // ALONE))
        job = _TokenJob(B=B, H=H, n=n, p=p, threads=threads, exclusive=self.exclusive)
        job.by[:] = [step for name in _AT for step in by.get(name, (0, 0, 0, 1))]
        return bytes(job)


@functools.lru_cache(maxsize=1024)
def plan(
    axes: tuple[tuple[str, str], ...], shapes: tuple[Sequence[int], ...], state: Sequence[int], exclusive: bool
) -> TokenPlan:
    """Make the TokenPlan of these parts."""
    return TokenPlan(dict(axes), dict(zip(dict(axes), shapes, strict=True)), state, exclusive)
