"""The compiled loops as operators of torch: `stateform::matrix`, `channel` and `short_conv`, with gradients; `peaks`.

Each has a fake kernel (torch.compile traces it without breaking the graph), and a reference in plain torch: what it
computes, and how a second derivative is taken.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .build import library

TILE = 32
"""Steps between the states kept for the gradient, as in scan.c."""
LANES = {torch.float32: 16, torch.float64: 8}
"""Numbers that lie side by side in a vector."""
CHUNK = 4096
"""Numbers of the states of the channels that one thread takes at a time: they stay in its first cache."""


class _Strided(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in (*"btgrn", "piece"))]


_MATRIX = ("q", "k", "v", "log", "f", "w", "S", "y", "end", "kept", "gy", "gend",
           "dq", "dk", "dv", "dlog", "df", "dw", "dS")  # fmt: skip
_CHANNEL = ("q", "k", "v", "log", "rate", "S", "y", "end", "kept", "gy", "gend",
            "dq", "dk", "dv", "dlog", "drate", "dS")  # fmt: skip


class _MatrixJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "G", "R", "n", "p", "threads", "exclusive", "wide", "pieces")),
        *((name, ctypes.c_int64) for name in ("spans", "shared_q", "shared_k")),
        *((name, _Strided) for name in _MATRIX),
    ]


class _ChannelJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "L", "n", "threads", "exclusive")),
        *((name, _Strided) for name in _CHANNEL),
        ("chunk", ctypes.c_int64),
    ]


class _ConvJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "L", "taps", "activate", "threads", "chunk")),
        *(
            (name, _Strided)
            for name in ("x", "window", "weight", "bias", "y", "gy", "dx", "dwindow", "dweight", "dbias")
        ),
    ]


def _strided(x: Tensor, axes: str) -> _Strided:
    """A tensor as the loops see it; an axis of size 1 is repeated."""
    return _Strided(x.data_ptr(), *_steps(axes, x.shape, x.stride()))


@functools.lru_cache(maxsize=4096)
def _steps(axes: str, shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    found = {axis: 0 if size == 1 else step for axis, size, step in zip(axes, shape, strides, strict=True)}
    return [found.get(axis, 1 if axis == "n" else 0) for axis in "btgrn"]


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator of torch, and keep the function itself for `call`."""

    def made(loops: Callable[..., Any]) -> Any:
        op: Any = torch.library.custom_op(name, mutates_args=())(loops)
        op.loops = loops
        return op

    return made


def call(op: Any, *args: Any) -> Any:
    """An operator's results; without torch's dispatch, which takes longer than a step of the loops, where nothing but
    the results is wanted: no gradient, no graph, no mode that looks on.
    """
    return op.loops(*args) if _alone(args) else op(*args)


