"""Induction heads: what followed the trigger when it came first? Asked when it comes again, as the last token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from .draws import batch_of, whole_numbers, with_answers


@register_task("induction", source="Fu et al. 2022, arXiv 2212.14052; sizes of Gu and Dao 2023, arXiv 2312.00752")
@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Induction heads: what followed the trigger when it came first? Asked when it comes again, as the last token.

    With vocab_size=6 (the trigger is 5) and length=8:

        inputs  3 0 5 2 2 4 1 5
        labels  . . . . . . . 2

    The other tokens are random; the first trigger is anywhere with an ordinary token behind it. The layout is that of
    the published generator (H3's `induction_head`, one trigger): there the last token before the second trigger is
    never the answer's place either. It has 18 ordinary tokens and length 30, and a padding token that is never used and
    left out here; the sizes are those of the Mamba paper (16 tokens, 256 long, tested on longer ones).
    """

    vocab_size: int = 16
    """Token ids; the last is the trigger."""
    length: int = 256
    """Tokens of an example, 4 or more."""

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return tuple(self.length * factor for factor in (1, 2, 4, 8))

    def check(self) -> None:
        require(
            self.vocab_size >= 3,
            f"vocab_size is {self.vocab_size}; expected 3 or more: two tokens to tell apart, and the trigger",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length >= 4, f"length is {length}; expected 4 or more: trigger, answer, something else, trigger")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        rows = np.arange(n)
        inputs = whole_numbers(rng, self.vocab_size - 1, n, length)
        at = whole_numbers(rng, length - 3, n)
        inputs[rows, at] = inputs[:, -1] = self.vocab_size - 1
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        labels[:, -1] = inputs[rows, at + 1]
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        last = batch.inputs.shape[1] - 1
        found = [{last: row[row.index(row[-1]) + 1]} for row in batch.inputs.tolist()]
        return with_answers(batch, found)
