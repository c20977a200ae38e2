"""`stateform::short_conv`, and `stateform::peaks`, with which stable exponential gates begin."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .ops import LANES, Strided, call_loops, differentiable, operator, rows, strided


class _ConvJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "T", "L", "taps", "activate", "threads", "chunk")),
        *(
            (name, Strided)
            for name in ("x", "window", "weight", "bias", "y", "next", "gy", "dx", "dwindow", "dweight", "dbias")
        ),
    ]


MOST_TAPS = 16
"""Of a short convolution, as in conv.h."""


@operator("stateform::short_conv")
def short_conv(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """Compute z_t = bias + sum_i weight_i x_{t-W+1+i} for each of L channels, and silu(z_t) if `activate`.

    Args:
        x: [B,T,L]. window: the W - 1 steps before [B,W-1,L]. weight: [W,L], W at most MOST_TAPS. bias: [L].
    """
    step = x.shape[1] == 1
    x, window, bias = rows(x, window, bias)
    weight = weight if step else weight.contiguous()
    y = x.new_empty(x.shape)
    job = _conv_job(x, window, weight, bias, activate)
    job.y = strided(y, "btn")
    call_loops(job, "conv_step" if step else "conv_forward", x.dtype)
    return y


def _conv_job(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> _ConvJob:
    (B, T, L), threads, step = x.shape, torch.get_num_threads(), LANES[x.dtype]
    chunk = min(1024, -(-L * B // threads))
    job = _ConvJob(B, T, L, weight.shape[0], activate, threads, max(step, -(-chunk // step) * step))
    job.x, job.window, job.weight = strided(x, "btn"), strided(window, "btn"), strided(weight, "tn")
    if bias is not None:
        job.bias = strided(bias, "n")
    return job


def conv_token(
    x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool
) -> tuple[Tensor, Tensor] | None:
    """Compute one step of `short_conv` for weights [L,1,W], and the window behind it; for decoding, without gradients.

    None where numbers that should lie side by side do not.
    """
    given = (x, window, weight, bias)
    job = _token_job(tuple([None if z is None else (z.shape, z.stride()) for z in given]), activate)
    if job is None:
        return None
    y, after = x.new_empty(x.shape), x.new_empty(window.shape)
    job = _ConvJob.from_buffer_copy(job)
    job.x.at, job.window.at, job.weight.at = x.data_ptr(), window.data_ptr(), weight.data_ptr()
    job.y.at, job.next.at = y.data_ptr(), after.data_ptr()
    if bias is not None:
        job.bias.at = bias.data_ptr()
    call_loops(job, "conv_step", x.dtype)
    return y, after


@functools.lru_cache(maxsize=4096)
def _token_job(laid: Sequence[Any], activate: bool) -> Any:
    """Describe the job without its addresses, or None."""
    (x, xs), (window, ws), (weight, fs), bias = laid
    (B, T, L), before = x, weight[2] - 1
    beside = L == 1 or (xs[2] == ws[2] == 1 and (bias is None or bias[1] == (1,)))
    if not (beside and T == 1 and window == (B, before, L)):
        return None
    job = _ConvJob(B, 1, L, before + 1, activate, 1, L)
    job.x, job.y = Strided(b=xs[0]), Strided(b=L)
    job.window, job.next = Strided(b=ws[0], t=ws[1]), Strided(b=before * L, t=L)
    job.weight = Strided(t=fs[2], n=fs[0])
    return bytes(job)


@short_conv.register_fake
def _(x, window, weight, bias, activate):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@operator("stateform::short_conv_backward")
def short_conv_backward(
    gy: Tensor, x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x, window, weight and bias (nothing where there was none)."""
    gy, x, window, weight, bias = rows(gy, x, window, weight.contiguous(), bias)
    job = _conv_job(x, window, weight, bias, activate)
    B, _, L = x.shape
    dx, dwindow = x.new_empty(x.shape), x.new_empty(window.shape)
    dweight, dbias = x.new_empty(B, *weight.shape), x.new_empty(B, L if bias is not None else 0)
    job.gy, job.dx, job.dwindow = strided(gy, "btn"), strided(dx, "btn"), strided(dwindow, "btn")
    job.dweight = strided(dweight, "btn")
    if bias is not None:
        job.dbias = strided(dbias, "bn")
    call_loops(job, "conv_backward", x.dtype)
    return dx, dwindow, dweight.sum(0), dbias.sum(0)


@short_conv_backward.register_fake
def _(gy, x, window, weight, bias, activate):  # type: ignore[no-untyped-def]
    shapes = x.shape, window.shape, weight.shape, (x.shape[-1] if bias is not None else 0,)
    return tuple(x.new_empty(shape) for shape in shapes)


def short_conv_reference(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, activate: bool) -> Tensor:
    """Compute what `short_conv` computes, as shifted products: over a few taps faster than a general convolution."""
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
    """Compute m_t = max(m_{t-1} + log_t, gate_t) for log, gate [B,T,L] (size 1 where constant) and m_0 [B,L]; no
    gradient.
    """
    B, L = start.shape
    T = max(log.shape[1], gate.shape[1])
    log, gate, start = rows(log, gate, start.contiguous())
    m = start.new_empty(B, T, L)
    job = _conv_job(m, start.unsqueeze(1), log[0], None, False)
    job.x, job.weight, job.y, job.taps = strided(gate, "btn"), strided(log, "btn"), strided(m, "btn"), 0
    call_loops(job, "peaks", start.dtype)
    return m


@peaks.register_fake
def _(log, gate, start):  # type: ignore[no-untyped-def]
    return start.new_empty(start.shape[0], max(log.shape[1], gate.shape[1]), start.shape[1])


differentiable(short_conv, short_conv_backward, short_conv_reference, 4)
