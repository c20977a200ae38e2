"""Whether the number of ones so far is odd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Batch, Split, register_task
from .walked import CHOMSKY, EIGENVALUES, Tracking, walk


@register_task("parity", source=f"{CHOMSKY}; trained on lengths 3 to 40 in {EIGENVALUES}")
@dataclass(frozen=True, kw_only=True)
class Parity(Tracking):
    """Whether the number of ones so far is odd.

        tokens  1 0 1 1
        labels  1 1 0 1

    Tokens 0 and 1 are equally likely; the answer is 1 for an odd number. The original asks at the end alone
    (`every_token=False`).
    """

    @property
    def vocab_size(self) -> int:
        return 2

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits.cumsum(1) % 2)

    def read(self, tokens: list[int]) -> list[int]:
        return walk(tokens, [[0, 1], [1, 0]])
