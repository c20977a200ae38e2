"""How much state a causal operator needs: the numerical rank of its blocks between past and future.

y_i = sum_{j<=i} Phi_ij v_j. At a split t the future sees the past through H_t = Phi[t:, :t] alone, so whatever carries
the operator across t has rank H_t numbers there (for each value), and no fewer. The best approximation by r numbers
is off by the singular values sigma_{r+1}, ... of H_t (Eckart and Young), hence at a tolerance

    need_t = min { r : sum_{k>r} sigma_k(H_t)^2 <= tol^2 N^2 },   N = ||H_t||_F  ("block")  or  ||Phi||_F  ("operator").

Source: Dewilde and van der Veen, Time-Varying Systems and Computations (1998): the least state at t is the rank of the
Hankel operator at t (Kronecker's theorem for time-varying systems).

A system with a linear readout has H_t = O_t C_t through its state; thin factors O_t = F M_t and C_t = L_t E, with F and
E orthonormal, are carried over time, and sigma(H_t) = sigma(M_t L_t). Any other operator is read a block of rows at a
time, from the last one, as H_t = U_t R_t + (what was dropped, orthogonal to U_t R_t and measured).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import require
from ...forms.dense import normaliser
from ...forms.form import FORMS
from ...forms.ridge import as_linear
from ...forms.stabilise import stabilise
from ...system import System
from ...system.core import fold
from ...system.shapes import indices, spread_heads
from .._plots import lines
from ..attention.coefficients import has_weights

FINE = 0.3
"""The rows that are carried on are compressed to this share of the tolerance: it is what the bounds may lie apart."""


@dataclass(frozen=True)
class StateNeed:
    """The singular values of H_t = Phi[t:, :t] at some splits t, and the states that they ask for."""

    splits: list[int]
    """Tokens before each split, ascending, among 1..T-1."""
    values: Tensor
    """Singular values of what was kept of H_t, [B,H,splits,m], descending, zeros behind."""
    missing: Tensor
    """Squared Frobenius norm of what was dropped of H_t, [B,H,splits]; zero for a linear readout."""
    energy: Tensor
    """||H_t||_F^2 at every t = 1..T-1, [B,H,T-1]."""
    total: Tensor
    """||Phi||_F^2, the diagonal included, [B,H]."""
    tol: float
    relative: Literal["block", "operator"]
    writes: int
    """Columns of Phi a token (micro-steps)."""
    outputs: int
    """Rows of Phi a token (1 for scalar weights)."""
    state: int | None
    """Rank that no H_t exceeds: that of the system's own state, in real numbers where only a real part is read."""

    @property
    def length(self) -> int:
        """T"""
        return self.energy.shape[-1] + 1

    def ranks(self, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """The least and the most state that may be needed at each split, [B,H,splits] each.

        With H = H' + D, H' what was kept and D, orthogonal to it, what was dropped: sigma_k(H') <= sigma_k(H), and
        sum_{k>r} sigma_k(H)^2 <= sum_{k>r} sigma_k(H')^2 + ||D||_F^2. Equal where nothing was dropped.

        Args:
            tol: the relative error allowed (default: the one that the operator was read with).
        """
        at = torch.tensor([t - 1 for t in self.splits], dtype=torch.long, device=self.energy.device)
        allowed = self._allowed(self.tol if tol is None else tol)[..., at]
        return self._ranks(torch.arange(len(self.splits), device=at.device), allowed)

    def bounds(self, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """The same at every t = 1..T-1, [B,H,T-1] each: exact bounds, from the splits on either side.

        From t to t + 1, H_t loses the rows of a token and gains its columns: at one and the same error the rank rises
        by at most the columns of a token and falls by at most its rows.
        """
        T, device = self.length, self.energy.device
        allowed, t = self._allowed(self.tol if tol is None else tol), torch.arange(1, T, device=device)
        most = torch.minimum(t * self.writes, (T - t) * self.outputs).expand_as(allowed)
        most = most if self.state is None else most.clamp_max(self.state)
        least = torch.zeros_like(most)
        if not self.splits:
            return least, most
        splits = torch.tensor(self.splits, device=device)
        after = torch.searchsorted(splits, t)  # the first split at t or later
        for near, known in ((after - 1, after > 0), (after, after < len(splits))):
            near = near.clamp(0, len(splits) - 1)
            low, high = self._ranks(near, allowed)
            since, until = (t - splits[near]).clamp_min(0), (splits[near] - t).clamp_min(0)
            low = low - since * self.outputs - until * self.writes
            high = high + since * self.writes + until * self.outputs
            least = torch.where(known, torch.maximum(least, low), least)
            most = torch.where(known, torch.minimum(most, high), most)
        return least, most

    @property
    def need(self) -> Tensor:
        """The state that is enough at every split, the most of `ranks`, [B,H]."""
        most = self.ranks()[1]
        return most.amax(-1) if self.splits else most.new_zeros(most.shape[:2])

    def per_head(self) -> list[int]:
        """`need`, the largest of the batch, per head."""
        return [int(x) for x in self.need.amax(0)]

    def limited(self) -> list[bool]:
        """True for each head that needs at some split all that so short a text can ask for: a bound from below."""
        splits = torch.tensor(self.splits, device=self.energy.device)
        full = torch.minimum(splits * self.writes, (self.length - splits) * self.outputs)
        asked = (self.ranks()[1] >= full) & (full < (torch.inf if self.state is None else self.state))
        return [bool(x) for x in asked.any(-1).any(0)]

    @property
    def exact(self) -> bool:
        """Whether least and most agree at every split."""
        least, most = self.ranks()
        return bool((least == most).all())

    def _allowed(self, tol: float) -> Tensor:
        """The squared error allowed at every t, [B,H,T-1]."""
        return tol**2 * (self.energy if self.relative == "block" else self.total[..., None].expand_as(self.energy))

    def _ranks(self, near: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Least and most rank of H at the splits `near` [N] with squared errors allowed [B,H,N]."""
        squares = F.pad(self.values[:, :, near].square(), (0, 1))
        tails = squares.flip(-1).cumsum(-1).flip(-1)  # tails[r] = sum_{k>r}
        allowed, missing = allowed.unsqueeze(-1), self.missing[:, :, near].unsqueeze(-1)
        splits = torch.tensor(self.splits, device=near.device)[near]
        full = torch.minimum(splits * self.writes, (self.length - splits) * self.outputs).expand(allowed.shape[:-1])
        enough = tails + missing <= allowed
        most = torch.where(enough.any(-1), enough.int().argmax(-1), full)
        return (tails <= allowed).int().argmax(-1), most

    def __str__(self) -> str:
        heads = ", ".join(str(x) for x in self.per_head())
        of = "each block Phi[t:, :t]" if self.relative == "block" else "the whole operator"
        lines = [f"state needed for {self.tol:.2g} of the Frobenius norm of {of}, T = {self.length}, per head: {heads}"]
        least, most = self.ranks()
        found = "exact" if self.exact else f"within {int((most - least).amax())}"
        above = int(self.bounds()[1].amax()) if self.length > 1 else 0
        lines.append(f"at {len(self.splits)} splits ({found}); between them no more than {above}")
        if self.state is not None:
            lines.append(f"the system's own state has {self.state}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        least, most = (x.tolist() for x in self.ranks())
        low, high = (x.tolist() for x in self.bounds())
        return {
            "tol": self.tol, "relative": self.relative, "splits": list(self.splits), "heads": self.per_head(),
            "least": least, "most": most, "bounds": {"least": low, "most": high}, "exact": self.exact,
            "state": self.state,
        }  # fmt: skip

    def plot(self) -> Any:
        """State needed over time, a line a head (the largest of the batch); a plotly Figure."""
        most = self.ranks()[1].amax(0).tolist()
        return lines(
            {f"head {h}": (self.splits, line) for h, line in enumerate(most)}, "tokens before the split",
            "state", f"State needed at {self.tol:.2g}", yaxis={"rangemode": "tozero"},
        )  # fmt: skip


@torch.no_grad()
def state_need(
    operator: System | Tensor, tol: float = 1e-2, *, relative: Literal["block", "operator"] = "operator",
    splits: Sequence[int] | int = 16, heads: Sequence[int] | int | None = None, limit: float = 2e9,
) -> StateNeed:  # fmt: skip
    """The smallest state that reproduces each head on this input to a relative error, at splits over time.

    Computed in float64. For readouts "linear" and "ridge" the singular values are exact to rounding, with memory linear
    in T; for softmax and given weights they are bounded from both sides, see `StateNeed.ranks`. For vector states
    the operator is that of `System.contributions`: column j scales the input k_j of this text, rows are outputs.

    Args:
        operator: a causal System, from a zero state; or effective attention [T,T], [H,T,T] or [B,H,T,T] (columns: T
            times the micro-steps).
        tol: the error allowed, in the Frobenius norm.
        relative: to the norm of the block H_t, or to that of the whole operator, diagonal included.
        splits: how many, spread evenly, or which ones, among 1..T-1.
        heads: heads wanted (default all; with an output map all heads count together).
        limit: bytes allowed for what is held at a time.

    Raises:
        StateformError: weights that are not causal, a bad tol or splits, or too much memory needed.
    """
    require(isinstance(tol, float | int) and 1e-10 <= tol < 1, f"tol is {tol!r}; expected a number from 1e-10 to 1")
    require(relative in ("block", "operator"), f'relative is {relative!r}; expected "block" or "operator"')
    if not isinstance(operator, System):
        return _of_rows(_GivenRows(operator, heads), tol, relative, splits, limit)
    require(operator.causal, "a state carries the past to the future; this system is not causal")
    system = operator if heads is None else operator.select_heads(heads)
    system = system.to(torch.float64)
    if system.readout.cached:
        return _of_rows(_SoftmaxRows(system, limit), tol, relative, splits, limit)
    return _of_factors(system, tol, relative, splits, limit)


def _spread(splits: Sequence[int] | int, T: int) -> list[int]:
    if isinstance(splits, int):
        require(splits >= 1, f"splits is {splits}; expected 1 or more, or which ones among 1..{T - 1}")
        return sorted({int(t) for t in torch.linspace(0, T, splits + 2)[1:-1].round()} & set(range(1, T)))
    chosen = sorted(set(indices(splits, T, "splits")))
    require(0 not in chosen, f"splits {chosen} hold 0, with no past; expected some among 1..{T - 1}")
    return chosen


def _check_size(size: float, limit: float, what: str) -> None:
    require(size <= limit, f"{what} would take {size / 1e9:.2g} GB; the limit is {limit / 1e9:.2g} GB: choose heads=, "
            "a shorter stretch system[start:stop], other splits, or limit=")  # fmt: skip


def _inner(E: Tensor) -> Tensor:
    """sum_{i>=t, j<t} E_ij of squares E [..., c, c], for t = 0..c-1."""
    before = F.pad(E, (1, 0))[..., :-1].cumsum(-1)
    return before.flip(-2).cumsum(-2).flip(-2).diagonal(dim1=-2, dim2=-1)


# -- any operator, a block of rows at a time ----------------------------------------------------------------------


class _GivenRows:
    """Rows of weights that are there."""

    def __init__(self, alpha: Tensor, heads: Sequence[int] | int | None) -> None:
        fits = isinstance(alpha, Tensor) and 2 <= alpha.ndim <= 4 and alpha.shape[-2] > 0
        given = list(alpha.shape) if isinstance(alpha, Tensor) else type(alpha).__name__
        require(fits and alpha.shape[-1] % alpha.shape[-2] == 0 and alpha.shape[-1] > 0,
                f"the operator is {given}; expected a System or weights [B,H,T,T] (T * micro columns)")  # fmt: skip
        alpha = alpha[(None,) * (4 - alpha.ndim)].to(torch.complex128 if alpha.is_complex() else torch.float64)
        if heads is not None:
            alpha = alpha[:, indices(heads, alpha.shape[1], "heads")]
        self.B, self.H, self.T, columns = alpha.shape
        self.alpha, self.writes = alpha, columns // self.T
        own = torch.arange(columns, device=alpha.device) // self.writes
        later = alpha.masked_fill(own <= torch.arange(self.T, device=alpha.device)[:, None], 0.0)
        require(
            bool((later == 0).all()), "the weights see the future (entries above the diagonal); expected causal ones"
        )
        require(bool(torch.isfinite(alpha).all()), "the weights hold NaN or inf; expected finite numbers")

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.alpha[:, :, start:stop]


class _SoftmaxRows:
    """Rows of an exp readout's weights, made as they are asked for."""

    def __init__(self, system: System, limit: float) -> None:
        self.system, self.limit, self.writes = system, limit, 1
        self.B, self.H, self.T = system.B, system.H, system.T

    def __call__(self, start: int, stop: int) -> Tensor:
        return self.system.coefficients(queries=range(start, stop), limit=self.limit)


def _of_rows(
    rows: _GivenRows | _SoftmaxRows, tol: float, relative: Literal["block", "operator"], splits: Sequence[int] | int,
    limit: float,
) -> StateNeed:  # fmt: skip
    B, H, T, r = rows.B, rows.H, rows.T, rows.writes
    require(B * T > 0, "an empty sequence needs no state")
    chosen = _spread(splits, T)
    stretches = list(pairwise([0, *chosen, T]))
    longest = max(stop - start for start, stop in stretches)
    _check_size(8.0 * B * H * T * r * 4 * longest, limit, f"blocks of {longest} rows and {T * r} columns")
    energy, total = _energies(rows, stretches)
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    kept: dict[tuple[int, int], Tensor] = {}
    lost: dict[tuple[int, int], Tensor] = {}
    for index, (start, stop) in reversed(list(enumerate(stretches))[1:]):
        block = rows(start, stop)[..., : start * r]
        near = energy[..., start - 1 : stop - 1] if relative == "block" else total.unsqueeze(-1)
        for b in range(B):
            for h in range(H):
                Z, gone = block[b, h], torch.zeros(start * r, dtype=torch.float64, device=block.device)
                if (b, h) in kept:
                    Z, gone = torch.cat([Z, kept[b, h][:, : start * r]]), lost[b, h][: start * r]
                least = float(near[b, h].amin()) or float(near[b, h, 0])
                sigma, kept[b, h], dropped = compress(Z, (FINE * tol) ** 2 * least / len(chosen))
                found[b, h, index - 1] = sigma, gone.sum()
                lost[b, h] = gone + dropped
    width = max((len(sigma) for sigma, _ in found.values()), default=0)
    return StateNeed(
        chosen,
        _table(B, H, len(chosen), lambda b, h, s: F.pad(found[b, h, s][0], (0, width - len(found[b, h, s][0])))),
        _table(B, H, len(chosen), lambda b, h, s: found[b, h, s][1]),
        energy, total, tol, relative, r, 1, None,
    )  # fmt: skip


def _energies(rows: _GivenRows | _SoftmaxRows, stretches: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """||H_t||_F^2 at t = 1..T-1 [B,H,T-1], and ||Phi||_F^2 [B,H], a block of rows at a time."""
    energy, seen, total = [], torch.zeros(()), torch.zeros(())
    for start, stop in reversed(stretches):
        squares = rows(start, stop).abs().square().unflatten(-1, (rows.T, rows.writes)).sum(-1)
        below = squares.flip(2).cumsum(2).flip(2) + seen  # of all rows from i on, for each token of the past
        t = torch.arange(start, stop, device=squares.device)[:, None]
        energy.append(torch.where(torch.arange(rows.T, device=squares.device) < t, below, 0.0).sum(-1))
        seen, total = below[:, :, :1], total + squares.sum((-2, -1))
    return torch.cat(energy[::-1], -1)[..., 1:], total


def _table(B: int, H: int, S: int, entry: Callable[[int, int, int], Tensor]) -> Tensor:
    if S == 0:
        return torch.zeros(B, H, 0, dtype=torch.float64)
    return torch.stack(
        [torch.stack([torch.stack([entry(b, h, s) for s in range(S)]) for h in range(H)]) for b in range(B)]
    )


def left_factors(Z: Tensor) -> tuple[Tensor, Tensor]:
    """The left singular vectors and the singular values of Z [..., m, N], as many as the smaller of m and N.

    With Z^H = Q R they are those of R^H, whatever N is.
    """
    W, sigma, _ = torch.linalg.svd(torch.linalg.qr(Z.mH, mode="r").R.mH, full_matrices=False)
    return W, sigma


def compress(Z: Tensor, allowed: float) -> tuple[Tensor, Tensor, Tensor]:
    """Z [m,N] by as few combinations of its rows as leave out no more than `allowed` of its squared Frobenius norm.

    Returns:
        All singular values of Z; W^H Z, whose rows are orthogonal; the squares left out, a sum for each column [N].
    """
    if allowed > 1e-10 * float(Z.abs().square().sum()):  # far above what the squares of Z Z^H lose to rounding
        squares, W = torch.linalg.eigh(Z @ Z.mH)
        sigma, W = squares.clamp_min(0).sqrt().flip(0), W.flip(1)
    else:
        W, sigma = left_factors(Z)
    tails = F.pad(sigma.square(), (0, 1)).flip(0).cumsum(0).flip(0)
    k = int((tails <= allowed).int().argmax())
    turned = W.mH @ Z
    return sigma, turned[:k], turned[k:].abs().square().sum(0)


# -- a finite state: thin factors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maps:
    """A stretch of c tokens as linear maps [B,H,...]: alpha [c,o,c*r] and read [c,o,n] to outputs, write [n,c*r] and
    carry [n,n] to the state behind it, from values and from the state before it.
    """

    alpha: Tensor
    read: Tensor
    write: Tensor
    carry: Tensor


def _of_factors(
    system: System, tol: float, relative: Literal["block", "operator"], splits: Sequence[int] | int, limit: float
) -> StateNeed:
    T, r = system.T, system.micro
    require(system.B * T > 0, "an empty sequence needs no state")
    chosen = _spread(splits, T)
    if system.log_b is not None and system.eta == "sum":
        system = stabilise(system)[0]
    if system.readout.gram:
        system = as_linear(system)
    stretches = list(pairwise([0, *chosen, T]))
    longest = max(stop - start for start, stop in stretches)
    numbers = (
        system.B * system.H * (2 * longest * r * (longest * r + 2 * system.n) * system.outputs + 4 * T * system.n * r)
    )
    _check_size(16.0 * numbers, limit, f"maps of {longest} tokens with {system.n} states")
    eta = normaliser(system)
    stretched = [_maps(system, start, stop, eta[:, start:stop]) for start, stop in stretches]
    n = stretched[0].carry.shape[-1]

    # Forward: C_t = L_t E_t. Backward: O_t = F_t M_t.
    before, L = [], stretched[0].carry.new_zeros(*stretched[0].carry.shape[:2], n, 0)
    for x in stretched:
        before.append(L)
        L = torch.linalg.qr(torch.cat([x.carry @ L, x.write], -1).mH, mode="r").R.mH
    after, M = [], stretched[0].carry.new_zeros(*stretched[0].carry.shape[:2], 0, n)
    for x in reversed(stretched):
        after.append(M)
        M = torch.linalg.qr(torch.cat([x.read.flatten(2, 3), M @ x.carry], -2), mode="r").R
    after.reverse()

    values, energy, total = [], [], torch.zeros(())
    for x, L, M in zip(stretched, before, after):
        inner = x.alpha.abs().square().sum(3).unflatten(-1, (-1, r)).sum(-1)
        reads = (x.read @ L.unsqueeze(2)).abs().square().sum((-2, -1))
        writes = (M @ x.write).abs().square().sum(-2).unflatten(-1, (-1, r)).sum(-1)
        through = M @ x.carry @ L
        later = reads.flip(-1).cumsum(-1).flip(-1)
        sooner = F.pad(writes, (1, 0))[..., :-1].cumsum(-1)
        energy.append(through.abs().square().sum((-2, -1)).unsqueeze(-1) + later + sooner + _inner(inner))
        total = total + inner.sum((-2, -1)) + reads.sum(-1)
    for L, M in zip(before[1:], after[:-1]):
        sigma = torch.linalg.svdvals(M @ L)
        values.append(F.pad(sigma, (0, n - sigma.shape[-1])))
    found = torch.stack(values, 2) if values else torch.zeros(*total.shape, 0, n, dtype=torch.float64)
    outputs = stretched[0].read.shape[3]
    return StateNeed(chosen, found, torch.zeros_like(found[..., 0]), torch.cat(energy, -1)[..., 1:], total, tol,
                     relative, r, outputs, n)  # fmt: skip


def _maps(system: System, start: int, stop: int, eta: Tensor) -> _Maps:
    """The stretch, run on unit values and unit states in the form chunkwise (recurrent where that does not exist)."""
    part, r, c = system[start:stop], system.micro, stop - start
    core = fold(part)
    form = next(form for name in ("chunkwise", "recurrent") if (form := FORMS[name]).refuses(part) is None)
    units = torch.eye(c * r, c * r + core.n, dtype=torch.float64, device=core.k.device)
    states = core.zero_state()[..., :1].expand(*[-1] * 4, c * r + core.n).clone()
    states[..., c * r :] = torch.eye(core.n, dtype=states.dtype, device=states.device)
    y, end = form.compute(replace(core, v=units[None, :, None, None], real=False), states)
    at = slice(0, None, r) if part.exclusive else slice(r - 1, None, r)
    y = y[:, at].expand(-1, -1, *core.heads, -1, -1).flatten(2, 3).transpose(1, 2)  # [B,H,c,o,c*r+n]
    end = end.expand(-1, *core.heads, -1, -1).flatten(1, 2)
    (alpha, read), (write, carry) = (x.split([c * r, core.n], -1) for x in (y, end))
    b = spread_heads(part.gate("log_b").exp() if part.log_b is not None else part.gate("b", 1.0), part.H)
    b = b.transpose(1, 2).unsqueeze(2)  # [B|1,H|1,1,c*r|1]
    alpha, write = alpha * b.unsqueeze(2), write * b
    if part.d is not None:
        own = torch.arange(c, device=b.device) * r + (0 if part.exclusive else r - 1)
        direct = spread_heads(part.gate("d"), part.H).transpose(1, 2)[..., None, None]
        alpha = alpha + F.one_hot(own, c * r).unsqueeze(1) * direct
    return _seen(part, _Maps(alpha / eta_of(eta), read / eta_of(eta), write, carry))


def eta_of(eta: Tensor) -> Tensor:
    """eta [B,c,H] under rows [B,H,c,o,...]."""
    return eta.transpose(1, 2)[..., None, None]


def _seen(system: System, x: _Maps) -> _Maps:
    """What is seen of a stretch: all heads through the output map; real parts, the state as real and imaginary part."""
    if system.w_out is not None:
        w_out = system.w_out.to(torch.complex128 if x.read.is_complex() else system.w_out.dtype)
        carry = torch.stack([torch.block_diag(*row) for row in x.carry]).unsqueeze(1)
        alpha = torch.einsum("bhinj,ohn->bioj", x.alpha.to(w_out.dtype), w_out).unsqueeze(1)
        read = torch.einsum("bhinm,ohn->biohm", x.read.to(w_out.dtype), w_out).flatten(-2).unsqueeze(1)
        x = _Maps(alpha, read, x.write.flatten(1, 2).unsqueeze(1), carry)
    values = has_weights(system) and system.v is not None and system.v.is_complex()
    real = (system.q is not None or system.w_out is not None) and not values
    if not real or not any(y.is_complex() for y in (x.read, x.write, x.carry)):
        return x
    return _Maps(x.alpha.real if x.alpha.is_complex() else x.alpha, *as_real(x.read, x.write, x.carry))


def as_real(read: Tensor, write: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The real part of what a complex state gives, by the state [Re; Im]: read [..,n], write [n,..], carry [n,n]."""
    read, write, carry = (x.to(torch.complex128) for x in (read, write, carry))
    turn = torch.cat([torch.cat([carry.real, -carry.imag], -1), torch.cat([carry.imag, carry.real], -1)], -2)
    return torch.cat([read.real, -read.imag], -1), torch.cat([write.real, write.imag], -2), turn
