"""In-context recall: pairs of a key and its value, drawn with replacement; a key that came before is answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Batch, Split, register_task
from .setting import SOURCE, MADPairs


@register_task("mad_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADRecall(MADPairs):
    """In-context recall: pairs of a key and its value, drawn with replacement; a key that came before is answered.

    With vocab_size=8 (keys 0 to 3, values 4 to 7) and length=10, in the test split:

        inputs  1 7 3 4 1 7 0 4 3 4
        labels  . . . . 7 . . . 4 .

    Each example has a value of its own for each key; the last key is always one that came before. In training every
    next token is asked for (`all_tokens`), of which most cannot be known. The original has one token less: it cuts the
    last value off, which nobody is asked about.
    """

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        return self.pairs(n, length, rng, split, 0, 0.0)
