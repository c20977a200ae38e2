"""The exp readout (softmax attention and its kin), whose state is the growing cache of keys and values.

    y_i = ( sum_{j<=i} exp( c(x_ij) + g_{j+1} + ... + g_i + beta_j + r_{i-j} + m_{i,j/block} ) v_j
            + exp(s_i) z_i + d_i v_i ) / eta_i
    x_ij = Re(q_i^T A_i ... A_{j+1} b_j k_j)

The System's transition A acts inside, on the keys (see `scores`). The forgetting g, the biases beta of a key, r of a
distance and m of a block of keys, and the sink s, one more weight in eta, of value z, act outside (see `outside`). All
queries at once, a block of them at a time, or one at a time are the forms matrix, chunkwise and recurrent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import require
from ..graph import any_length
from ..loops.backend import transformed
from ..loops.ops import gradients
from ..system import System
from ..system.precision import upcast
from ..system.readout import SoftmaxRead
from ..system.shapes import spread_heads
from ..system.state import State, grows
from .cost.work import number_size
from .form import Form, register_reads
from .outside import bias_of, bias_of_rows, outside, select
from .scores import Scores, joined, kept_as, product_logits, scores_of, turns_only


def attend(system: System, state: State | None, block: int) -> tuple[Tensor, State]:
    """Compute y [B,T,H,p] and the state after the last token, `block` queries at a time."""
    scores = scores_of(system, state)
    assert system.v is not None
    values, added = joined(state, "values", system.v), outside(system, state, scores.past)
    T, L = system.T, scores.past
    out, log_weight = [], added.log_weight
    # A loop would give a graph for each length: there all queries go at once.
    once = torch.compiler.is_compiling() or block >= T
    for start, stop in [(0, T)] if once else [(i, min(i + block, T)) for i in range(0, T, block)]:
        low, bias, log_weight = bias_of(added, log_weight, start, stop, system)
        out.append(_rows(system, scores, values[:, low : L + stop], bias, slice(start, stop), low))
    new = {**scores.kept(), "values": values}
    if log_weight is not None:
        new["log_weight"] = log_weight
    new = {name: _kept(x, system.window) if grows(name) else x for name, x in new.items()}
    return torch.cat(out, 1), State({**new, "position": added.seen + T})


def _kept(x: Tensor, window: int | None) -> Tensor:
    """Cut from all keys so far [B,L+T,...] what later tokens see: the last window - 1 (always so many
    in a graph for every length, zeros where there were none).
    """
    if window is None:
        return x
    if any_length(x.shape[1]):
        return torch.cat([x.new_zeros(x.shape[0], window - 1, *x.shape[2:]), x], 1)[:, x.shape[1] :]
    return x[:, max(0, x.shape[1] - window + 1) :]


def _rows(system: System, scores: Scores, values: Tensor, bias: Tensor | None, rows: slice, low: int) -> Tensor:
    """Compute y of a block of queries, [B,c,H,p]."""
    H = system.H
    bias = bias if bias is None else spread_heads(bias, H, axis=1)
    product = scores.product(rows.start, rows.stop, low)
    if product is not None and _fusible(system):
        return (_written if transformed() else _fused)(*product, values, bias, H)
    alpha, direct, sink = _alpha(system, _exponents(system, scores.logits(rows.start, rows.stop, low), bias), rows)
    y = _weighted(alpha, values)
    own = system.parts.get("sink_value")
    if own is not None and sink is not None:
        y = y + sink.transpose(1, 2) * upcast(spread_heads(select(own, rows), H))
    if direct is not None:
        y = y + direct.transpose(1, 2) * upcast(spread_heads(values, H))[:, values.shape[1] - alpha.shape[2] :]
    return y.to(system.dtype)


def _fusible(system: System) -> bool:
    """True if rows are softmax of the logits and a bias, with something to see for each."""
    plain = system.eta == "sum" and system.d is None and system.eta_floor is None
    return plain and not {"bias", "blocks", "sink"} & system.parts.keys() and _cap(system) is None


def _cap(system: System) -> float | None:
    readout = system.readout
    return readout.cap if isinstance(readout, SoftmaxRead) else None


def _exponents(system: System, logits: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the logarithms of the weights before eta, [B,H,c,keys]."""
    cap = _cap(system)
    return _masked(logits if cap is None else cap * torch.tanh(logits / cap), bias)


