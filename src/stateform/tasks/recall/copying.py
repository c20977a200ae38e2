"""Copying: a random string, the token that asks for it, and the string again, predicted token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from .draws import batch_of, whole_numbers, with_answers


@register_task("copying", source="Jelassi et al. 2024, arXiv 2402.01032")
@dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """Copying: a random string, the token that asks for it, and the string again, predicted token by token.

    With vocab_size=6 (4 starts, 5 asks for the copy) and length=8, then 9:

        inputs    3 0 1 2 5 3 0 1
        labels    . . . . 3 0 1 2

        inputs  4 3 0 1 2 5 3 0 1
        labels  . . . . . 3 0 1 2

    The right copy so far is read, as in language modelling: what must be kept is the string and the place in it. Half
    the tokens are the string; an odd length starts with the token 4, so all lengths exist, and training draws one
    for each batch. The paper: 26 letters, a start token before every string, strings of a random length up to 300
    in training, up to 1,000 in the test.
    """

    vocab_size: int = 28
    """Token ids: ordinary ones, the start, and the one that asks for the copy."""
    length: int = 64
    """Tokens of the longest training example, 2 or more: the string, the question, the copy but for its last token."""

    @property
    def min_length(self) -> int:
        return max(2, self.length // 4)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length, 4 * self.length)

    def check(self) -> None:
        require(
            self.vocab_size >= 4,
            f"vocab_size is {self.vocab_size}; expected 4 or more: two tokens to tell apart, the start, the question",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length >= 2, f"length is {length}; expected 2 or more: a string and the token that asks for it")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        size = length // 2
        string = whole_numbers(rng, self.vocab_size - 2, n, size)
        start = np.full((n, length % 2), self.vocab_size - 2)
        ask = np.full((n, 1), self.vocab_size - 1)
        inputs = np.concatenate([start, string, ask, string[:, :-1]], axis=1)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        labels[:, -size:] = string
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            ask = row.index(self.vocab_size - 1)
            string = [token for token in row[:ask] if token != self.vocab_size - 2]
            found.append({ask + i: token for i, token in enumerate(string)})
        return with_answers(batch, found)
