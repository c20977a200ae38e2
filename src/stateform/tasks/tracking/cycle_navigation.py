"""Where one stands on a cycle after steps back, none and forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import require
from ..base import Batch, Split, register_task
from .walked import CHOMSKY, Tracking, walk


@register_task("cycle_navigation", source=CHOMSKY)
@dataclass(frozen=True, kw_only=True)
class CycleNavigation(Tracking):
    """Where one stands on a cycle after steps back, none and forward.

        tokens  2 2 1 0 0 0     size = 5
        labels  1 2 2 1 0 4

    Token 0 is a step back, 1 none, 2 a step forward, equally likely; the walk starts at place 0. The original asks at
    the end alone (`every_token=False`).
    """

    size: int = 5
    """Places on the cycle."""

    @property
    def vocab_size(self) -> int:
        return max(3, self.size)

    def check(self) -> None:
        require(self.size >= 2, f"size is {self.size}; expected a cycle of 2 places or more")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        steps = rng.randint(3, size=(n, length), dtype=np.int64)
        return self.batch(steps, (steps - 1).cumsum(1) % self.size)

    def read(self, tokens: list[int]) -> list[int]:
        size = self.size
        return walk(tokens, [[(place - 1) % size, place, (place + 1) % size] for place in range(size)])
