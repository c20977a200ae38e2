"""How far back a system looks on real input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import require
from ..system import System
from .coefficients import influence


@dataclass(frozen=True)
class Horizon:
    """Memory horizon: the least number of tokens back that hold a given share of the coefficient mass."""

    tokens: Tensor
    """[B,H,queries]: 1 means the token itself; i + 1 means everything up to the first token."""
    queries: list[int]
    share: float

    def per_head(self) -> list[float]:
        """Median over batch and queries, per head."""
        return [float(x) for x in self.tensor_per_head()]

    def tensor_per_head(self) -> Tensor:
        """`per_head` as a tensor [H]."""
        return self.tokens.double().transpose(0, 1).flatten(1).quantile(0.5, dim=1)

    def quantile(self, q: float) -> float:
        """Over batch, heads and queries."""
        return float(self.tokens.double().flatten().quantile(q))

    def by_position(self) -> list[float]:
        """Median over batch and heads at each query."""
        return [float(x) for x in self.tokens.double().flatten(0, 1).quantile(0.5, dim=0)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "heads": self.per_head(),
            "quantiles": {str(q): self.quantile(q) for q in (0.1, 0.5, 0.9)},
            "by_position": {"t": list(self.queries), "median": self.by_position()},
            "share": self.share,
        }


@torch.no_grad()
def horizon(
    system: System, *, share: float = 0.95, queries: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Horizon:
    """Tokens back that hold `share` of sum_j |alpha_ij|, for each head and query.

    Exact: the coefficients are those of the system itself, the erasing of the delta rule included.

    Args:
        system: any causal system, from a zero state.
        share: of the mass, between 0 and 1.
        queries: tokens i (default: up to 32 spread over the second half).
        heads: heads wanted (default all).
    """
    require(0 < share <= 1, f"share is {share}; expected a number above 0, at most 1")
    require(system.causal, "a memory horizon needs a causal system")
    T = system.T
    require(T > 0, "an empty sequence has no memory")
    index = list(queries) if queries is not None else sorted({int(t) for t in torch.linspace(T // 2, T - 1, 32)})
    mass = influence(system, heads=heads, queries=index).abs().double()
    # From the query's own token backwards: reach[d] is the mass of the last d + 1 tokens.
    distance = torch.tensor(index, device=mass.device)[:, None] - torch.arange(T, device=mass.device)
    mass = mass.masked_fill(distance < 0, 0.0)
    back = mass.flip(-1).cumsum(-1).flip(-1)  # back[j]: mass of j and everything after it
    enough = back >= share * back[..., :1] * (1 - 1e-12)
    oldest = torch.where(enough, torch.arange(T, device=mass.device), 0).amax(-1)
    return Horizon(torch.tensor(index, device=mass.device) - oldest + 1, index, share)
