"""`stateform::modes`: channels that are each a sum of constant complex modes, as one operator with its gradient."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .ops import TILE, Strided, call_loops, differentiable, operator, rows, strided


class _ModesJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "L", "n", "threads", "exclusive")),
        *((name, Strided) for name in ("c", "v", "S", "y", "end", "kept", "gy", "gend", "dv", "dc", "dS")),
    ]


@operator("stateform::modes")
def modes(c: Tensor, v: Tensor, S: Tensor, exclusive: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute h_t = a h_{t-1} + k v_t, y_t = Re(q h_t) summed over n modes (exclusive: q h_{t-1}), for each of L
    channels.

    Args:
        c: the coefficients [6,n,L]: real and imaginary parts of q, k, a.
        v: [B,T,L].
        S: real and imaginary part of the state before the first step [B,2,n,L].
        exclusive: read before the write. keep: the states that the gradient needs too.

    Returns:
        y [B,T,L], the last state, and the state before every TILE steps [B,tiles,2,n,L] (or nothing).
    """
    c, S, (v,) = c.contiguous(), S.contiguous(), rows(v)
    y, end, kept = _results(S, v, keep)
    job = _job(c, v, S, exclusive)
    job.y, job.end, job.kept = strided(y, "btn"), Strided(end.data_ptr()), Strided(kept.data_ptr() if keep else None)
    call_loops(job, "modes_forward_run", S.dtype)
    return y, end, kept


def _results(S: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, T, L = v.shape
    size = S.numel() * -(-T // TILE) if keep else 0
    return S.new_empty(B, T, L), S.new_empty(S.shape), S.new_empty(size)


def _job(c: Tensor, v: Tensor, S: Tensor, exclusive: bool) -> _ModesJob:
    (B, _, n, L), T = S.shape, v.shape[1]
    job = _ModesJob(B, T, L, n, torch.get_num_threads(), exclusive)
    job.c, job.v, job.S = Strided(c.data_ptr()), strided(v, "btn"), Strided(S.data_ptr())
    return job


@modes.register_fake
def _(c, v, S, exclusive, keep):  # type: ignore[no-untyped-def]
    return _results(S, v, keep)


@operator("stateform::modes_backward")
def modes_backward(
    gy: Tensor, gend: Tensor, c: Tensor, v: Tensor, S: Tensor, kept: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of c, v and S."""
    c, S, gend, (v, gy) = c.contiguous(), S.contiguous(), gend.contiguous(), rows(v, gy)
    dc, dv, dS = c.new_empty(S.shape[0], *c.shape), v.new_empty(v.shape), S.new_empty(S.shape)
    job = _job(c, v, S, exclusive)
    job.gy, job.dv = strided(gy, "btn"), strided(dv, "btn")
    job.gend, job.kept, job.dc, job.dS = (Strided(x.data_ptr()) for x in (gend, kept, dc, dS))
    call_loops(job, "modes_backward_run", S.dtype)
    return dc.sum(0), dv, dS


@modes_backward.register_fake
def _(gy, gend, c, v, S, kept, exclusive):  # type: ignore[no-untyped-def]
    return c.new_empty(c.shape), v.new_empty(v.shape), S.new_empty(S.shape)


def modes_reference(c: Tensor, v: Tensor, S: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Compute what `modes` computes, step by step."""
    q, k, a = (torch.complex(c[i], c[i + 1]) for i in (0, 2, 4))
    h, y = torch.complex(S[:, 0], S[:, 1]), []
    for t in range(v.shape[1]):
        before, h = h, a * h + k * v[:, t, None]
        y.append((q * (before if exclusive else h)).real.sum(1))
    return torch.stack(y, 1), torch.stack([h.real, h.imag], 1)


differentiable(modes, modes_backward, modes_reference, 3)
