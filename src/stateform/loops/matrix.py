"""`stateform::matrix`: heads with a state of n keys by p values."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .ops import LANES, TILE, Strided, call_loops, differentiable, operator, strided

_MATRIX = ("q", "k", "v", "log", "f", "w", "S", "y", "end", "kept", "gy", "gend",
           "dq", "dk", "dv", "dlog", "df", "dw", "dS")  # fmt: skip


STRETCH = 4
"""Tiles between the states kept where tiles are computed at once, as in matrix.h."""
LEAST = 8
"""Steps from which they are."""


class _MatrixJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "G", "R", "n", "p", "threads", "exclusive", "wide", "pieces")),
        *((name, ctypes.c_int64) for name in ("spans", "shared_q", "shared_k", "same", "chunked")),
        *((name, Strided) for name in _MATRIX),
    ]


@operator("stateform::matrix")
def matrix(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute S_t = exp(log_t) S_{t-1} + k_t v_t^T + f_t w_t^T S_{t-1}, y_t = q_t^T S_t (exclusive: q_t^T S_{t-1}).

    Args:
        q, k, f, w: [B,T,G,R,n], as the other tensors real and of one dtype, size 1 where constant or shared. With w
            alone f is k (the delta rule): with one decay a head, tiles of steps are then computed at once.
        v: [B,T,G,R,p]. log: [B,T,G,R,n] or [B,T,G,R,1].
        S: the state before the first step [B,G,R,n,p].
        steps: T. exclusive: read before the write. keep: the states that the gradient needs too.

    Returns:
        y [B,T,G,R,p], the last state, and what the gradient needs: the state before every TILE steps [B,G,R,tiles,n,p],
        or before every STRETCH tiles with what each step writes (or nothing).
    """
    S = S.contiguous()
    y, end, kept = _matrix_results(S, v, steps, keep, _by_tiles(log, f, w, exclusive))
    job = _matrix_job(q, k, v, log, f, w, S, steps, exclusive)
    job.y, job.end = strided(y, "btgrn"), _state(end)
    if keep:
        job.kept = strided(kept, "n")
    call_loops(job, "matrix_forward" if keep or steps > 1 else "matrix_step", S.dtype)
    return y, end, kept


def _same(f: Tensor | None, w: Tensor | None) -> bool:
    return f is None and w is not None


def _by_tiles(log: Tensor | None, f: Tensor | None, w: Tensor | None, exclusive: bool) -> bool:
    """True if tiles of steps can be computed at once: the delta rule with one decay a head."""
    return _same(f, w) and (log is None or log.shape[-1] == 1) and not exclusive


def _chunked(log: Tensor | None, f: Tensor | None, w: Tensor | None, steps: int, exclusive: bool) -> bool:
    """True if they are: with enough steps to make a product of matrices."""
    return _by_tiles(log, f, w, exclusive) and steps >= LEAST


