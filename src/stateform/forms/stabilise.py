"""Exponential gates as a change of coordinates of the state."""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import torch
from torch import Tensor

from ..errors import require
from ..graph import Tensors, any_length, over_time
from ..loops.backend import compiled_for
from ..loops.conv import peaks
from ..loops.ops import call
from ..system import System
from ..system.precision import upcast
from ..system.shapes import spread_heads
from ..system.transition import associative_scan


def exponential(system: System) -> bool:
    """True if the system has exponential gates under a sum of weights, the ones that `stabilise` takes."""
    return system.log_b is not None and isinstance(system.eta, str) and not system.readout.cached


def stabilise(system: System, log_scale: Tensor | None = None) -> tuple[System, Tensor]:
    """Rewrite exponential gates as a change of coordinates S' = exp(-m) S, so that the forms see an ordinary system.

        m_t = max(g_t + m_{t-1}, log b_t)      by a max-plus scan, detached: any m gives the same y
        g'_t = g_t + m_{t-1} - m_t <= 0,       b'_t = exp(log b_t - m_t) <= 1,       eta_floor' = exp(-m_t) eta_floor
        f'_t = exp(m_{t-1} - m_t) f_t          with max(g_t, min(log max |f_t w_t^T|, 0)) for g_t in m_t: feedback
                                               keeps what the decay alone would lose

    Source: xLSTM (arXiv 2405.04517, eq. 15), RWKV-4 (arXiv 2305.13048, appendix D).

    Args:
        system: with log_b, eta = "sum" and a scalar decay (or none).
        log_scale: m before the first step [B,H]; default -inf (nothing written yet).

    Returns:
        The equal system without log_b, and m [B,T,H] (-inf while nothing has been written).

    Raises:
        StateformError: if the system has no log_b, or if y would depend on m.
    """
    require(system.log_b is not None, "stabilise needs log_b, the logarithm of the write strength")
    require(system.eta == "sum", 'stabilise needs eta = "sum": only then are outputs independent of the scale')
    require(
        system.decay_kind in ("identity", "scalar") and system.micro == 1,
        "stabilise needs a scalar decay (or none), micro = 1",
    )
    assert system.log_b is not None
    heads, parts = system.state_heads, system.tensors()

    def per_head(x: Tensor) -> Tensor:  # a number per step and head of the state, [B,T,heads]
        x = x.squeeze(-1) if x.ndim in (2, 4) else x
        x = spread_heads(upcast(x if x.ndim == 3 else x[None, None]), heads)
        return x.expand(system.B, system.T, heads)

    log_b = per_head(system.log_b)
    g = per_head(parts["log_decay"]).to(log_b) if "log_decay" in parts else torch.zeros_like(log_b)
    g = g * per_head(parts["rate"]).to(log_b) if "rate" in parts else g
    d = None if system.d is None else system.gate("d")
    start = log_b.new_full((system.B, log_b.shape[2]), -torch.inf) if log_scale is None else log_scale.to(log_b)
    with torch.no_grad():
        kept = g if system.f is None else torch.maximum(g, per_head(_log_feedback(system)).clamp(max=0.0))
        peaks, first = _peaks(kept, log_b, start.detach()), start.detach().unsqueeze(1)
        before = first if system.T == 1 else torch.cat([first, peaks[:, :-1]], 1)
        # -inf before the first write, where the state is 0 and its decay may be anything.
        shift = torch.nan_to_num(before - peaks, nan=0.0, posinf=0.0, neginf=-torch.inf)
        written = _finite(peaks)
        read = spread_heads(_finite(before) if system.exclusive else written, system.H)
        scale = -read
        if d is not None:  # e^69 times the scale of the state it is all of y, to the last digit: more could overflow
            scale = torch.minimum(scale, 69 - d.abs().log())
        scale = torch.exp(scale)
    floor = None if system.eta_floor is None else system.gate("eta_floor") * scale
    d = d if d is None else d * scale
    f = None if system.f is None else _rescaled(system.f, torch.exp(shift))
    b = torch.exp(log_b - written)
    return replace(system, log_decay=g + shift, log_b=None, b=b, f=f, eta_floor=floor, d=d), peaks


def _log_feedback(system: System) -> Tensor:
    """Compute log of the largest entry of |f_t w_t^T|, [B,T,H] or [H]."""
    f, w = (upcast(x).abs().amax(-1).log() for x in (system.f, system.w))  # type: ignore[arg-type]
    heads = lcm(f.shape[-1], w.shape[-1])
    return spread_heads(f, heads, axis=-1) + spread_heads(w, heads, axis=-1)


def _rescaled(f: Tensor, factor: Tensor) -> Tensor:
    """Multiply f [B,T,heads,n] or [heads,n] by a factor [B,T,heads]."""
    f = upcast(f if f.ndim == 4 else f[None, None])
    heads = lcm(f.shape[2], factor.shape[2])
    return spread_heads(f, heads) * spread_heads(factor, heads).to(f.real.dtype).unsqueeze(-1)


def _finite(m: Tensor) -> Tensor:
    """Put 0 in place of -inf."""
    return torch.nan_to_num(m, nan=torch.nan, posinf=torch.inf, neginf=0.0)


def _peaks(g: Tensor, log_b: Tensor, start: Tensor) -> Tensor:
    """Compute m_t = max(m_{t-1} + g_t, log_b_t), [B,T,heads]."""
    if log_b.shape[1] == 1:
        return torch.maximum(start.unsqueeze(1) + g, log_b)
    if compiled_for(start):
        return call(peaks, g, log_b, start)
    if any_length(log_b.shape[1]):
        return over_time(_peak, (start,), (g, log_b))[1][0]
    steps = (torch.cat([torch.zeros_like(g[:, :1]), g], 1), torch.cat([start[:, None], log_b], 1))
    return associative_scan(lambda x, y: (x[0] + y[0], torch.maximum(x[1] + y[0], y[1])), steps)[1][:, 1:]


def _peak(m: Tensors, now: Tensors) -> tuple[Tensors, Tensors]:
    """Take one step of the running maximum."""
    m_t = torch.maximum(m[0] + now[0], now[1])
    return (m_t,), (m_t,)
