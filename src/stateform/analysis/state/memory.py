"""How far back a system looks on real input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...system import System
from ..attention.coefficients import influence, tokens_back


@dataclass(frozen=True)
class Horizon:
    """Memory horizon: the least number of tokens back that hold a given share of the coefficient mass."""

    tokens: Tensor
    """[B,H,queries]: 1 means the token itself; i + 1 means everything up to the first token."""
    queries: list[int]
    share: float
    first: Tensor
    """[B,H,queries]: how much of what an output reads lies at the first token, 0 to 1."""
    rest: Tensor
    """[B,H,queries]: the tokens back that hold the share where the first token is left out."""
    window: int | None = None
    """Tokens that can be read at all; None: every one."""

    def per_head(self) -> list[float]:
        """Median over batch and queries, per head; of a head that is `limited` the most seen, a bound from below."""
        return [float(x) for x in self.tensor_per_head()]

    def tensor_per_head(self) -> Tensor:
        """Give `per_head` as a tensor [H]."""
        heads = self.tokens.double().transpose(0, 1).flatten(1)
        return torch.where(torch.tensor(self.limited(), device=heads.device), heads.amax(1), heads.quantile(0.5, dim=1))

    def limited(self) -> list[bool]:
        """Mark each head that mostly reads as far back as the text or its window goes.

        Its horizon says how long those are: that of an even reading of everything is `share` of it.
        """
        there = torch.tensor(self.queries, device=self.tokens.device) + 1
        there = there if self.window is None else there.clamp_max(self.window)
        known = there > 1  # the first token has no past
        far = (self.tokens >= self.share * there) & known
        return [bool(x) for x in far.sum((0, 2)) * 2 > self.tokens.shape[0] * int(known.sum())]

    def sinks(self) -> list[float | None]:
        """Give the median weight of the first token, 0 to 1, in each head that reads to it for its own sake.

        It is above 1 - share, so that the share is not reached without it, and twice what an even reading gives.
        None for the other heads.
        """
        even = 1 / (torch.tensor(self.queries, device=self.first.device) + 1)
        weight = self.first.double().transpose(0, 1)  # [H,B,queries]
        stands_out = (weight > 2 * even).flatten(1).double().mean(1) > 0.5
        middle = weight.flatten(1).quantile(0.5, dim=1)
        sink = stands_out & (middle > 1 - self.share) & torch.tensor(self.limited(), device=middle.device)
        return [x if s else None for x, s in zip(middle.tolist(), sink.tolist(), strict=True)]

    def quantile(self, q: float) -> float:
        """Compute a quantile over batch, heads and queries."""
        return float(self.tokens.double().flatten().quantile(q))

    def by_position(self) -> list[float]:
        """Median over batch and heads at each query."""
        return [float(x) for x in self.tokens.double().flatten(0, 1).quantile(0.5, dim=0)]

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "heads": self.per_head(),
            "quantiles": {str(q): self.quantile(q) for q in (0.1, 0.5, 0.9)},
            "by_position": {"t": list(self.queries), "median": self.by_position()},
            "share": self.share,
            "limited": self.limited(),
            "sinks": self.sinks(),
            "rest": self.rest.double().transpose(0, 1).flatten(1).quantile(0.5, dim=1).tolist(),
            "window": self.window,
        }

    def __str__(self) -> str:
        low, mid, high = (self.quantile(q) for q in (0.1, 0.5, 0.9))
        limited = self.limited()
        heads = ", ".join(
            f"at least {h:.0f}" if far else f"{h:.0f}" for h, far in zip(self.per_head()[:16], limited, strict=False)
        ) + (" ..." if self.tokens.shape[1] > 16 else "")
        sinks = [f"head {h} ({x:.0%} of its weight)" for h, x in enumerate(self.sinks()) if x is not None]
        return (
            f"{self.share:.0%} of what an output reads lies in its last {mid:.0f} tokens (median; 10% to 90%: "
            f"{low:.0f} to {high:.0f})\nper head: {heads}"
        ) + (f"\nread to the first token at every position: {', '.join(sinks[:8])}" if sinks else "")


@torch.no_grad()
def horizon(
    system: System, *, share: float = 0.95, queries: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Horizon:
    """Count the tokens back that hold `share` of sum_j |alpha_ij|, for each head and query.

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
    whole = mass.sum(-1)
    first = torch.where(whole > 0, mass[..., 0] / whole, 0.0)
    rest = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., 1:]], -1)
    window = system.window if system.readout.cached else None
    return Horizon(tokens_back(mass, index, share), index, share, first, tokens_back(rest, index, share), window)


@dataclass(frozen=True)
class ReceptiveField:
    """How far back a stack of layers looks, predicted from the horizons of its layers."""

    horizons: dict[str, float]
    """Of each layer, tokens: the median over batch and queries of its farthest-looking head."""
    share: float
    limited: bool = False
    """True if a head of these reads as far back as the text or its window goes: then the sum is a bound from below."""

    @property
    def tokens(self) -> float:
        """1 + sum_l (horizon_l - 1): each layer reaches back from where the one above it reads."""
        return 1 + sum(h - 1 for h in self.horizons.values())

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "tokens": self.tokens, "horizons": dict(self.horizons), "share": self.share, "limited": self.limited,
        }  # fmt: skip

    def __str__(self) -> str:
        each = ", ".join(f"{name or 'layer'} {h:.0f}" for name, h in self.horizons.items())
        return (
            f"predicted receptive field: {'at least ' if self.limited else ''}{self.tokens:.0f} tokens, from horizons "
            f"({self.share:.0%} of the mass) {each}"
        )


def receptive_field(
    systems: Mapping[str, System], *, share: float = 0.95, queries: Sequence[int] | None = None
) -> ReceptiveField:
    """Predict how far back a stack of layers looks, from its layers' memory horizons: 1 + sum_l (horizon_l - 1).

    An estimate: the sum is the farthest token of chains that in every layer go as far as that layer's horizon, through
    its farthest-looking head; chains that hold most of the mass may be shorter, and `share` of each layer is no share
    of the whole. What the stack does with its gates held fixed is `rollout(...).receptive_field()`.

    Args:
        systems: of the layers by name, see `systems_of(model, tokens)`.
        share: of the coefficient mass, for each layer.
        queries: tokens i, as for `horizon`.
    """
    require(len(systems) > 0, "a receptive field needs at least one system; see systems_of(model, tokens)")
    found = {name: horizon(system, share=share, queries=queries) for name, system in systems.items()}
    limited = any(any(h.limited()) for h in found.values())
    return ReceptiveField({name: max(h.per_head()) for name, h in found.items()}, share, limited)
