"""Newton's method on a nonlinear recurrence s_t = f(s_{t-1}, x_t): all steps at once, a few times over.

Around a guess s the recurrence is linear, a System with A_t = J_t = df/ds at s_{t-1}. With the residual
r_t = f(s_{t-1}, x_t) - s_t, the next guess is s + delta (DEER, arXiv 2309.12252; with the diagonal of J_t alone,
quasi-DEER, arXiv 2407.19115):

    delta_t = J_t delta_{t-1} + r_t,     delta_0 = 0

The first t states are exact after t iterations, whatever happens behind them, and near the solution convergence is
quadratic. A chaotic recurrence makes delta grow like the products of the J_t, and Newton gets lost. The damped form
bounds every |delta_t| by max(1, |r_t|), and takes stretches of time one after another, none longer than the iterations
allowed: so it always arrives, if no sooner than step by step where the chaos is strong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..system import System
from ..system.core import Core, fold, unfold
from ..system.precision import tolerance
from .form import FORMS, register_form

Step = Callable[[Tensor, Any], Tensor]
"""f(s, x): states [...,H,n] and what a cell sees of the input there, to the next states."""
AT_ONCE = 2**24
"""Numbers that the columns of a Jacobian computed side by side may take."""
SPARE = 5
"""Iterations left for the last digits of the last states of a stretch."""
LOST = 2.0**10
"""A step this many times the size of the values of f is no step any more."""


@dataclass(frozen=True)
class Newton:
    """How to solve.

    Args:
        quasi: take the diagonal of the Jacobian alone: O(T n) memory for O(T n^2), more iterations.
        damped: bound the steps, and take one stretch of time after another: arrives where plain Newton does not.
        max_iter: iterations at most (damped: for each stretch of time).
    """

    quasi: bool = False
    damped: bool = False
    max_iter: int = 50

    def __post_init__(self) -> None:
        whole = isinstance(self.max_iter, int) and not isinstance(self.max_iter, bool) and self.max_iter >= 1
        require(whole, f"max_iter is {self.max_iter!r}; expected a whole number, 1 or more")


@dataclass(frozen=True)
class Trajectory:
    """States that obey s_t = f(s_{t-1}, x_t), or the best that was found: `converged` says which."""

    states: Tensor
    """[B,T,H,n]"""
    converged: bool
    """True if `residual` is within `tolerance`."""
    iterations: int
    """How many it took (damped: all stretches together)."""
    residual: float
    """max |s_t - f(s_{t-1}, x_t)| over all states, relative to max(1, max |s|) of each entry."""
    position: int
    """The step where it is largest."""
    tolerance: float
    """What one step may round off in this dtype."""

    def __bool__(self) -> bool:
        return self.converged

    def __str__(self) -> str:
        found = "converged" if self.converged else "did NOT converge"
        return (
            f"{found} after {self.iterations} iterations: residual {self.residual:.2g} (allowed {self.tolerance:.2g}), "
            f"largest at position {self.position} of {self.states.shape[1]}"
        )


def solve(f: Step, s0: Tensor, x: Any, length: int, newton: Newton | None = None) -> Trajectory:
    """Find the states of s_t = f(s_{t-1}, x_t), from zero as the first guess, without gradients (see `linearized`).

    Args:
        f: one step; it must take any axes before [H,n], and let no head see another's state.
        s0: the state before the first step [B,H,n].
        x: what f takes besides the state, a tensor [B,T,...] or a tuple of such.
        length: T.
        newton: how (default: plain Newton, 50 iterations).

    Returns:
        A Trajectory; look at `converged`.
    """
    newton = newton or Newton()
    s0, x = s0.detach(), each(x, Tensor.detach)
    allowed = tolerance(s0.dtype, 1)
    stretch = max(1, newton.max_iter - SPARE if newton.damped else length)
    found, iterations, start = [s0.new_zeros(s0.shape[0], 0, *s0.shape[1:])], 0, s0
    with torch.no_grad():
        for at in range(0, length, stretch):
            size = min(stretch, length - at)
            part = each(x, partial(Tensor.narrow, dim=1, start=at, length=size))
            states, used = _stretch(f, start, part, size, newton, allowed)
            found.append(states)
            iterations, start = iterations + used, states[:, -1]
        s = torch.cat(found, 1)
        gap = (f(behind(s, s0), x) - s).abs().nan_to_num(torch.inf, torch.inf)
    position = int(gap.amax((0, 2, 3)).argmax()) if gap.numel() else 0
    residual = _size(gap, s)
    return Trajectory(s, residual <= allowed, iterations, residual, position, allowed)


def _stretch(f: Step, s0: Tensor, x: Any, length: int, newton: Newton, allowed: float) -> tuple[Tensor, int]:
    """Find the states of a stretch, and after how many iterations they were found or given up."""
    s = s0.new_zeros(s0.shape[0], length, *s0.shape[1:])
    for iteration in range(newton.max_iter):
        value = f(behind(s, s0), x)
        r = value - s
        last = _size(r.abs(), s) <= allowed
        delta = _forward(jacobian(lambda h: f(h, x), behind(s, s0), diagonal=newton.quasi), r)
        if last:  # what each step may round off adds up over time: one iteration more, and it does not
            return s + torch.where(torch.isfinite(delta), delta, 0.0), iteration + 1
        length_of = delta.abs().amax(-1, keepdim=True)
        if newton.damped:
            delta = delta * (r.abs().amax(-1, keepdim=True).clamp_min(1.0) / length_of).clamp_max(1.0)
        # Lost or overflown, which never happens to the first state that is not exact: begin anew from f's own value.
        lost = ~(length_of <= LOST * value.abs().amax().clamp_min(1.0)) | ~torch.isfinite(delta).all(-1, keepdim=True)
        s = torch.where(lost, value.nan_to_num(0.0, 0.0, 0.0), s + delta)
    return s, newton.max_iter


def linearized(f: Step, states: Tensor, s0: Tensor, x: Any, *, from_zero: bool = False) -> System:
    """Linearise to the System of s_t = f(s_{t-1}, x_t) along its states: A_t = df/ds, v_t = 1, k_t = f(s_{t-1}, x_t) -
    A_t s_{t-1}.

    Its states are those of f, and so are its gradients to s0, to x and to what f holds: A_t and s_{t-1} are constants
    in k_t, so that d s_t = A_t d s_{t-1} + (df/d theta) d theta, which is the implicit function theorem for the whole
    trajectory. (The gradient of a gradient is not.)

    Args:
        f: as in `solve`.
        states: [B,T,H,n], which must obey the recurrence.
        s0: the state before them [B,H,n].
        x: as in `solve`.
        from_zero: the System is to be run from the zero state: k_1 is then f(s_0, x_1) itself.
    """
    before = behind(states, s0).detach()
    with torch.no_grad():
        J = jacobian(lambda h: f(h, x), before)
    known = behind(states, torch.zeros_like(s0)).detach() if from_zero else before
    k = f(before, x) - (J @ known.unsqueeze(-1)).squeeze(-1)
    return System(None, k, None, transition=J)


def behind(s: Tensor, s0: Tensor) -> Tensor:
    """Return s_{t-1} for every t: [B,T,H,n]."""
    return torch.cat([s0.unsqueeze(1), s[:, :-1]], 1)


def each(x: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Take `fn` of a tensor, or of every tensor of a tuple."""
    return tuple(fn(z) for z in x) if isinstance(x, tuple) else fn(x)


