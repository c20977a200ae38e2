"""The control engineer's view of a time-invariant system, under the names of python-control.

Every function takes a System or a StateSpace (see statespace.py for x, A, B, C, D, and which heads are one system).
Source: any book on linear systems, e.g. Zhou, Doyle and Glover, Robust and Optimal Control (1996).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import schur
from torch import Tensor

from ...errors import StateformError, require
from ...system import System
from ...system.precision import tolerance
from .gramian import factor, gram, poles
from .separate import separated
from .statespace import StateSpace, written

FADING = 1 - 1e-6
"""Poles below this are far enough from the unit circle for sums over all time to keep their digits."""


@torch.no_grad()
def ctrb(system: System | StateSpace) -> Tensor:
    """Compute the controllability matrix [B, A B, ..., A^{N-1} B], [H,N,N i]; for its rank take `minimal` or `hautus`.

    Its columns grow and fade with the poles, so that a rank counted by its singular values is lost to rounding.
    """
    s = written(system)
    return _krylov(s.A, s.B)


@torch.no_grad()
def obsv(system: System | StateSpace) -> Tensor:
    """Compute the observability matrix [C; C A; ...; C A^{N-1}], [H,N o,N]; for its rank as for that of `ctrb`."""
    s = written(system)
    return _krylov(s.A.mT, s.C.mT).mT


def _krylov(A: Tensor, B: Tensor) -> Tensor:
    blocks, N = B, A.shape[-1]
    while blocks.shape[-1] < N * B.shape[-1]:  # m blocks, then 2 m
        blocks, A = torch.cat([blocks, A @ blocks], -1), A @ A
    return blocks[..., : N * B.shape[-1]]


# -- Hankel singular values ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hankel:
    """Hankel singular values: how much of what went in is still seen in what comes out, state by state."""

    values: Tensor
    """[H,N], the largest first."""
    horizon: int | None = None

    def order(self, tol: float = 1e-12) -> list[int]:
        """Count, for each head, the values above `tol` times its largest: states enough for all but so little.

        Where poles lie on or outside the unit circle, or nearly, rounding alone may exceed it: see `minimal`.
        """
        return [int(x) for x in (self.values > tol * self.values[:, :1]).sum(-1)]

    def bound(self, order: int) -> Tensor:
        """Compute 2 sum_{k > order} sigma_k [H], the error of balanced truncation to `order` states."""
        return 2 * self.values[:, order:].sum(-1)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"values": self.values.tolist(), "order": self.order(), "horizon": self.horizon}

    def __str__(self) -> str:
        N, order = self.values.shape[1], self.order()
        few = self.order(1e-3)
        span = "" if self.horizon is None else f" over {self.horizon} steps"
        return (
            f"Hankel singular values{span} of {_count(len(order), 'head')} with {N} states: the largest "
            f"{float(self.values.max()):.4g}; {_range(order)} above 1e-12 of it, {_range(few)} above a thousandth"
        )


@torch.no_grad()
def hsvd(system: System | StateSpace, horizon: int | None = None) -> Hankel:
    """Compute the Hankel singular values, sqrt(eig(P Q)), by the square-root method: singular values of F_Q^T F_P.

    They are the singular values of the map from past inputs, through the state, to the outputs read from it: those of
    the Hankel matrix of C A^{i+j} B. An inclusive read is z times the transfer function of (A, B, C), which has these.

    Args:
        system: time-invariant.
        horizon: steps of past and of future (default: all, which needs |poles| < 1).
    """
    s = written(system)
    product = gram(s, "of", horizon).mT @ gram(s, "cf", horizon)
    values = torch.linalg.svdvals(product)
    rest = s.N - values.shape[-1]  # a factor of few terms has fewer than N columns
    return Hankel(torch.nn.functional.pad(values, (0, max(0, rest))), horizon)


# -- controllability, observability ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Minimal:
    """The order of a minimal realisation: states that inputs reach and outputs show."""

    orders: list[int]
    """For each head."""
    states: int
    """N"""
    values: Tensor
    """Singular values of the Hankel matrices [H,N] by which it was decided, the largest first."""
    tol: float

    @property
    def minimal(self) -> bool:
        """True if no head has a state to spare."""
        return min(self.orders) == self.states

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"orders": self.orders, "states": self.states, "minimal": self.minimal, "tol": self.tol}

    def __str__(self) -> str:
        words = "minimal" if self.minimal else "not minimal"
        return f"{words}: {_range(self.orders)} of {self.states} states are reached and seen (above {self.tol:g})"


@torch.no_grad()
def minimal(system: System | StateSpace, tol: float = 1e-12) -> Minimal:
    """Find the order of a minimal realisation: the rank of the Hankel matrix C A^{i+j} B (Ho and Kalman, 1966).

    The rank is that of every group of poles alone (see separate.py), added up: so a mode that grows and is not reached
    does not hide one that is. A group is moved and slowed, A to (A - mean of its poles) / pace, which leaves its order
    as it is and lets every power of it fade. What rounding alone may leave counts as 0.

    Args:
        system: time-invariant, growing or not.
        tol: a singular value counts above this share of the largest of its head. A state that is nearly unreachable
            is not told from one that is: numerically the order is a matter of this number.
    """
    s = written(system)
    values = torch.stack([_values_of_groups(*head).to(s.A) for head in zip(s.A, s.B, s.C, strict=True)])
    return Minimal(Hankel(values).order(tol), s.N, values, tol)


def _values_of_groups(A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute the Hankel values of each group of poles, [N], the largest first; 0 where they may be rounding alone."""
    groups = separated(A)
    least = 0.1 * (_pace(A) or _norm(A) or 1.0)
    if len(groups) == 1 and _pace(_centred(A)) > least and float(torch.linalg.eigvals(A).abs().max()) < FADING:
        # poles far apart that cannot be parted, as of S4: their directions are nearly the same
        with contextlib.suppress(StateformError):
            return hsvd(StateSpace(A[None], B[None], C[None], C.new_zeros(1, len(C), B.shape[1]))).values[0]
    found = []
    A, B, C = (x.cpu() + 0j for x in (A, B, C))
    for left, right in groups:
        a, b, c = _centred(left @ A @ right), left @ B, C @ right
        # b is off by roundings of left and B, read is off by those of C
        off = _norm(left) * _norm(B), _norm(C)
        pace = max(1.05 * _pace(a), least)
        found.append(max((_above_rounding(a / x, b, c, off, len(A)) for x in {pace, max(1.05 * _norm(a), least)}),
                         key=lambda values: int((values > 0).sum())))  # fmt: skip
    return torch.cat(found).sort(descending=True).values


