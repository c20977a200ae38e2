"""The ridge readout: each query is answered by the regression that fits the values to the keys written so far.

    S_t = a_t S_{t-1} + b_t k_t v_t^T,    G_t = a_t G_{t-1} + b_t k_t k_t^T      one system with the values [v_t, k_t]
    y_t = S_t^T x_t,                      (G_t + R_t) x_t = q_t

S_t^T (G_t + R_t)^{-1} is the map M that minimises sum_j (a_t .. a_{j+1} b_j) |M k_j - v_j|^2 + tr(M R_t M^T). Once x is
known, y is the linear read of the same system at the queries x.

For all t at once, G_t p_t is a read of that system too: an iterative solver costs one run a step, in any form and in
memory linear in T. The exact solver writes G_t out, for a stretch of tokens at a time.

Source: MesaNet (arXiv 2506.05233: R constant and diagonal, conjugate gradients), Gated KalmaNet (arXiv 2511.21016:
R_t = r ||G_t||_F I, so that the condition number is at most 1 + 1/r, and Chebyshev iterations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import StateformError, readable, require, values_checked
from ..graph import any_length
from ..system import System
from ..system.core import Core, contract, fold
from ..system.precision import upcast
from ..system.readout import LINEAR, RidgeRead, Solver
from ..system.shapes import split_heads
from .cost.work import number_size
from .form import FORMS, Form, register_reads
from .linear import LinearForms
from .opaque import pulled

TILE = 2**22
"""Numbers that the Gram matrices written out side by side may take."""


# -- the operator G_t, for all t -----------------------------------------------------------------------------------


class Gram(Protocol):
    """G_t for all t of a stretch; the axes are those of the Core, [B,T,G,R,...]."""

    def product(self, p: Tensor) -> Tensor:
        """Compute G_t p_t for p [B,T,G,R,o,n]."""

    def diagonal(self) -> Tensor:
        """Compute the diagonal of G_t, [B,T,G,R,n]."""

    def norm(self) -> Tensor:
        """Compute ||G_t||_F, [B,T,G,R,1]."""


@dataclass(frozen=True)
class GramReads:
    """G_t as reads of the system itself, in one of its forms: nothing of size n x n is kept per token."""

    core: Core
    """The values are b_t k_t; the queries are of no account."""
    start: Tensor
    """G before the first token, [B,G,R,n,n]."""
    form: Form

    def read(self, core: Core, S: Tensor) -> Tensor:
        return self.form.compute(core, S)[0]

    def product(self, p: Tensor) -> Tensor:
        return self.read(replace(self.core, q=p), self.start)

    def diagonal(self) -> Tensor:
        one = torch.ones_like(self.core.v[:1, :1, :1, :1, :1])
        squares = replace(self.core, q=one.unsqueeze(-1), k=one, v=self.core.k * self.core.v)
        return self.read(squares, self.start.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).squeeze(-2)

    def norm(self) -> Tensor:
        """Compute the norm. Its square is a scalar system, of positive terms alone:
        ||G_t||^2 = a_t^2 ||G_{t-1}||^2 + b_t k_t^T (a_t G_{t-1} + G_t) k_t.
        """
        k, bk = self.core.k, self.core.v
        Gk = self.read(replace(self.core, q=k.unsqueeze(-2), exclusive=False), self.start).squeeze(-2)
        written = 2 * (Gk * bk).sum(-1, keepdim=True) - (k * bk).sum(-1, keepdim=True).square()
        log, one = self.core.decay_log(), torch.ones_like(bk[:1, :1, :1, :1, :1])
        scalar = replace(
            self.core, q=one.unsqueeze(-1), k=one, v=written, log=None if log is None else 2 * log, rate=None
        )
        square = self.read(scalar, self.start.square().sum((-2, -1), keepdim=True)).squeeze(-2)
        return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)

    def written(self) -> Iterator[tuple[slice, Written]]:
        """Stretch by stretch, G_t itself: the read at the queries I."""
        core, S = self.core, self.start
        eye = torch.eye(core.n, dtype=core.dtype, device=core.k.device)[None, None, None, None]
        size = max(1, TILE // (4 * core.batch * math.prod(core.state_heads) * core.n * core.n))
        T = core.length
        once = any_length(T)  # how many stretches there are would follow from it
        for start, stop in [(0, T)] if once else [(i, min(i + size, T)) for i in range(0, T, size)]:
            G, S = self.form.compute(replace(core.slice(start, stop), q=eye), S)
            yield slice(start, stop), Written(G)


@dataclass(frozen=True)
class Written:
    """G_t written out, [B,T,G,R,n,n]."""

    G: Tensor

    def product(self, p: Tensor) -> Tensor:
        return contract("...mn,...on->...om", self.G, p)

    def diagonal(self) -> Tensor:
        return self.G.diagonal(dim1=-2, dim2=-1)

    def norm(self) -> Tensor:
        return self.G.square().sum((-2, -1)).sqrt().unsqueeze(-1)


# -- the solvers ---------------------------------------------------------------------------------------------------


def bound(G: Gram, R: Tensor) -> Tensor:
    """Bound the condition number of G_t + R_t, [B,T,G,R,1,1]: (||G_t||_F + max R_t) / min R_t."""
    return (G.norm().unsqueeze(-1) + R.amax(-1, keepdim=True)) / R.amin(-1, keepdim=True)


def steps_for(condition: float, eps: float) -> int:
    """Count the steps k after which 2 ((sqrt(c) - 1) / (sqrt(c) + 1))^k, the error bound of both iterations, is below
    eps.
    """
    root = math.sqrt(max(condition, 1.0))
    return 1 if root == 1 else math.ceil(math.log(2 / eps) / math.log((root + 1) / (root - 1)))


def _worst(G: Gram, R: Tensor) -> float:
    condition = bound(G, R)
    require(readable(condition),
            "the steps of an iterative solver follow from values that cannot be read here (torch.compile, vmap); "
            "expected Solver(method, steps=...) or the exact solver")  # fmt: skip
    return float(condition.max())


def plus(G: Tensor, R: Tensor) -> Tensor:
    """Write out G + R, for G [B,T,G,R,n,n]."""
    return G + torch.diag_embed(R.squeeze(-2).expand(*R.shape[:-2], G.shape[-1]))


def _exact(M: Tensor, q: Tensor) -> Tensor:
    L, failed = torch.linalg.cholesky_ex(M)
    if values_checked(failed):
        require(not bool(failed.any()),
                f"G + R is not positive definite in {str(M.dtype).removeprefix('torch.')}: the ridge is too small for "
                "these keys; expected a larger ridge, or float64")  # fmt: skip
    return torch.cholesky_solve(q.mT, L).mT


def _cg(G: Gram, R: Tensor, q: Tensor, steps: int | None) -> Tensor:
    eps = torch.finfo(q.dtype).eps
    most = steps if steps is not None else 2 * steps_for(_worst(G, R), eps) + q.shape[-1]
    x = q / (G.diagonal().unsqueeze(-2) + R)
    r = q - G.product(x) - R * x
    p, rr = r, r.square().sum(-1, keepdim=True)
    enough = eps**2 * q.square().sum(-1, keepdim=True)
    for _ in range(most):
        if steps is None and bool((rr <= enough).all()):
            break
        Ap = G.product(p) + R * p
        pAp = (p * Ap).sum(-1, keepdim=True)
        going = (rr > enough) & (pAp > 0)  # where nothing is left but rounding, x stays
        step = torch.where(going, rr / torch.where(going, pAp, 1.0), 0.0)
        x, r = x + step * p, r - step * Ap
        before, rr = rr, r.square().sum(-1, keepdim=True)
        p = r + torch.where(going, rr / torch.where(going, before, 1.0), 0.0) * p
    if steps is None and not bool((rr <= 1e4 * enough).all()):
        left = float((rr.sum(-1) / q.square().sum(-1)).max().sqrt())
        raise StateformError(
            f"{most} steps of conjugate gradients left a residual of {left:.2g} of q; expected {eps:.2g}: "
            "give a larger ridge, Solver('cg', steps=...), or the exact solver"
        )
    return x


def _chebyshev(G: Gram, R: Tensor, q: Tensor, steps: int | None) -> Tensor:
    if steps is None:
        steps = steps_for(_worst(G, R), torch.finfo(q.dtype).eps)
    low, high = R.amin(-1, keepdim=True), G.norm().unsqueeze(-1) + R.amax(-1, keepdim=True)
    size, quarter = 2 / (high + low), ((high - low) / (high + low)).square() / 4
    before, x, omega = torch.zeros_like(q), size * q, torch.full_like(size, 2.0)
    for _ in range(steps):
        omega = 1 / (1 - quarter * omega)
        r = q - G.product(x) - R * x
        before, x = x, before + omega * (size * r + x - before)
    return x


def _iterate(G: Gram, R: Tensor, q: Tensor, solver: Solver) -> Tensor:
    return (_cg if solver.method == "cg" else _chebyshev)(G, R, q, solver.steps)


def _solve(G: GramReads, R: Tensor, q: Tensor, solver: Solver) -> Tensor:
    """Solve for x of the module for q [B,T,G,R,o,n]."""
    if solver.method != "exact" and G.form.name != "recurrent":
        return _iterate(G, R, q, solver)
    # The recurrence would go through all T steps at each iteration; with G_t written out it goes through them once.
    x = []
    for at, here in G.written():
        Q, ridge = (z if z.shape[1] == 1 else z.narrow(1, at.start, at.stop - at.start) for z in (q, R))
        x.append(_exact(plus(here.G, ridge), Q) if solver.method == "exact" else _iterate(here, ridge, Q, solver))
    return torch.cat(x, 1)


# -- its derivative ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """All of the problem but its tensors."""

    names: tuple[str, ...]
    rest: dict[str, Any]
    form: Form
    solver: Solver

    def problem(self, start: Tensor, R: Tensor, *parts: Tensor) -> tuple[GramReads, Tensor]:
        named = dict(zip(self.names, parts, strict=True))
        core = Core(q=named["k"].unsqueeze(-2), **named, **self.rest)  # type: ignore[arg-type]
        return GramReads(core, start, self.form), R

    def solve(self, q: Tensor, *operands: Tensor) -> Tensor:
        G, R = self.problem(*operands)
        return _solve(G, R, q, self.solver)

    def product(self, x: Tensor, *operands: Tensor) -> Tensor:
        G, R = self.problem(*operands)
        return G.product(x) + R * x

    def pull(self, x: Tensor, along: Tensor, *operands: Tensor) -> Sequence[Tensor]:
        """Compute the gradients of `product` by its operands."""
        G, R = self.problem(*operands)
        if any_length(G.core.length):  # an operator of torch is not traced through vjp
            found = pulled(G.form.name, replace(G.core, q=x), G.start, along)
            return found["S"], (along * x).sum_to_size(R.shape), *(found[name] for name in self.names)
        pull: Callable[[Tensor], Sequence[Tensor]] = torch.func.vjp(lambda *ops: self.product(x, *ops), *operands)[1]
        return pull(along)


class _Solution(torch.autograd.Function):
    """x = A^{-1} q with A = G + R symmetric: dx = A^{-1} (dq - dA x), so that a gradient costs one more solve."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, q: Tensor, *operands: Tensor) -> Tensor:
        x = plan.solve(q, *operands)
        ctx.plan = plan
        ctx.save_for_backward(x, *operands)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *operands = ctx.saved_tensors
        z = _apply(ctx.plan, g, *operands)
        return None, z, *ctx.plan.pull(x, -z, *operands)