def jacobian(f: Callable[[Tensor], Tensor], s: Tensor, *, diagonal: bool = False) -> Tensor:
    """Compute df/ds within each head, [...,H,n,n] or its diagonal [...,H,n]: a product J e_j per key, all tokens at
    once.
    """
    n = s.shape[-1]

    def column(e: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(f, (s,), (e.expand_as(s),))[1]
        return (out * e).sum(-1) if diagonal else out

    at_once = max(1, AT_ONCE // max(1, s.numel()))
    columns: Tensor = torch.func.vmap(column, chunk_size=at_once)(torch.eye(n, dtype=s.dtype, device=s.device))
    return columns.movedim(0, -1)


def _size(r: Tensor, s: Tensor) -> float:
    """Compute the largest |r|, relative to the states of its head and entry where these are above 1; NaN counts as
    infinite.
    """
    if not r.numel():
        return 0.0
    return float((r.amax((0, 1)) / s.abs().amax((0, 1)).clamp_min(1.0)).nan_to_num(torch.inf, torch.inf).max())


def _forward(J: Tensor, r: Tensor) -> Tensor:
    """Compute delta_t = J_t delta_{t-1} + r_t, with J dense or diagonal."""
    if J.ndim == r.ndim:
        system = System(None, r, None, log_decay=J.abs().log(), sign=torch.where(J < 0, -1.0, 1.0).to(J))
    else:
        system = System(None, r, None, transition=J)
    return scanned(system, torch.zeros_like(r[:, 0]))


def scanned(system: System, s0: Tensor) -> Tensor:
    """Compute the states [B,T,H,n] of a vector-state system by a scan, however large its transitions are."""
    raw, _ = FORMS["scan"].compute(fold(system), s0[:, :, None, :, None])
    return unfold(system, raw.flatten(2, 3))


class _Form:
    """The name of the form, for cells; a System has no use for it."""

    name, letter, order = "newton", "n", 60
    forward, of_systems = False, False

    def refuses(self, system: System) -> str | None:
        return "a System is linear already; Newton's method is for nonlinear cells (sf.Cell)"

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        raise StateformError(f"the form {self.name!r} computes no System")


register_form(_Form())
