"""The structured transitions A_t of a linear time-varying system, and their algebra.

Each class holds a batch of n x n matrices in its own few numbers and knows its action on a state, its product with
another transition, its dense form and its eigenvalues:

    Identity            A = I
    Diagonal            A = diag(unit * exp(log)), unit = sign * exp(i phase); a trailing width of 1 is a scalar
    Dense               A = matrix
    Feedback            A = base + f w^T   (open-loop decay + rank-1 state feedback: the delta rule and its family)

Magnitudes stay in log space so that products over a stretch of time are sums of log decays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Elements = tuple[Tensor, ...]


class Transition:
    """A batch of matrices A [..., n, n]. The four methods below are all that a structure has to know."""

    def apply(self, S: Tensor) -> Tensor:
        """Compute A S, for S [..., n, p]."""
        raise NotImplementedError

    def dense(self, n: int) -> Tensor:
        """Write out the matrices, [..., n, n]."""
        raise NotImplementedError

    def after(self, other: Transition, n: int) -> Transition:
        """Compute the product self @ other: first `other`, then `self`."""
        return Dense(_product(self.dense(n), other.dense(n)))

    def transpose(self) -> Transition:
        """Compute the plain transpose (no conjugation)."""
        return self

    def spectrum(self, n: int) -> Tensor:
        """Compute the eigenvalues [..., n], complex."""
        return torch.linalg.eigvals(self.dense(n))


@dataclass(frozen=True)
class Identity(Transition):
    """A = I."""

    like: Tensor
    """Any tensor [..., 1] that fixes batch shape, dtype and device."""

    def apply(self, S: Tensor) -> Tensor:
        return S

    def dense(self, n: int) -> Tensor:
        eye = torch.eye(n, dtype=self.like.dtype, device=self.like.device)
        return eye.expand(*self.like.shape[:-1], n, n)

    def after(self, other: Transition, n: int) -> Transition:
        return other

    def spectrum(self, n: int) -> Tensor:
        return torch.ones_like(self.like).expand(*self.like.shape[:-1], n) + 0j


@dataclass(frozen=True)
class Diagonal(Transition):
    """A = diag(unit * exp(log)); log, unit [..., n] or [..., 1] (scalar), either may be None."""

    log: Tensor | None = None
    unit: Tensor | None = None

    @property
    def factor(self) -> Tensor:
        """Return the diagonal itself, [..., n] or [..., 1]."""
        if self.log is None:
            assert self.unit is not None
            return self.unit
        a = self.log.exp()
        return a if self.unit is None else a * self.unit

    def apply(self, S: Tensor) -> Tensor:
        return self.factor.unsqueeze(-1) * S

    def dense(self, n: int) -> Tensor:
        a = self.factor
        return torch.diag_embed(a.expand(*a.shape[:-1], n))

    def after(self, other: Transition, n: int) -> Transition:
        match other:
            case Identity():
                return self
            case Diagonal():
                return Diagonal(_plus(self.log, other.log), _times(self.unit, other.unit))
            case Dense():
                return Dense(self.apply(other.matrix))
            case Feedback():
                base, f = self.after(other.base, n), self.factor * other.f
                return Feedback(base, f, other.w)
        return super().after(other, n)

    def spectrum(self, n: int) -> Tensor:
        a = self.factor
        return a.expand(*a.shape[:-1], n) + 0j


@dataclass(frozen=True)
class Dense(Transition):
    """A = matrix [..., n, n]."""

    matrix: Tensor

    def apply(self, S: Tensor) -> Tensor:
        return _product(self.matrix, S)

    def dense(self, n: int) -> Tensor:
        return self.matrix

    def after(self, other: Transition, n: int) -> Transition:
        if isinstance(other, Identity):
            return self
        if isinstance(other, Diagonal):
            return Dense(self.matrix * other.factor.unsqueeze(-2))
        return super().after(other, n)

    def transpose(self) -> Transition:
        return Dense(self.matrix.mT)


@dataclass(frozen=True)
class Feedback(Transition):
    """A = base + f w^T; f, w [..., n]; w^T is a plain transpose."""

    base: Transition
    f: Tensor
    w: Tensor

    def apply(self, S: Tensor) -> Tensor:
        z = (self.w.unsqueeze(-1) * S).sum(-2, keepdim=True)
        return self.base.apply(S) + self.f.unsqueeze(-1) * z

    def dense(self, n: int) -> Tensor:
        return self.base.dense(n) + self.f.unsqueeze(-1) * self.w.unsqueeze(-2)

    def after(self, other: Transition, n: int) -> Transition:
        if isinstance(other, Identity):
            return self
        if isinstance(other, Diagonal):
            return Feedback(self.base.after(other, n), self.f, self.w * other.factor)
        return super().after(other, n)

    def transpose(self) -> Transition:
        return Feedback(self.base.transpose(), self.w, self.f)

    def spectrum(self, n: int) -> Tensor:
        base = self.base
        scalar = isinstance(base, Identity) or (isinstance(base, Diagonal) and base.factor.shape[-1] == 1)
        if not scalar:
            return super().spectrum(n)
        # a I + f w^T has the eigenvalue a on the complement of w, and a + w^T f along f.
        a = base.spectrum(1)
        along = a + (self.w * self.f).sum(-1, keepdim=True)
        return torch.cat([a.expand(*along.shape[:-1], n - 1), along], -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype) @ b.to(dtype)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b


def associative_scan(op: Callable[[Elements, Elements], Elements], xs: Elements, dim: int = 1) -> Elements:
    """Compute all prefixes x_1 * x_2 * ... * x_t of an associative product, in O(T) work and O(log T) depth.

    Args:
        op: `op(earlier, later)`, associative, elementwise along `dim`.
        xs: tensors of one length along `dim`.
        dim: the time axis.

    Returns:
        Tensors of the shapes of `xs`.
    """
    length = xs[0].shape[dim]
    if length < 2:
        return xs
    even = tuple(x.unflatten(dim, (-1, 2)).select(dim + 1, 0) for x in _trim(xs, dim))
    odd = tuple(x.unflatten(dim, (-1, 2)).select(dim + 1, 1) for x in _trim(xs, dim))
    at_odd = associative_scan(op, op(even, odd), dim)
    half = length // 2
    rest = tuple(
        torch.cat([e.narrow(dim, 1, half - 1), x.narrow(dim, length - 1, length % 2)], dim)
        for e, x in zip(even, xs, strict=True)
    )
    before = tuple(a.narrow(dim, 0, rest[0].shape[dim]) for a in at_odd)
    at_even = op(before, rest)
    out = []
    for x, o, e in zip(xs, at_odd, at_even, strict=True):
        e = torch.cat([x.narrow(dim, 0, 1), e], dim)
        woven = torch.stack([e.narrow(dim, 0, half), o], dim + 1).flatten(dim, dim + 1)
        out.append(torch.cat([woven, e.narrow(dim, half, length % 2)], dim) if length % 2 else woven)
    return tuple(out)


def _trim(xs: Elements, dim: int) -> Elements:
    """Drop the last entry of an odd length."""
    length = xs[0].shape[dim]
    return tuple(x.narrow(dim, 0, length - length % 2) for x in xs)


def eigenbasis(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute eigenvalues [..., n], eigenvectors V [..., n, n] and their condition ||V|| ||V^-1|| [...], A = V diag(.)
    V^-1.

    In complex128. A matrix without a basis of eigenvectors shows by its condition: infinite, or what rounding makes of
    that, 1e8 or more.
    """
    values, V = torch.linalg.eig(A.to(torch.complex128))
    sizes = torch.linalg.svdvals(V)
    return values, V, sizes[..., 0] / sizes[..., -1]
