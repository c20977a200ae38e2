"""How many ones there were so far, modulo m."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import require
from ..base import Batch, Split, register_task
from .walked import EIGENVALUES, Tracking, walk


@register_task("counting", source=f"counting modulo m, after {EIGENVALUES}")
@dataclass(frozen=True, kw_only=True)
class Counting(Tracking):
    """How many ones there were so far, modulo m.

        tokens  1 0 1 1     m = 3
        labels  1 1 2 0

    Tokens 0 and 1 are equally likely, so that positions alone do not give the answer; in the paper's theorem, and with
    `every_token=False`, the count is wanted at the end.
    """

    modulus: int = 3
    """The count is taken modulo this; 2 is parity."""

    @property
    def vocab_size(self) -> int:
        return self.modulus

    def check(self) -> None:
        require(self.modulus >= 2, f"modulus is {self.modulus}; expected 2 or more")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits.cumsum(1) % self.modulus)

    def read(self, tokens: list[int]) -> list[int]:
        return walk(tokens, [[count, (count + 1) % self.modulus] for count in range(self.modulus)])