class _Dual(_Solution):
    """The same with what torch.compile does not trace: forward derivatives and vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: _Plan, q: Tensor, *operands: Tensor) -> Tensor:  # type: ignore[override]
        return plan.solve(q, *operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plan = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    def jvp(ctx: Any, _: None, dq: Tensor | None, *tangents: Tensor | None) -> Tensor:
        x, *operands = ctx.saved_tensors
        along = tuple(torch.zeros_like(a) if d is None else d for a, d in zip(operands, tangents, strict=True))
        # J d as the transpose of w -> J^T w: eager forward mode does not nest
        pull = torch.func.vjp(lambda *ops: ctx.plan.product(x, *ops), *operands)[1]
        push = torch.func.vjp(pull, torch.zeros_like(x))[1]
        (dAx,) = push(along)
        return _apply(ctx.plan, -dAx if dq is None else dq - dAx, *operands)


def _apply(plan: _Plan, q: Tensor, *operands: Tensor) -> Tensor:
    x: Tensor = (_Solution if torch.compiler.is_compiling() else _Dual).apply(plan, q, *operands)
    return x


# -- for a System --------------------------------------------------------------------------------------------------


def problem(system: System, core: Core, S: Tensor, form: Form) -> tuple[GramReads, Tensor]:
    """Give G of a system with readout "ridge", from core and state [B,G,R,n,p+n]; and R, [B|1,T|1,G|1,R|1,1,n|1]."""
    read = system.readout
    assert isinstance(read, RidgeRead) and read.ridge is not None
    G = GramReads(replace(core, v=core.v[..., system.p :]), S[..., system.p :], form)
    R = split_heads("ridge", upcast(read.ridge), *core.heads).unsqueeze(-2)
    if read.relative:
        norm = G.norm().unsqueeze(-1)
        R = torch.where(norm > 0, R * norm, 1.0)  # where nothing was written, y = 0 for any R
    return G, R.to(core.k.dtype)


def queries(G: GramReads, R: Tensor, q: Tensor, solver: Solver | None) -> Tensor:
    """Solve for x_t [B,T,G,R,o,n], with its derivatives."""
    core = G.core
    q = q.expand(core.batch, core.length, *core.heads, *q.shape[-2:])
    parts = {name: x for name, x in core.tensors().items() if name != "q"}
    rest = {"exclusive": core.exclusive, "length": core.length, "batch": core.batch, "heads": core.heads,
            "state_heads": core.state_heads}  # fmt: skip
    return _apply(_Plan(tuple(parts), rest, G.form, solver or Solver()), q, G.start, R, *parts.values())


def solution(system: System, core: Core, S: Tensor, form: Form) -> Tensor:
    """Solve for the queries x_t [B,T,G,R,o,n] that take the place of q_t: x, or q + mix (x - q)."""
    read = system.readout
    assert isinstance(read, RidgeRead)
    G, R = problem(system, core, S, form)
    x = queries(G, R, core.q, read.solver)
    if read.mix is None:
        return x
    return core.q + split_heads("mix", upcast(read.mix), *core.heads).unsqueeze(-2).to(x.dtype) * (x - core.q)


def as_linear(system: System) -> System:
    """Make the equal system with readout "linear" and the queries x_t (from a zero state), in the precision of the
    state.
    """
    core = fold(system)
    x = solution(system, core, core.zero_state(), FORMS["chunkwise"]).flatten(2, 3)
    assert system.q is not None and system.v is not None
    x = x if system.q.ndim in (3, 5) else x.squeeze(-2)
    return without_ridge(replace(system, q=x, k=upcast(system.k), v=upcast(system.v)))


def without_ridge(system: System) -> System:
    """Make the system with its queries as they are: readout "linear"."""
    return replace(system, readout=LINEAR)


class RidgeForms(LinearForms):
    """y_t = S_t^T x_t, (G_t + R_t) x_t = q_t: a linear read of the state [S | G], by other queries."""

    def query(self, system: System, core: Core, S: Tensor, form: Form) -> Core:
        return replace(core, q=solution(system, core, S, form))

    def weights(self, system: System, queries: Sequence[int] | None) -> Tensor:
        return super().weights(as_linear(system), queries)

    def columns_in_words(self, system: System) -> str:
        return f" (the last {system.n} columns are the Gram matrix)"

    def work(self, system: System, form: str, chunk_size: int) -> tuple[float, float]:
        read, n, T, size = system.readout, system.n, system.T, number_size(system)
        assert isinstance(read, RidgeRead)
        heads = system.B * system.H
        flops, memory = super().work(without_ridge(system), form, chunk_size)
        share = n / system.p  # of the Gram matrix against S
        written = n * n * size * min(heads * T, TILE // (4 * n * n) + heads)  # G of the tokens of a tile
        if read.solver is None or read.solver.method == "exact":
            return (
                flops * (1 + share) + heads * T * (2 * n**3 + n**3 / 3 + 2 * n * n),
                memory * (1 + share) + 2 * heads * T * n * size + 4 * written,
            )
        steps = 2 * n if read.solver.steps is None else read.solver.steps
        return (flops * (1 + (steps + 2) * share), memory * (1 + share) + 6 * heads * T * n * size + written)


register_reads(RidgeRead, RidgeForms())