def _alone(args: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return False
    gradients = torch.is_grad_enabled()
    tensors = [x for x in args if isinstance(x, Tensor)]
    return all(type(x) in (Tensor, nn.Parameter) and not (gradients and x.requires_grad) for x in tensors)


def _call(job: ctypes.Structure, name: str, dtype: torch.dtype) -> None:
    run: Any = getattr(library(64 if dtype == torch.float64 else 32), name)
    if run(ctypes.byref(job)):
        raise MemoryError("the compiled loops could not get their scratch memory")


# -- matrix states ---------------------------------------------------------------------------------------------------


@operator("stateform::matrix")
def matrix(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """S_t = exp(log_t) S_{t-1} + k_t v_t^T + f_t w_t^T S_{t-1}, y_t = q_t^T S_t (exclusive: q_t^T S_{t-1}).

    Args:
        q, k, f, w: [B,T,G,R,n], as the other tensors real and of one dtype, size 1 where constant or shared.
        v: [B,T,G,R,p]. log: [B,T,G,R,n] or [B,T,G,R,1].
        S: the state before the first step [B,G,R,n,p].
        steps: T. exclusive: read before the write. keep: the states that the gradient needs too.

    Returns:
        y [B,T,G,R,p], the last state, and the state before every TILE steps [B,G,R,tiles,n,p] (or nothing).
    """
    S = S.contiguous()
    y, end, kept = _matrix_results(S, v, steps, keep)
    job = _matrix_job(q, k, v, log, f, w, S, steps, exclusive)
    job.y, job.end = _strided(y, "btgrn"), _state(end)
    if keep:
        job.kept = _strided(kept, "n")
    _call(job, "matrix_forward" if keep or steps > 1 else "matrix_step", S.dtype)
    return y, end, kept


def _matrix_results(S: Tensor, v: Tensor, steps: int, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, G, R, n, p = S.shape
    size = B * G * R * -(-steps // TILE) * n * p if keep else 0
    return S.new_empty(B, steps, G, R, p), S.new_empty(S.shape), S.new_empty(size)


def _state(S: Tensor) -> _Strided:
    _, G, R, n, p = S.shape
    return _Strided(S.data_ptr(), G * R * n * p, 0, R * n * p, n * p, 1)


def _matrix_job(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool, *, many: bool = False,
) -> _MatrixJob:  # fmt: skip
    B, G, R, n, p = S.shape
    wide, pieces = log is not None and log.shape[-1] == n > 1, _pieces(S, f is not None or many)
    job = _MatrixJob(B, steps, G, R, n, p, torch.get_num_threads(), exclusive, wide, pieces, S=_state(S))
    for name, x in (("q", q), ("k", k), ("v", v), ("log", log), ("f", f), ("w", w)):
        if x is not None:
            setattr(job, name, _strided(x, "btgrn"))
    return job


def _pieces(S: Tensor, many: bool) -> int:
    """Into how many parts the columns go: more than one where there are fewer heads than threads."""
    B, G, R, _, p = S.shape
    width = LANES[S.dtype] * (4 if many else 2)
    return min(max(1, -(-p // width)), -(-torch.get_num_threads() // max(1, B * G * R)))


@matrix.register_fake
def _(q, k, v, log, f, w, S, steps, exclusive, keep):  # type: ignore[no-untyped-def]
    return _matrix_results(S, v, steps, keep)


@torch.library.custom_op("stateform::matrix_backward", mutates_args=())
def matrix_backward(
    gy: Tensor, gend: Tensor, q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None,
    S: Tensor, kept: Tensor, steps: int, exclusive: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of q, k, v, log, f, w (nothing where there was none) and S, in their full shapes; those of q and k
    that the R heads share as sums over some of the heads, [B,T,G,.,n].
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
    if f is not None:
        keyed |= {name: S.new_empty(*shape, R, n) for name in ("df", "dw")}
    if log is not None:
        keyed["dlog"] = S.new_empty(*shape, R, n if job.wide else 1)
    for name, x in keyed.items():
        at = _strided(x[0], "btgrn")
        at.piece = x.stride(0)
        setattr(job, name, at)
    dv, dS = S.new_empty(*shape[1:], R, p), S.new_empty(S.shape)
    job.gy, job.gend = _strided(gy, "btgrn"), _state(gend)
    job.dv, job.dS, job.kept = _strided(dv, "btgrn"), _state(dS), _strided(kept, "n")
    _call(job, "matrix_backward", S.dtype)
    found = {name: x[0] if job.pieces == 1 else x.sum(0) for name, x in keyed.items()} | {"dv": dv, "dS": dS}
    return [found.get(name, S.new_empty(0)) for name in ("dq", "dk", "dv", "dlog", "df", "dw", "dS")]


def _spans(q: Tensor, k: Tensor, S: Tensor, pieces: int) -> tuple[int, int, int]:
    """Into how many parts the R heads go for the gradient, and whether they share q and k. One thread takes a part."""
    B, G, R = S.shape[:3]
    shared_q, shared_k = q.shape[3] == 1 < R, k.shape[3] == 1 < R
    wanted = -(-4 * torch.get_num_threads() // max(1, B * G * pieces))
    return min(R, max(1, wanted)) if shared_q or shared_k else R, shared_q, shared_k


@matrix_backward.register_fake
def _(gy, gend, q, k, v, log, f, w, S, kept, steps, exclusive):  # type: ignore[no-untyped-def]
    B, G, R, n, p = S.shape
    spans, shared_q, shared_k = _spans(q, k, S, _pieces(S, True))
    keys = ((n, spans if shared_q else R), (n, spans if shared_k else R))
    rest = ((p, R), (log.shape[-1] if log is not None else None, R), *(((n if f is not None else None), R),) * 2)
    return [S.new_empty(0 if m is None else (B, steps, G, r, m)) for m, r in (*keys, *rest)] + [S.new_empty(S.shape)]


def matrix_reference(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    steps: int, exclusive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `matrix` computes, step by step."""

    def at(x: Tensor, t: int) -> Tensor:
        return x[:, t if x.shape[1] > 1 else 0].unsqueeze(-1)

    y = []
    for t in range(steps):
        before = S
        S = S if log is None else at(log, t).exp() * S
        S = S + at(k, t) * at(v, t).mT
        if f is not None and w is not None:
            S = S + at(f, t) * (at(w, t) * before).sum(-2, keepdim=True)
        y.append((at(q, t) * (before if exclusive else S)).sum(-2))
    return torch.stack(y, 1), S


# -- channels --------------------------------------------------------------------------------------------------------


@operator("stateform::channel")
def channel(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor,
    exclusive: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """h_t = exp(log_t rate) h_{t-1} + k_t v_t, y_t = q_t^T h_t (exclusive: q_t^T h_{t-1}), for L channels side by side.

    Args:
        q, k: shared by the channels [B,T,n] (size 1 where constant); or neither, where n = 1.
        v: [B,T,L]. log: [B,T,L]. rate: [n,L]; alone it is a constant log decay. S: [B,L,n].

    Returns:
        y [B,T,L], the last state, and the state before every TILE steps [B,tiles,n,L] (or nothing).
    """
    step = v.shape[1] == 1 and not keep
    S, (q, k, v, log), rate = S.contiguous(), _rows(q, k, v, log), rate if step and S.shape[2] > 1 else _whole(rate)
    y, end, kept = _channel_results(S, v, keep)
    job = _channel_job(q, k, v, log, rate, S, exclusive)
    job.y, job.end = _strided(y, "btn"), _strided(end, "bgn")
    if keep:
        job.kept = _strided(kept, "n")
    _call(job, "channel_step_run" if step else "channel_forward_run", S.dtype)
    return y, end, kept


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
            setattr(job, name, _strided(x, axes))
    job.S = _strided(S, "bgn")
    return job


def _rows(*xs: Any) -> list[Any]:
    """With a contiguous last axis, as the loops over channels need them."""
    return [x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in xs]


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@channel.register_fake
def _(q, k, v, log, rate, S, exclusive, keep):  # type: ignore[no-untyped-def]
    return _channel_results(S, v, keep)


@torch.library.custom_op("stateform::channel_backward", mutates_args=())
def channel_backward(
    gy: Tensor, gend: Tensor, q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None,
    S: Tensor, kept: Tensor, exclusive: bool,
) -> list[Tensor]:  # fmt: skip
    """The gradients of q, k, v, log, rate (nothing where there was none) and S."""
    B, L, n = S.shape
    T = v.shape[1]
    S, gend, rate = S.contiguous(), gend.contiguous(), _whole(rate)
    q, k, v, log, gy = _rows(q, k, v, log, gy)
    job = _channel_job(q, k, v, log, rate, S, exclusive, lanes=max(1, 2048 // n))
    chunks = -(-L // job.chunk)
    found: dict[str, Tensor] = {"dv": S.new_empty(B, T, L), "dS": S.new_empty(S.shape)}
    job.dv, job.dS = _strided(found["dv"], "btn"), _strided(found["dS"], "bgn")
    if q is not None:
        for name in ("dq", "dk"):
            found[name] = S.new_empty(chunks, B, T, n)
            setattr(job, name, _strided(found[name], "gbtn"))
    if log is not None:
        found["dlog"] = S.new_empty(B, T, L)
        job.dlog = _strided(found["dlog"], "btn")
    if rate is not None:
        found["drate"] = S.new_empty(B, n, L)
        job.drate = _strided(found["drate"], "brn")
    job.gy, job.gend, job.kept = _strided(gy, "btn"), _strided(gend, "bgn"), _strided(kept, "n")
    _call(job, "channel_backward_run", S.dtype)
    found |= {name: found[name].sum(0) for name in ("dq", "dk", "drate") if name in found}
    return [found.get(name, S.new_empty(0)) for name in ("dq", "dk", "dv", "dlog", "drate", "dS")]


@channel_backward.register_fake
def _(gy, gend, q, k, v, log, rate, S, kept, exclusive):  # type: ignore[no-untyped-def]
    B, L, n = S.shape
    T = v.shape[1]
    keys = (B, T, n) if q is not None else (0,)
    decay = (B, T, L) if log is not None else (0,), (n, L) if rate is not None else (0,)
    return [S.new_empty(shape) for shape in (keys, keys, (B, T, L), *decay, S.shape)]


def channel_reference(
    q: Tensor | None, k: Tensor | None, v: Tensor, log: Tensor | None, rate: Tensor | None, S: Tensor, exclusive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `channel` computes, step by step."""

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


# -- short convolutions ----------------------------------------------------------------------------------------------

MOST_TAPS = 16
"""Of a short convolution, as in conv.h."""


@operator("stateform::short_conv")
def short_conv(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """z_t = bias + sum_i weight_i x_{t-W+1+i} for each of L channels, and silu(z_t) if `activate`.

    Args:
        x: [B,T,L]. window: the W - 1 steps before [B,W-1,L]. weight: [W,L], W at most MOST_TAPS. bias: [L].
    """
    step = x.shape[1] == 1
    x, window, bias = _rows(x, window, bias)
    weight = weight if step else weight.contiguous()
    y = x.new_empty(x.shape)
    job = _conv_job(x, window, weight, bias, activate)
    job.y = _strided(y, "btn")
    _call(job, "conv_step" if step else "conv_forward", x.dtype)
    return y


def _conv_job(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> _ConvJob:
    (B, T, L), threads, step = x.shape, torch.get_num_threads(), LANES[x.dtype]
    chunk = min(512, -(-L * B // threads))
    job = _ConvJob(B, T, L, weight.shape[0], activate, threads, max(step, -(-chunk // step) * step))
    job.x, job.window, job.weight = _strided(x, "btn"), _strided(window, "btn"), _strided(weight, "tn")
    if bias is not None:
        job.bias = _strided(bias, "n")
    return job


@short_conv.register_fake
def _(x, window, weight, bias, activate):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("stateform::short_conv_backward", mutates_args=())
def short_conv_backward(
    gy: Tensor, x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool
) -> list[Tensor]:
    """The gradients of x, window, weight and bias (nothing where there was none)."""
    gy, x, window, weight, bias = _rows(gy, x, window, weight.contiguous(), bias)
    job = _conv_job(x, window, weight, bias, activate)
    B, _, L = x.shape
    dx, dwindow = x.new_empty(x.shape), x.new_empty(window.shape)
    dweight, dbias = x.new_empty(B, *weight.shape), x.new_empty(B, L if bias is not None else 0)
    job.gy, job.dx, job.dwindow = _strided(gy, "btn"), _strided(dx, "btn"), _strided(dwindow, "btn")
    job.dweight = _strided(dweight, "btn")
    if bias is not None:
        job.dbias = _strided(dbias, "bn")
    _call(job, "conv_backward", x.dtype)
    return [dx, dwindow, dweight.sum(0), dbias.sum(0)]


@short_conv_backward.register_fake
def _(gy, x, window, weight, bias, activate):  # type: ignore[no-untyped-def]
    return [x.new_empty(s) for s in (x.shape, window.shape, weight.shape, (x.shape[-1] if bias is not None else 0,))]


def short_conv_reference(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """What `short_conv` computes, as shifted products: over a few taps faster than a general convolution."""
    T = x.shape[1]
    x = torch.cat([window, x], 1)
    first, *later = weight.unbind(0)
    z = x[:, :T] * first
    for i, tap in enumerate(later, 1):
        z = z + x[:, i : i + T] * tap
    z = z if bias is None else z + bias
    return F.silu(z) if activate else z


@operator("stateform::peaks")
def peaks(log: Tensor, gate: Tensor, start: Tensor) -> Tensor:
    """m_t = max(m_{t-1} + log_t, gate_t) for log, gate [B,T,L] (size 1 where constant) and m_0 [B,L]; no gradient."""
    B, L = start.shape
    T = max(log.shape[1], gate.shape[1])
    log, gate, start = _rows(log, gate, start.contiguous())
    m = start.new_empty(B, T, L)
    job = _conv_job(m, start.unsqueeze(1), log[0], None, False)
    job.x, job.weight, job.y, job.taps = _strided(gate, "btn"), _strided(log, "btn"), _strided(m, "btn"), 0
    _call(job, "peaks", start.dtype)
    return m


@peaks.register_fake
def _(log, gate, start):  # type: ignore[no-untyped-def]
    return start.new_empty(start.shape[0], max(log.shape[1], gate.shape[1]), start.shape[1])


# -- gradients -------------------------------------------------------------------------------------------------------


def _differentiable(op: Any, backward: Callable[..., Any], reference: Callable[..., Any], inputs: int) -> None:
    """Register the gradient of an operator whose first `inputs` arguments are tensors (or None).

    One with several results gives what it keeps for the gradient as the last of them, and has `keep` for its last
    argument. Where a gradient of the gradient is wanted it is taken through the reference.
    """

    def setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        kept = ()
        if isinstance(output, tuple):
            inputs = inputs[:-1]
            kept = output[2:]
            ctx.mark_non_differentiable(*kept)
        ctx.rest, ctx.kept = inputs[count:], len(kept)
        ctx.arguments = len(inputs) + len(kept)
        ctx.save_for_backward(*inputs[:count], *kept)

    def pull(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        grads = grads[: len(grads) - ctx.kept]
        needed = [x is not None and need for x, need in zip(given, ctx.needs_input_grad, strict=False)]
        if torch.is_grad_enabled():
            wanted = [x for x, need in zip(given, needed, strict=True) if need]
            found = iter(torch.autograd.grad(reference(*given, *ctx.rest), wanted, grads, create_graph=True))
            out = [next(found) if need else None for need in needed]
        else:
            all_of_them = backward(*grads, *given, *kept, *ctx.rest)
            rows = zip(given, all_of_them, needed, strict=True)
            out = [g.sum_to_size(x.shape) if need else None for x, g, need in rows]
        return (*out, *([None] * (ctx.arguments - count)))

    count = inputs
    op.register_autograd(pull, setup_context=setup)


_differentiable(matrix, matrix_backward, matrix_reference, 7)
_differentiable(channel, channel_backward, channel_reference, 6)
_differentiable(short_conv, short_conv_backward, short_conv_reference, 4)