def _above_rounding(A: Tensor, B: Tensor, C: Tensor, sizes: tuple[float, float], N: int) -> Tensor:
    """Keep the Hankel values of a group that can be told from what roundings leave, 0 for the others."""
    F_P, F_Q = factor(A[None], B[None])[0], factor(A.mH[None], C.mH[None])[0]
    values = torch.linalg.svdvals(F_Q.mH @ F_P)
    carried = _norm(factor(A[None], torch.eye(len(A), dtype=A.dtype)[None])[0])  # what enters any state, in all time
    noise = tolerance(torch.float64, N) * carried * max(_norm(F_P), sizes[0]) * max(_norm(F_Q), sizes[1])
    return torch.nn.functional.pad(values * (values > noise), (0, len(A) - len(values)))


def _norm(A: Tensor) -> float:
    return float(torch.linalg.matrix_norm(A, 2))


def _centred(A: Tensor) -> Tensor:
    """Subtract from A the mean of its poles."""
    return A - A.trace() / len(A) * torch.eye(len(A), dtype=A.dtype, device=A.device)


def _pace(A: Tensor) -> float:
    """Compute ||A^16||^{1/16}: the factor of a step, over many steps; hardly more than the largest |pole|."""
    return _norm(torch.linalg.matrix_power(A, 16)) ** (1 / 16)


@dataclass(frozen=True, eq=False)
class Hautus:
    """The Hautus (PBH) test of each pole: its mode is reached if [A - lambda, B] has full rank, and seen with C."""

    poles: Tensor
    """lambda [H,N], the largest modulus first."""
    reached: Tensor
    """The least singular value of [A - lambda, B] over ||[A, B]||, [H,N]: a distance to uncontrollability."""
    seen: Tensor
    """The same of [A - lambda; C]."""
    tol: float

    @property
    def controllable(self) -> bool:
        """Every mode is reached from the input."""
        return bool((self.reached > self.tol).all())

    @property
    def observable(self) -> bool:
        """Every mode is seen in the output."""
        return bool((self.seen > self.tol).all())

    @property
    def stabilisable(self) -> bool:
        """Every mode that does not decay is reached."""
        return bool(((self.reached > self.tol) | (self.poles.abs() < 1)).all())

    @property
    def detectable(self) -> bool:
        """Every mode that does not decay is seen."""
        return bool(((self.seen > self.tol) | (self.poles.abs() < 1)).all())

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "controllable": self.controllable, "observable": self.observable, "stabilisable": self.stabilisable,
            "detectable": self.detectable, "reached": self.reached.tolist(), "seen": self.seen.tolist(),
            "tol": self.tol,
        }  # fmt: skip

    def __str__(self) -> str:
        words = [name for name in ("controllable", "observable", "stabilisable", "detectable") if getattr(self, name)]
        return (
            f"{', '.join(words) or 'neither stabilisable nor detectable'}; least distances: "
            f"{float(self.reached.min()):.2g} (reached), {float(self.seen.min()):.2g} (seen), tolerance {self.tol:g}"
        )


