"""The exp readout (softmax attention and its kin), whose state is the growing cache of keys and values.

    y_i = ( sum_{j<=i} exp( Re(q_i^T U_i ... U_{j+1} b_j k_j) + g_{j+1} + ... + g_i ) v_j + d_i v_i ) / eta_i

Phases U (RoPE) act inside, on the keys: they are absorbed once, at absolute angles, into q and k. A scalar log decay g
(ALiBi, forgetting attention) acts outside, on the weights. All queries at once, a block of queries at a time, or one
query at a time are the forms matrix, chunkwise and recurrent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import StateformError, readable
from ..graph import any_length
from ..loops.backend import transformed
from ..loops.ops import gradients
from ..system import System
from ..system.precision import DOUBLE, angles, real_dtype, upcast, wrap
from ..system.readout import SoftmaxRead
from ..system.shapes import spread_heads
from ..system.state import State, grows
from .cost.work import number_size
from .form import Form, register_reads


@dataclass(frozen=True)
class Cache:
    """Absorbed, real queries and keys of a system behind its past; keys are aligned at their end."""

    q: Tensor
    """[B,T,Hq,n']"""
    keys: Tensor
    """[B,L+T,Hk,n'], the L past ones first."""
    values: Tensor
    """[B,L+T,Hv,p]"""
    log_weight: Tensor | None
    """Sum of the log decays from each past key to the end of the past [B,L,H|1]."""
    g: Tensor | None
    """Log decays of the new tokens [B|1,T,H|1]."""
    angle: Tensor | None
    """Absolute angle after the last token, modulo 2 pi, float64."""
    seen: Tensor
    """Tokens seen before, per row [B]."""

    @property
    def past(self) -> int:
        """L"""
        return self.keys.shape[1] - self.q.shape[1]


def absorb(system: System, state: State | None) -> Cache:
    """Turn the phases into rotations of q and k, and put the past before the new keys."""
    B, T = system.B, system.T
    q, k, v = system.q, system.k, system.v
    assert q is not None and v is not None
    angle = None
    if system.b is not None or system.log_b is not None:
        b = upcast(system.b) if system.b is not None else upcast(system.log_b).exp()  # type: ignore[arg-type]
        k = _per_head(upcast(k), (b if b.ndim == 3 else b[None, None]).unsqueeze(-1))
    if system.phase is not None:
        phase = system.phase
        if phase.ndim < 3:
            phase = phase.expand(B, T, *phase.shape)
        phase = phase if phase.ndim == 4 else phase.unsqueeze(-1)
        start = None if state is None else state.get("angle")
        turned = angles(phase.movedim(1, 2)).movedim(2, 1) + (0 if start is None else start.unsqueeze(1))
        angle = wrap(turned[:, -1])
        turn = torch.polar(torch.ones_like(turned), turned)
        turn = turn if q.dtype in DOUBLE else turn.to(torch.complex64)
        q, k = _per_head(upcast(q), turn), _per_head(upcast(k), turn.conj())
    if q.is_complex() or k.is_complex():
        q, k = torch.cat([q.real, -_imag(q)], -1), torch.cat([k.real, _imag(k)], -1)
    q, k = q.to(system.dtype), k.to(system.dtype)
    seen = torch.zeros(B, dtype=torch.long, device=k.device)
    log_weight, g = None, system.parts.get("forget")
    if g is not None:
        g = g.to(real_dtype(upcast(q).dtype))
        g = g if g.ndim == 3 else g[None, None].expand(1, T, -1)
        log_weight = g.new_zeros(B, 0, g.shape[2])
    if state is not None:
        seen = state["position"]
        keys, values = state["keys"], state["values"]
        fits = keys.shape[2:] == k.shape[2:] and values.shape[2:] == v.shape[2:] and keys.shape[:2] == values.shape[:2]
        if not fits:
            expected = f"[{B},L,{k.shape[2]},{k.shape[3]}] and [{B},L,{v.shape[2]},{v.shape[3]}]"
            raise StateformError(
                f"the state holds keys {list(keys.shape)} and values {list(values.shape)}; expected {expected}, "
                "as in the State that return_state=True gave"
            )
        k, v = torch.cat([keys.to(k.dtype), k], 1), torch.cat([values.to(v.dtype), v], 1)
        log_weight = state.get("log_weight") if g is not None else None
    return Cache(q, k, v, log_weight, g, angle, seen)


def _per_head(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, both [B|1,T|1,heads,n|1], the fewer heads repeated to the more."""
    heads = lcm(x.shape[2], factor.shape[2])
    return spread_heads(x, heads) * spread_heads(factor, heads)


def _imag(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)


def attend(system: System, state: State | None, block: int) -> tuple[Tensor, State]:
    """y [B,T,H,p] and the state after the last token, `block` queries at a time."""
    cache = absorb(system, state)
    T, L = system.T, cache.past
    out, log_weight = [], cache.log_weight
    # A loop would give a graph for each length: there all queries go at once.
    once = torch.compiler.is_compiling() or block >= T
    for start, stop in [(0, T)] if once else [(i, min(i + block, T)) for i in range(0, T, block)]:
        stretch = None if cache.g is None else cache.g[:, start:stop]
        low, bias, log_weight = _bias(cache, log_weight, stretch, start, stop, system)
        keys, values = cache.keys[:, low : L + stop], cache.values[:, low : L + stop]
        out.append(_rows(system, cache.q[:, start:stop], keys, values, bias, start, low))
    new = {"keys": _kept(cache.keys, system.window), "values": _kept(cache.values, system.window)}
    if log_weight is not None:
        new["log_weight"] = _kept(log_weight, system.window)
    if cache.angle is not None:
        new["angle"] = cache.angle
    return torch.cat(out, 1), State({**new, "position": cache.seen + T})


def _kept(x: Tensor, window: int | None) -> Tensor:
    """What later tokens see of all keys so far [B,L+T,...]: the last window - 1 (in a graph for every length always so
    many, zeros where there were none).
    """
    if window is None:
        return x
    if any_length(x.shape[1]):
        return torch.cat([x.new_zeros(x.shape[0], window - 1, *x.shape[2:]), x], 1)[:, x.shape[1] :]
    return x[:, max(0, x.shape[1] - window + 1) :]


def _bias(
    cache: Cache, log_weight: Tensor | None, g: Tensor | None, start: int, stop: int, system: System
) -> tuple[int, Tensor | None, Tensor | None]:
    """For the queries start..stop: the first key any of them sees; what is added to their logits,
    [B|1,H|1,queries,keys] or None for "causal, nothing else"; and the running log weights of all keys up to `stop`.
    """
    L, device = cache.past, cache.keys.device
    cut = system.window is not None and (any_length(L + stop) or system.window < stop)
    if cache.g is None and system.causal and start == L == 0 and not cut:
        return 0, None, None  # before a mask of queries x keys is made
    low = 0 if system.window is None or any_length(L + start) else max(0, L + start - system.window + 1)
    i = torch.arange(L + start, L + stop, device=device)[:, None]
    j = torch.arange(low, L + stop, device=device)
    visible = (j <= i) if system.causal else torch.ones_like(j <= i)
    if system.window is not None:
        visible = visible & (i - j < system.window)
    visible = visible[None, None]
    valid = cache.seen.clamp(max=L)
    uneven = L > 0 and (not readable(valid) or bool((valid < L).any()))
    if uneven:
        visible = visible & (j >= (L - valid)[:, None])[:, None, None]
    if g is None:
        if stop - start == 1 and system.window is None and not uneven:
            return low, None, None
        return (
            low,
            torch.zeros(visible.shape, device=device, dtype=system.dtype).masked_fill(~visible, -torch.inf),
            None,
        )
    assert log_weight is not None
    B, c = log_weight.shape[0], stop - start
    inclusive = torch.cumsum(g, 1)
    later = torch.cat([g[:, 1:], torch.zeros_like(g[:, :1])], 1).flip(1).cumsum(1).flip(1)
    steps = torch.where(torch.ones(c, c, dtype=torch.bool, device=device).tril(-1)[..., None], g[:, :, None], 0.0)
    inside = torch.cumsum(steps, 1).expand(B, -1, -1, -1)
    before = log_weight[:, None, low:] + inclusive[:, :, None]
    bias = torch.cat([before, inside], 2).movedim(-1, 1)
    log_weight = torch.cat([log_weight + inclusive[:, -1:], later.expand(B, -1, -1)], 1)
    return low, torch.where(visible, bias, -torch.inf), log_weight


def _rows(system: System, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, start: int, low: int) -> Tensor:
    """y of a block of queries [B,c,H,p]."""
    H = system.H
    bias = bias if bias is None else spread_heads(bias, H, axis=1)
    if system.eta == "sum" and system.d is None and system.eta_floor is None:
        return (_written if transformed() else _fused)(q, keys, values, bias, H)
    alpha, direct = _alpha(system, _logits(q, keys, bias, H), slice(start, start + q.shape[1]))
    y = _weighted(alpha, values)
    if direct is not None:
        y = y + direct.transpose(1, 2) * upcast(spread_heads(values, H))[:, values.shape[1] - q.shape[1] :]
    return y.to(system.dtype)


def _fused(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, H: int) -> Tensor:
    """Softmax attention by torch's operator."""
    groups = keys.shape[2] if keys.shape[2] == values.shape[2] else H
    by_head = (spread_heads(q, H), spread_heads(keys, groups), spread_heads(values, groups))
    Q, K, V = (x.transpose(1, 2) for x in by_head)
    causal = bias is None
    if q.shape[1] == 1:  # one query sees every key
        causal = False
    y = F.scaled_dot_product_attention(
        Q.expand(-1, H, -1, -1), K, V, None if bias is None else bias.to(Q.dtype),
        is_causal=causal, scale=1.0, enable_gqa=groups != H,
    ).transpose(1, 2)  # fmt: skip
    if y.requires_grad and not torch.compiler.is_compiling():
        return _Differentiable.apply(y, H, q, keys, values, bias)
    return y


def _written(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, H: int) -> Tensor:
    """The same with the weights written out: what has derivatives of every order, forward too, and takes vmap."""
    return _weighted(_logits(q, keys, bias, H).softmax(-1), values).to(values.dtype)


class _Differentiable(torch.autograd.Function):
    """The result y of `_fused` as it is. Its gradient is that of the operator, which has none itself: where one is
    wanted, the gradient of `_written` is taken in its place.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, H: int, *given: Tensor | None) -> Tensor:
        ctx.H = H
        ctx.save_for_backward(*given)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return g, None, None, None, None, None
        found = gradients(partial(_written, H=ctx.H), ctx.saved_tensors, ctx.needs_input_grad[2:], (g,))
        return None, None, *found


def _weighted(alpha: Tensor, values: Tensor) -> Tensor:
    """The sums of values [B,L,H|1,p] weighted by alpha [B,H,c,L]: [B,c,H,p]."""
    H = alpha.shape[1]
    return torch.einsum("bhij,bjhp->bihp", alpha, upcast(spread_heads(values, H)).expand(-1, -1, H, -1))


def _logits(q: Tensor, keys: Tensor, bias: Tensor | None, H: int) -> Tensor:
    q, keys = upcast(spread_heads(q, H)), upcast(spread_heads(keys, H))
    logits = torch.einsum("bihn,bjhn->bhij", q.expand(-1, -1, H, -1), keys.expand(-1, -1, H, -1))
    if bias is None:
        c, length = logits.shape[-2:]
        seen = torch.ones(c, length, dtype=torch.bool, device=logits.device).tril(length - c)
        return logits.masked_fill(~seen, -torch.inf)
    return logits + upcast(spread_heads(bias, H, axis=1))


def _alpha(system: System, logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights [B,H,c,keys] divided by eta, and the direct weight [B,H,c,1] of each query's own value."""

    def gate(name: Literal["d", "eta", "eta_floor"]) -> Tensor:
        x = system.gate(name)
        return (x if x.shape[1] == 1 else x[:, rows]).transpose(1, 2).unsqueeze(-1)

    # With eta = "sum" only ratios matter: the largest exponent is taken out before the exponential.
    top = logits.amax(-1, keepdim=True).detach() if system.eta == "sum" else torch.zeros_like(logits[..., :1])
    for name in ("d", "eta_floor"):
        if system.eta == "sum" and getattr(system, name) is not None:
            top = torch.maximum(top, gate(name).detach().abs().log())
    weights, d = torch.exp(logits - top), None
    if system.d is not None:
        d = gate("d") * torch.exp(-top)
    if system.eta is None:
        return weights, d
    eta = gate("eta") if system.eta != "sum" else weights.sum(-1, keepdim=True) + (0 if d is None else d)
    if system.eta_floor is not None:
        eta = torch.maximum(eta.abs(), gate("eta_floor") * torch.exp(-top))
    return weights / eta, None if d is None else d / eta


def log_normaliser(system: System) -> Tensor:
    """log sum_j exp(...) of every query from an empty cache, [B,T,H]."""
    if system.B * system.T == 0:
        return torch.zeros(system.B, system.T, system.H, device=system.device)
    cache = absorb(system, None)
    _, bias, _ = _bias(cache, cache.log_weight, cache.g, 0, system.T, system)
    return _logits(cache.q, cache.keys, bias, system.H).logsumexp(-1).transpose(1, 2)


def _row_bias(cache: Cache, rows: Tensor, system: System) -> Tensor:
    """What is added to the logits of chosen queries from an empty cache, [B|1,H|1,rows,T]; memory rows x T."""
    i, j = rows[:, None], torch.arange(system.T, device=rows.device)
    visible = (j <= i) if system.causal else torch.ones_like(j <= i)
    if system.window is not None:
        visible = visible & (i - j < system.window)
    if cache.g is None:
        return torch.zeros(visible.shape, device=rows.device).masked_fill(~visible, -torch.inf)[None, None]
    g = cache.g.expand(cache.g.shape[0], system.T, -1).transpose(1, 2)
    out = []
    for row in rows.tolist():  # g_{j+1} + ... + g_row
        sums = F.pad(g[..., 1 : row + 1], (0, 1)).flip(-1).cumsum(-1).flip(-1)
        out.append(F.pad(sums, (0, system.T - row - 1)))
    return torch.stack(out, 2).masked_fill(~visible, -torch.inf)


def softmax_weights(system: System, queries: Sequence[int] | None) -> Tensor:
    """alpha [B,H,1,queries,T] of an exp readout from an empty cache."""
    index = list(range(system.T)) if queries is None else [int(i) for i in queries]
    cache = absorb(system, None)
    rows = torch.as_tensor(index, device=system.device)
    bias = _row_bias(cache, rows, system)
    logits = _logits(cache.q[:, rows], cache.keys, bias, system.H)
    alpha, direct = _alpha(system, logits, rows)
    if direct is not None:
        own = F.one_hot(rows, system.T).to(alpha.dtype)
        alpha = alpha + own * direct
    return alpha.unsqueeze(2)


CHUNK = 256
"""Queries that are read at a time, in forms that take neither one nor all."""


def queries_at_once(form: str, T: int) -> int:
    """How many queries of T a form reads at a time."""
    return {"recurrent": 1, "matrix": T}.get(form, CHUNK)


class SoftmaxForms:
    """y_t = sum_j alpha_tj v_j over the cache. See `Reads`."""

    def compute(self, system: System, form: Form, state: State | None) -> tuple[Tensor, State]:
        return attend(system, state, queries_at_once(form.name, system.T))

    def weights(self, system: System, queries: Sequence[int] | None) -> Tensor:
        return softmax_weights(system, queries)

    def blank_state(self, system: System, rows: int) -> dict[str, Tensor]:
        one = system.gather(lambda x, r: x.new_zeros(1, r, *x.shape[2:]))  # of one zero token
        _, state = attend(one, None, 1)
        empty = {k: x[:1, :0] if grows(k) else torch.zeros_like(x[:1]) for k, x in state.tensors.items()}
        return {k: x.expand(rows, *x.shape[1:]) for k, x in empty.items()}

    def nothing(self, system: System) -> Tensor:
        return torch.zeros(system.B, system.T, system.H, system.p, dtype=system.dtype, device=system.device)

    def state_names(self, system: System) -> list[str]:
        extra = {"angle": "phase", "log_weight": "forget"}
        return ["keys", "values", "position", *(name for name, part in extra.items() if part in system.parts)]

    def check_state(self, system: System, given: State) -> None:
        """Nothing to add: `absorb` compares the keys and values with the system's."""

    def work(self, system: System, form: str, chunk_size: int) -> tuple[float, float]:
        T, n, p, size = system.T, system.n, system.p, number_size(system)
        heads, states = system.B * system.H, system.B * system.state_heads
        keys = n * (2 if system.is_complex else 1)
        seen = T / 2 if system.window is None or system.window > T else system.window
        plain = system.eta == "sum" and system.d is None and not system.readout.tensors() and system.window is None
        rows = 0 if form == "matrix" and plain else min(queries_at_once(form, T), T)
        result = heads * T * p * size
        return (
            2 * heads * T * seen * (keys + p),
            result + states * T * (keys + p) * size + 3 * heads * rows * T * size,
        )


register_reads(SoftmaxRead, SoftmaxForms())