def _fused(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, H: int) -> Tensor:
    """Softmax attention by torch's operator."""
    groups = keys.shape[2] if keys.shape[2] == values.shape[2] else H
    by_head = (spread_heads(q, H), spread_heads(keys, groups), spread_heads(values, groups))
    Q, K, V = (x.transpose(1, 2) for x in by_head)
    one = q.shape[1] == 1  # which sees every key
    n, p = K.shape[-1], V.shape[-1]
    if n != p and not one and q.device.type == "cpu":  # else its weights of all pairs are written out there
        Q, K, V = (F.pad(x, (0, max(n, p) - x.shape[-1])) for x in (Q, K, V))
    y = F.scaled_dot_product_attention(
        Q.expand(-1, H, -1, -1), K, V, None if bias is None else bias.to(Q.dtype),
        is_causal=bias is None and not one, scale=1.0, enable_gqa=groups != H,
    )[..., :p].transpose(1, 2)  # fmt: skip
    if y.requires_grad and not torch.compiler.is_compiling():
        return _Differentiable.apply(y, H, q, keys, values, bias)
    return y


def _written(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, H: int) -> Tensor:
    """Compute the same with the weights written out: it has derivatives of every order, forward too, and takes vmap."""
    exponents = _masked(product_logits(q, keys, H), bias)
    blind = (exponents == -torch.inf).all(-1, keepdim=True)  # where softmax would be 0 / 0
    alpha = exponents.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return _weighted(alpha, values).to(values.dtype)


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
    """Sum the values [B,L,H|1,p] weighted by alpha [B,H,c,L]: [B,c,H,p]."""
    H = alpha.shape[1]
    return torch.einsum("bhij,bjhp->bihp", alpha, upcast(spread_heads(values, H)).expand(-1, -1, H, -1))


def _masked(logits: Tensor, bias: Tensor | None) -> Tensor:
    """Mask logits [B,H,c,keys] by a sum; with nothing to add, a query sees the keys up to its own, the last c."""
    if bias is not None:
        return logits + upcast(spread_heads(bias, logits.shape[1], axis=1))
    c, length = logits.shape[-2:]
    seen = torch.ones(c, length, dtype=torch.bool, device=logits.device).tril(length - c)
    return logits.masked_fill(~seen, -torch.inf)


def _gate(system: System, rows: slice | Tensor, name: Literal["d", "eta", "eta_floor", "sink"]) -> Tensor:
    """Give a number of chosen queries and heads, [B|1,H|1,c|1,1]."""
    x = system.gate(name)
    return (x if x.shape[1] == 1 else select(x, rows)).transpose(1, 2).unsqueeze(-1)


