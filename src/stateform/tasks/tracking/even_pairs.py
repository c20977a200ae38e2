"""Whether the neighbours 01 and 10 come, together, an odd number of times so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Batch, Split, register_task
from .walked import CHOMSKY, Tracking


@register_task("even_pairs", source=CHOMSKY)
@dataclass(frozen=True, kw_only=True)
class EvenPairs(Tracking):
    """Whether the neighbours 01 and 10 come, together, an odd number of times so far.

        tokens  0 1 1 0 1
        labels  0 1 1 0 1

    The answer is 0 for an even number, as in the original: then the first token equals the present one. The original
    asks at the end alone (`every_token=False`).
    """

    @property
    def vocab_size(self) -> int:
        return 2

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits ^ bits[:, :1])

    def read(self, tokens: list[int]) -> list[int]:
        # States: an even or odd number of changes, and the last token; state 4 is the start.
        table = [[2 * (odd ^ (last ^ token)) + token for token in (0, 1)] for odd in (0, 1) for last in (0, 1)]
        table.append([0, 1])
        states, state = [], 4
        for token in tokens:
            state = table[state][token]
            states.append(state // 2)
        return states
