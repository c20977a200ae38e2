"""`stateform::channel`: channels side by side that share their keys and reads."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .ops import LANES, TILE, Strided, call_loops, differentiable, operator, rows, strided, whole
from .token import plan

CHUNK = 4096
"""Numbers of the states of the channels that one thread takes at a time: they stay in its first cache."""
_CHANNEL = ("q", "k", "v", "log", "rate", "S", "y", "end", "kept", "gy", "gend",
            "dq", "dk", "dv", "dlog", "drate", "dS")  # fmt: skip


class _ChannelJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "L", "n", "threads", "exclusive")),
        *((name, Strided) for name in _CHANNEL),
        ("chunk", ctypes.c_int64),
    ]


@operator("stateform::channel")
def channel(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor,
    exclusive: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute h_t = exp(log_t rate) h_{t-1} + k_t v_t, y_t = q_t^T h_t (exclusive: q_t^T h_{t-1}), for L channels side
    by side.

    Args:
        q, k: shared by the channels [B,T,n] (size 1 where constant); or neither, where n = 1.
        v: [B,T,L]. log: [B,T,L]. rate: [n,L]; alone it is a constant log decay. S: [B,L,n].

    Returns:
        y [B,T,L], the last state, and the state before every TILE steps [B,tiles,n,L] (or nothing).
    """
    if v.shape[1] == 1 and not keep:
        return _one_token(q, k, v, log, rate, S, exclusive)
    S, (q, k, v, log), rate = S.contiguous(), rows(q, k, v, log), whole(rate)
    y, end, kept = _channel_results(S, v, keep)
    job = _channel_job(q, k, v, log, rate, S, exclusive)
    job.y, job.end = strided(y, "btn"), strided(end, "bgn")
    if keep:
        job.kept = strided(kept, "n")
    call_loops(job, "channel_forward_run", S.dtype)
    return y, end, kept


def _one_token(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k = (v.new_ones(1, 1, 1) if x is None else x for x in (q, k))
    q, k = rows(q, k)
    parts, axes = [q, k, v], [("q", "BTn"), ("k", "BTn"), ("v", "BTH")]
    if log is not None:
        parts, axes = [*parts, log], [*axes, ("log_decay", "BTH")]
    if rate is not None:
        parts, axes = [*parts, rate.mT.contiguous()], [*axes, ("log_decay" if log is None else "rate", "Hn")]
    of_these = plan(tuple(axes), tuple([x.shape for x in parts]), (*S.shape, 1), exclusive)
    found = of_these(parts, S.contiguous())
    assert found is not None
    y, end, _ = found
    return y.squeeze(-1), end.squeeze(-1), S.new_empty(0)


def _channel_results(S: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, L, n = S.shape
    size = B * -(-v.shape[1] // TILE) * n * L if keep else 0
    return S.new_empty(B, v.shape[1], L), S.new_empty(S.shape), S.new_empty(size)


def _channel_job(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor, exclusive: bool,
    *, lanes: int = 0,
) -> _ChannelJob:  # fmt: skip
    B, L, n = S.shape
    threads, step = torch.get_num_threads(), LANES[S.dtype]
    chunk = min(lanes or CHUNK // n, -(-L * B // threads))
    job = _ChannelJob(B, v.shape[1], L, n, threads, exclusive, chunk=max(step, -(-chunk // step) * step))
    for name, x, axes in (("q", q, "btn"), ("k", k, "btn"), ("v", v, "btn"), ("log", log, "btn"), ("rate", rate, "gn")):
        if x is not None:
            setattr(job, name, strided(x, axes))
    job.S = strided(S, "bgn")
    return job


@channel.register_fake
def _(q, k, v, log, rate, S, exclusive, keep):  # type: ignore[no-untyped-def]
    return _channel_results(S, v, keep)


@operator("stateform::channel_backward")
def channel_backward(
    gy: Tensor, gend: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None,
    S: Tensor, kept: Tensor, exclusive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of q, k, v, log, rate (nothing where there was none) and S."""
    B, L, n = S.shape
    T = v.shape[1]
    S, gend, rate = S.contiguous(), gend.contiguous(), whole(rate)
    q, k, v, log, gy = rows(q, k, v, log, gy)
    job = _channel_job(q, k, v, log, rate, S, exclusive, lanes=max(1, 2048 // n))
    chunks = -(-L // job.chunk)
    found: dict[str, Tensor] = {"dv": S.new_empty(B, T, L), "dS": S.new_empty(S.shape)}
    job.dv, job.dS = strided(found["dv"], "btn"), strided(found["dS"], "bgn")
    if q is not None:
        for name in ("dq", "dk"):
            found[name] = S.new_empty(chunks, B, T, n)
            setattr(job, name, strided(found[name], "gbtn"))
    if log is not None:
        found["dlog"] = S.new_empty(B, T, L)
        job.dlog = strided(found["dlog"], "btn")
    if rate is not None:
        found["drate"] = S.new_empty(B, n, L)
        job.drate = strided(found["drate"], "brn")
    job.gy, job.gend, job.kept = strided(gy, "btn"), strided(gend, "bgn"), strided(kept, "n")
    call_loops(job, "channel_backward_run", S.dtype)
    found |= {name: found[name].sum(0) for name in ("dq", "dk", "drate") if name in found}
    names = ("dq", "dk", "dv", "dlog", "drate", "dS")
    return tuple(found.get(name, S.new_empty(0)) for name in names)  # type: ignore[return-value]


@channel_backward.register_fake
def _(gy, gend, q, k, v, log, rate, S, kept, exclusive):  # type: ignore[no-untyped-def]
    B, L, n = S.shape
    T = v.shape[1]
    keys = (B, T, n) if q is not None else (0,)
    decay = (B, T, L) if log is not None else (0,), (n, L) if rate is not None else (0,)
    return tuple(S.new_empty(shape) for shape in (keys, keys, (B, T, L), *decay, S.shape))


def channel_reference(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor, exclusive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute what `channel` computes, step by step."""

    def at(x: Tensor, t: int) -> Tensor:
        return x[:, t if x.shape[1] > 1 else 0]

    y = []
    for t in range(v.shape[1]):
        before = S
        if log is not None or rate is not None:
            step = torch.ones_like(S[..., :1]) if log is None else at(log, t).unsqueeze(-1)
            S = torch.exp(step * (1 if rate is None else rate.mT)) * S
        write = at(v, t).unsqueeze(-1)
        S = S + (write if k is None else write * at(k, t).unsqueeze(1))
        read = before if exclusive else S
        y.append(read.squeeze(-1) if q is None else (read * at(q, t).unsqueeze(1)).sum(-1))
    return torch.stack(y, 1), S


differentiable(channel, channel_backward, channel_reference, 6)
