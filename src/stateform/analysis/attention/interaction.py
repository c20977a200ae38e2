"""Interaction rank: how many heads of attention a layer's operators are worth.

A layer adds to y_i the operators W_ij u_j of all tokens j. A head of factorised attention has scalar weights and one
value matrix, W_ij = w(i,j) V: H heads span at most H dimensions. So a layer whose operators span k dimensions needs k
heads at least, and a linear time-invariant system (W_ij = C A^{i-j} B) on T tokens exactly
k = dim span{C A^t B, t < T}.
Source: How Many Heads Make an SSM? (arXiv 2512.15115: interaction rank, its gap, and the head-count theorem).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...system import System
from .coefficients import has_weights

GAP = 1e-3
"""A singular value below this share of the one before it is told from it."""


@dataclass(frozen=True)
class Interaction:
    """The dimensions that the operators W_ij of a layer span on an input."""

    singular_values: Tensor
    """Of the operators side by side, largest first: how clearly `rank` is the rank."""
    rank: int
    exact: bool
    """A time-invariant system: `rank` heads are also enough, on this length."""
    premises: str
    """What is taken for granted, and what of the theorem does not apply."""

    @property
    def text(self) -> str:
        """The rank, and how many heads it asks for, as a sentence."""
        enough = "necessary and sufficient" if self.exact else "necessary"
        return f"operators span {self.rank} dimensions: {self.rank} heads of attention are {enough}"

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"rank": self.rank, "exact": self.exact, "singular_values": self.singular_values.tolist(),
                "premises": self.premises}  # fmt: skip

    def __str__(self) -> str:
        rest = self.singular_values[self.rank :].tolist()
        gap = (
            f"; the next singular value is {rest[0] / float(self.singular_values[0]):.1g} of the largest"
            if rest
            else ""
        )
        return f"{self.text}{gap}\n{self.premises}"


@torch.no_grad()
def interaction_rank(
    system: System, *, maps: Tensor | None = None, queries: Sequence[int] | None = None, rtol: float | None = None
) -> Interaction:
    """Compute dim span{W_ij}, W_ij = sum_h alpha^h_ij M_h with M_h = W_O^h W_V^h, over pairs of tokens of an input.

    Args:
        system: with scalar weights, or a vector state with its map `w_in` (then W_ij = C A_i ... A_{j+1} w_in).
        maps: M [H,o,i], complex if the values are; default: linearly independent ones (as those of distinct channels
            are), the most there can be, complex values with their real and imaginary parts independent too.
        queries: the tokens i that are looked at, with all j before them (default: up to 16, the last one among them; a
            time-invariant system has all its lags in the last row).
        rtol: singular values below this share of the largest count as 0 (default: rounding).

    Raises:
        StateformError: a vector state without w_in, or maps that do not fit.
    """
    T = system.T
    require(T > 0, "an empty sequence has no operators")
    constant = system.time_invariant or (system.v is None and all(
        system.is_constant(x) for x in system.tensors() if x != "k") and system.readout.linear)  # fmt: skip
    if queries is None:
        queries = [T - 1] if constant else sorted({int(t) for t in torch.linspace(0, T - 1, 16)})
    W = _weighted(system, queries, maps) if has_weights(system) else _driven(system, queries)
    W = torch.cat([W.real, W.imag], -1) if W.is_complex() else W  # what is real comes in, so these are two dimensions
    s = torch.linalg.svdvals(W.double())
    least = max(W.shape) * torch.finfo(W.dtype).eps if rtol is None else rtol
    rank = int((s > least * s[0]).sum()) if len(s) and float(s[0]) > 0 else 0
    premises = "value maps of the heads that are linearly independent" if maps is None and has_weights(system) else ""
    if not constant:
        seen = "the pairs of this input; that so many heads suffice is for constant systems"
        premises = f"{premises}; {seen}" if premises else seen
    premises = premises or "a constant system, as the head-count theorem requires"
    if 0 < rank < len(s) and float(s[rank]) > GAP * float(s[rank - 1]):
        premises += f"; singular values fall without a gap: those above {least:.1g} of the largest are counted"
    return Interaction(s, rank, constant, premises)


def _weighted(system: System, queries: Sequence[int], maps: Tensor | None) -> Tensor:
    """Compute the operators of scalar weights in the coordinates of the maps M_h (or themselves), [pairs,H|o*i]."""
    alpha = system.coefficients(queries=queries).movedim(1, -1).flatten(0, -2)  # rows of later tokens are 0: no harm
    if maps is None:
        return alpha
    require(maps.ndim == 3 and maps.shape[0] == system.H, f"maps is {list(maps.shape)}; expected [{system.H},o,i]")
    maps = maps.to(torch.promote_types(maps.dtype, alpha.dtype)).flatten(1)
    W = alpha.to(maps.dtype) @ maps
    return W.real if W.is_complex() else W  # the layer gives the real part


def _driven(system: System, queries: Sequence[int]) -> Tensor:
    """Compute the operators of a vector state, one column of w_in after the other as the input, [pairs,o*i]."""
    require(
        system.v is None and system.w_in is not None,
        "the operators of a vector state need its map w_in (as an LRU or S5 has it): without it, what u_j adds is not "
        "known",
    )
    assert system.w_in is not None
    columns = []
    for w in system.w_in.unbind(-1):  # [H,n]
        driven = replace(system, k=w.expand(system.B, system.T * system.micro, *w.shape), w_in=None, d=None)
        columns.append(driven.contributions(queries=queries).movedim(1, -2).flatten(-2).flatten(0, 2))
    return torch.stack(columns, -1).flatten(1)