def _matrix_results(S: Tensor, v: Tensor, steps: int, keep: bool, tiles: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, G, R, _, p = S.shape
    return S.new_empty(B, steps, G, R, p), S.new_empty(S.shape), S.new_empty(_kept(S, steps, tiles) if keep else 0)


def _kept(S: Tensor, steps: int, tiles: bool) -> int:
    """Count the numbers the gradient needs at most, by one formula for every length: a graph may have a symbol."""
    B, G, R, n, p = S.shape
    rows = -(-steps // TILE) * n
    if tiles:  # or step by step, where a decay is above 1: the loops see that, and lay it out one way or the other
        rows = torch.sym_max(rows, -(-steps // (STRETCH * TILE)) * n + steps)
    return B * G * R * rows * p


def _state(S: Tensor) -> Strided:
    _, G, R, n, p = S.shape
    return Strided(S.data_ptr(), G * R * n * p, 0, R * n * p, n * p, 1)


def _matrix_job(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool, *, many: bool = False,
) -> _MatrixJob:  # fmt: skip
    B, G, R, n, p = S.shape
    wide, pieces = log is not None and log.shape[-1] == n > 1, _pieces(S, w is not None or many)
    same, chunked = _same(f, w), _chunked(log, f, w, steps, exclusive)
    job = _MatrixJob(
        B, steps, G, R, n, p, torch.get_num_threads(), exclusive, wide, pieces,
        same=same, chunked=chunked, S=_state(S),
    )  # fmt: skip
    for name, x in (("q", q), ("k", k), ("v", v), ("log", log), ("f", k if same else f), ("w", w)):
        if x is not None:
            setattr(job, name, strided(x, "btgrn"))
    return job


def _pieces(S: Tensor, many: bool) -> int:
    """Say into how many parts the columns go: more than one where there are fewer heads than threads."""
    B, G, R, _, p = S.shape
    width = LANES[S.dtype] * (4 if many else 2)
    return min(max(1, -(-p // width)), -(-torch.get_num_threads() // max(1, B * G * R)))


@matrix.register_fake
def _(q, k, v, log, f, w, S, steps, exclusive, keep):  # type: ignore[no-untyped-def]
    return _matrix_results(S, v, steps, keep, _by_tiles(log, f, w, exclusive))


@operator("stateform::matrix_backward")
def matrix_backward(
    gy: Tensor, gend: Tensor, q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None,
    S: Tensor, kept: Tensor, steps: int, exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of q, k, v, log, f, w (nothing where there was none) and S, in their full shapes; those of
    q and k that the R heads share summed over them, [B,T,G,1,n].
    """
    S, gend = S.contiguous(), gend.contiguous()  # held here: a job has only their addresses
    job = _matrix_job(q, k, v, log, f, w, S, steps, exclusive, many=True)
    B, G, R, n, p = S.shape
    job.spans, job.shared_q, job.shared_k = _spans(q, k, S, job.pieces)
    shape = (job.pieces, B, steps, G)
    keyed = {
        "dq": S.new_empty(*shape, job.spans if job.shared_q else R, n),
        "dk": S.new_empty(*shape, job.spans if job.shared_k else R, n),
    }
    keyed |= {name: S.new_empty(*shape, R, n) for name, x in (("df", f), ("dw", w)) if x is not None}
    if log is not None:
        keyed["dlog"] = S.new_empty(*shape, R, n if job.wide else 1)
    for name, x in keyed.items():
        at = strided(x[0], "btgrn")
        at.piece = x.stride(0)
        setattr(job, name, at)
    dv, dS = S.new_empty(*shape[1:], R, p), S.new_empty(S.shape)
    job.gy, job.gend = strided(gy, "btgrn"), _state(gend)
    job.dv, job.dS, job.kept = strided(dv, "btgrn"), _state(dS), strided(kept, "n")
    call_loops(job, "matrix_backward", S.dtype)
    found = {name: x[0] if job.pieces == 1 else x.sum(0) for name, x in keyed.items()} | {"dv": dv, "dS": dS}
    for name, shared in (("dq", job.shared_q), ("dk", job.shared_k)):
        found[name] = found[name].sum(3, keepdim=True) if shared else found[name]
    names = ("dq", "dk", "dv", "dlog", "df", "dw", "dS")
    return tuple(found.get(name, S.new_empty(0)) for name in names)  # type: ignore[return-value]


def _spans(q: Tensor, k: Tensor, S: Tensor, pieces: int) -> tuple[int, int, int]:
    """Say into how many parts the R heads go backward, and whether they share q and k. One thread takes a part."""
    B, G, R = S.shape[:3]
    shared_q, shared_k = q.shape[3] == 1 < R, k.shape[3] == 1 < R
    wanted = -(-4 * torch.get_num_threads() // max(1, B * G * pieces))
    return min(R, max(1, wanted)) if shared_q or shared_k else R, shared_q, shared_k


@matrix_backward.register_fake
def _(gy, gend, q, k, v, log, f, w, S, kept, steps, exclusive):  # type: ignore[no-untyped-def]
    B, G, R, n, p = S.shape
    keys = ((n, 1 if q.shape[3] == 1 else R), (n, 1 if k.shape[3] == 1 else R), (p, R))
    rest = [(None if x is None else x.shape[-1], R) for x in (log, f, w)]
    shapes = [0 if m is None else (B, steps, G, r, m) for m, r in (*keys, *rest)]
    return tuple(S.new_empty(shape) for shape in (*shapes, S.shape))


def matrix_reference(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute what `matrix` computes, step by step."""

    def at(x: Tensor, t: int) -> Tensor:
        return x[:, t if x.shape[1] > 1 else 0].unsqueeze(-1)

    y = []
    for t in range(steps):
        before = S
        S = S if log is None else at(log, t).exp() * S
        S = S + at(k, t) * at(v, t).mT
        if w is not None:
            S = S + at(k if f is None else f, t) * (at(w, t) * before).sum(-2, keepdim=True)
        y.append((at(q, t) * (before if exclusive else S)).sum(-2))
    return torch.stack(y, 1), S


differentiable(matrix, matrix_backward, matrix_reference, 7)