def _alpha(system: System, logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Divide by eta: the weights [B,H,c,keys], and those of each query's own value and of its sink, [B,H,c,1]."""
    # With eta = "sum" only ratios matter: the largest exponent is taken out before the exponential.
    top, sink = torch.zeros_like(logits[..., :1]), None
    if system.eta == "sum":
        top = logits.amax(-1, keepdim=True).detach()
        for name in ("d", "eta_floor"):
            if getattr(system, name) is not None:
                top = torch.maximum(top, _gate(system, rows, name).detach().abs().log())
        if "sink" in system.parts:
            sink = _gate(system, rows, "sink")
            top = torch.maximum(top, sink.detach())
        top = torch.where(top == -torch.inf, 0.0, top)  # nothing is seen
    weights, d = torch.exp(logits - top), None
    if system.d is not None:
        d = _gate(system, rows, "d") * torch.exp(-top)
    if system.eta is None:
        return weights, d, None
    eta = _gate(system, rows, "eta") if system.eta != "sum" else weights.sum(-1, keepdim=True) + (0 if d is None else d)
    drawn = None if sink is None else torch.exp(sink - top)
    eta = eta if drawn is None else eta + drawn
    if system.eta_floor is not None:
        eta = torch.maximum(eta.abs(), _gate(system, rows, "eta_floor") * torch.exp(-top))
    if not {"bias", "distance", "blocks"}.isdisjoint(system.parts):
        eta = torch.where(eta == 0, 1.0, eta)  # a read that sees nothing is 0
    return weights / eta, None if d is None else d / eta, None if drawn is None else drawn / eta


def log_normaliser(system: System) -> Tensor:
    """Compute log (sum_j exp(...) + exp(sink)) of every query from an empty cache, [B,T,H]."""
    if system.B * system.T == 0:
        return torch.zeros(system.B, system.T, system.H, device=system.device)
    exponents = _all_exponents(system, None).transpose(1, 2)
    total = exponents.logsumexp(-1)
    return torch.logaddexp(total, system.gate("sink")) if "sink" in system.parts else total


def _all_exponents(system: System, rows: Tensor | None) -> Tensor:
    """Compute the logarithms of the weights of chosen queries from an empty cache [B,H,rows,T]; memory rows x T."""
    scores, added, T = scores_of(system, None), outside(system, None, 0), system.T
    if rows is None:
        _, bias, _ = bias_of(added, added.log_weight, 0, T, system)
        return _exponents(system, scores.logits(0, T, 0), bias)
    return _exponents(system, scores.rows(rows), bias_of_rows(added, rows, system))


def softmax_weights(system: System, queries: Sequence[int] | None) -> Tensor:
    """Compute alpha [B,H,1,queries,T] of an exp readout from an empty cache."""
    index = list(range(system.T)) if queries is None else [int(i) for i in queries]
    rows = torch.as_tensor(index, device=system.device)
    alpha, direct, _ = _alpha(system, _all_exponents(system, rows), rows)
    if direct is not None:
        own = F.one_hot(rows, system.T).to(alpha.dtype)
        alpha = alpha + own * direct
    return alpha.unsqueeze(2)


CHUNK = 256
"""Queries that are read at a time, in forms that take neither one nor all."""


def queries_at_once(form: str, T: int) -> int:
    """Count the queries of T that a form reads at a time."""
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
        angle = turns_only(system) and system.phase is not None
        weights = not {"forget", "bias"}.isdisjoint(system.parts)
        return [kept_as(system), "values", "position", *["angle"] * angle, *["log_weight"] * weights]

    def check_state(self, system: System, given: State) -> None:
        """Raise unless keys and values are of the same tokens; `joined` compares them with the system's."""
        keys, values = given[kept_as(system)], given["values"]
        require(keys.shape[:2] == values.shape[:2],
                f"the state holds keys {list(keys.shape)} and values {list(values.shape)}; expected one of each for "
                "every token, as in the State that return_state=True gave")  # fmt: skip

    def work(self, system: System, form: str, chunk_size: int) -> tuple[float, float]:
        T, n, p, size = system.T, system.n, system.p, number_size(system)
        heads, states = system.B * system.H, system.B * system.state_heads
        keys = n * (2 if system.is_complex else 1)
        seen = T / 2 if system.window is None or system.window > T else system.window
        fused = turns_only(system) and _fusible(system)
        plain = fused and not system.readout.tensors() and system.window is None
        rows = 0 if form == "matrix" and plain else min(queries_at_once(form, T), T)
        result = heads * T * p * size
        moved = 0 if turns_only(system) else states * T * seen * keys * (4 if rows == 1 else 2 * n / max(1, rows))
        return (
            2 * heads * T * seen * (keys + p) + moved,
            result + states * T * (keys + p) * size + 3 * heads * rows * T * size,
        )


register_reads(SoftmaxRead, SoftmaxForms())
