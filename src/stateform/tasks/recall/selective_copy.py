"""Selective copying: some tokens scattered in noise, to be given back in their order when asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from .draws import batch_of, distinct, whole_numbers, with_answers


@register_task("selective_copy", source="Gu and Dao 2023, arXiv 2312.00752, section 4.1.1; Arjovsky et al. 2016")
@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(Task):
    """Selective copying: some tokens scattered in noise, to be given back in their order when asked.

    With vocab_size=6 (4 is noise, 5 asks), length=10, n_copy=3:

        inputs  4 2 4 4 0 2 4 5 5 5
        labels  . . . . . . . 2 0 2

    The places of the tokens are all equally likely. The paper has length 4096 (16 tokens to copy, a vocabulary of 16);
    a length of 256 trains in reasonable time. `mad_selective_copy` asks by one token and scatters differently.
    """

    vocab_size: int = 16
    """Token ids: ordinary ones, noise, and the one that asks."""
    length: int = 256
    """Tokens of an example, questions included: at least 2 times n_copy."""
    n_copy: int = 16
    """Tokens to copy."""

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length, 4 * self.length)

    def check(self) -> None:
        require(self.n_copy >= 1, f"n_copy is {self.n_copy}; expected 1 or more")
        require(
            self.vocab_size >= 4,
            f"vocab_size is {self.vocab_size}; expected 4 or more: two tokens to tell apart, noise, the question",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 2 * self.n_copy
        require(
            length >= least,
            f"{self.n_copy} tokens to copy need length {least} or more; length is {length}: ask for fewer tokens or a "
            "longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        read = length - self.n_copy
        tokens = whole_numbers(rng, self.vocab_size - 2, n, self.n_copy)
        at = np.sort(distinct(rng, read, n, self.n_copy), axis=1)
        inputs = np.full((n, length), self.vocab_size - 2, dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        np.put_along_axis(inputs, at, tokens, axis=1)
        inputs[:, read:] = self.vocab_size - 1
        labels[:, read:] = tokens
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            tokens = [token for token in row if token < self.vocab_size - 2]
            found.append(dict(enumerate(tokens, start=len(row) - len(tokens))))
        return with_answers(batch, found)
