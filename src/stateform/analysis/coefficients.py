"""The effective attention of any system, as one number per query and key."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..system import System


def has_weights(system: System) -> bool:
    """Whether the coefficients are scalar weights of values (else they are norms of vector contributions)."""
    return system.v is not None and system.q is not None and system.q.ndim in (2, 4)


def influence(system: System, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None) -> Tensor:
    """How much token j counts in the output at i, [B,H,queries,T].

    The weights alpha_ij themselves (signed) where values are weighted by scalars; for vector states the norm of the
    contribution. Micro-steps of one token are added up.

    Args:
        system: any system, from a zero state.
        heads: the heads wanted (default all; with an output map all heads count together).
        queries: the tokens i wanted (default all).

    Raises:
        StateformError: if the result would be too large (see System.coefficients).
    """
    if has_weights(system):
        alpha = system.coefficients(heads=heads, queries=queries)
    else:
        alpha = system.contributions(heads=heads, queries=queries).norm(dim=-1)
    return alpha if system.micro == 1 else alpha.unflatten(-1, (system.T, system.micro)).sum(-1)