@torch.no_grad()
def hautus(system: System | StateSpace, tol: float = 1e-9, limit: float = 1e9) -> Hautus:
    """Run the Hautus test: (A, B) is controllable if [A - lambda, B] has rank N at every pole lambda, and so on.

    Poles are found to rounding; those of a defective A only to a root of it, which hides an unreached mode.

    Args:
        system: time-invariant.
        tol: the distance, relative to ||[A, B]||, below which a mode counts as not reached or not seen.
        limit: bytes allowed for the matrices of one head.
    """
    s, values = written(system), poles(system)
    size = 16 * s.N**2 * (s.N + max(s.B.shape[-1], s.C.shape[-2]))
    require(size <= limit, f"the Hautus matrices of {s.N} poles would take {size / 1e9:.2g} GB, the limit is "
            f"{limit / 1e9:.2g} GB; give limit=, or use minimal(), which needs none")  # fmt: skip

    def least(A: Tensor, B: Tensor) -> Tensor:
        rows = []
        for a, b, z in zip(A, B, values, strict=True):
            eye = torch.eye(s.N, dtype=z.dtype, device=z.device)
            pencil = torch.cat([a - z[:, None, None] * eye, b.to(z.dtype).expand(len(z), *b.shape)], -1)
            scale = torch.linalg.matrix_norm(torch.cat([a, b], -1), 2)
            rows.append(torch.linalg.svdvals(pencil)[:, -1] / scale)
        return torch.stack(rows)

    return Hautus(values, least(s.A, s.B), least(s.A.mT, s.C.mT), tol)


# -- frequency response -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Response:
    """The transfer function on the unit circle."""

    omega: Tensor
    """Radians a token, [K]; or [H,K], where each head has frequencies of its own."""
    G: Tensor
    """G(exp(i omega)) [H,K,o,i], complex."""

    @property
    def gain(self) -> Tensor:
        """The largest singular value of G at each frequency, [H,K]: how much a wave of it is amplified."""
        return torch.linalg.matrix_norm(self.G, 2)

    @property
    def peak(self) -> Tensor:
        """The largest gain on the grid, [H]: the H-infinity norm from below."""
        return self.gain.amax(-1)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"omega": self.omega.tolist(), "gain": self.gain.tolist(), "peak": self.peak.tolist()}

    def __str__(self) -> str:
        head = int(self.peak.argmax())
        at = float(self.omega.expand(self.gain.shape)[head, self.gain[head].argmax()])
        return (
            f"frequency response at {_count(self.omega.shape[-1], 'frequency', 'frequencies')}: largest gain "
            f"{float(self.peak[head]):.4g} at {at:.4g} radians a token (head {head})"
        )


@torch.no_grad()
def freqresp(system: System | StateSpace, omega: Tensor | Sequence[float] | None = None) -> Response:
    """Compute G(z) = C (z - A)^{-1} B + D (an inclusive read: z C (z - A)^{-1} B + D) at z = exp(i omega).

    A is brought to triangular form once (Schur), after which a frequency costs N^2. Heads are looked at one by one, so
    that twice as many take twice as long.

    Args:
        system: time-invariant.
        omega: radians a token, [K] for all heads or [H,K] for each; default: for each head `own_frequencies`, with the
            angles of its own poles.

    Raises:
        StateformError: a pole at one of the frequencies.
    """
    s = written(system)
    grid = own_frequencies(s) if omega is None else torch.as_tensor(omega).double()
    grid = grid if grid.ndim == 2 else grid.reshape(-1)
    require(
        grid.numel() > 0 and bool(grid.isfinite().all()), "omega is expected to hold one or more finite frequencies"
    )
    require(grid.ndim == 1 or len(grid) == s.H, f"omega has shape {list(grid.shape)}; expected [K], or [{s.H},K] for "
            "each head")  # fmt: skip
    every = torch.polar(torch.ones_like(grid), grid).cpu().expand(s.H, -1)
    tile, found = max(1, 2**22 // s.N**2), []
    for A, B, C, D, z in zip(s.A, s.B, s.C, s.D, every, strict=True):
        T, U = (torch.as_tensor(x) for x in schur(A.numpy(force=True), output="complex"))
        left, right = C.cpu().to(U.dtype) @ U, U.mH @ B.cpu().to(U.dtype)
        rows = []
        for at in z.split(tile):
            M = at[:, None, None] * torch.eye(s.N, dtype=z.dtype) - T
            require(bool((M.diagonal(dim1=-2, dim2=-1) != 0).all()), "a pole lies at one of the frequencies of omega")
            G = left @ torch.linalg.solve_triangular(M, right.expand(len(at), *right.shape), upper=True)
            rows.append((G if s.exclusive else at[:, None, None] * G) + D.cpu())
        found.append(torch.cat(rows))
    return Response(grid, torch.stack(found))


def frequencies(system: System | StateSpace, count: int = 256) -> Tensor:
    """Choose frequencies in [0, pi] for all heads, [K]: those of `own_frequencies` together."""
    return own_frequencies(system, count).unique()


def own_frequencies(system: System | StateSpace, count: int = 256) -> Tensor:
    """Choose frequencies in [0, pi] for each head, [H,K]: evenly spaced, on a log scale too, and its poles' angles.

    A lightly damped system has the peaks of its gain near the angles of its poles.
    """
    even = torch.linspace(0, torch.pi, count, dtype=torch.float64)
    logarithmic = torch.logspace(-5, 0, count, dtype=torch.float64) * torch.pi
    angles = poles(system).angle().abs().cpu()
    return torch.cat([torch.cat([even, logarithmic]).expand(len(angles), -1), angles], -1).sort(-1).values


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"
