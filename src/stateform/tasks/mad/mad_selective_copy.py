"""Selective copying: random tokens scattered among blanks; after a token that asks they are given back in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, register_task
from ..recall import batch_of, whole_numbers, with_answers
from .setting import SOURCE, MADTask


@register_task("mad_selective_copy", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADSelectiveCopy(MADTask):
    """Selective copying: random tokens scattered among blanks; after a token that asks they are given back in order.

    With vocab_size=6 (4 is blank, 5 asks), n_copy=3 and length=12:

        inputs  4 2 4 4 4 0 2 5 4 4 4
        labels  . . . . . . . . 2 0 2

    Each blank is put before one of the tokens, all equally likely, so that the last token is always right before the
    question; not every arrangement is equally likely (as in `selective_copy` it is).
    """

    length: int = 256
    """Tokens of an example: more than twice n_copy and one."""
    n_copy: int = 16
    """Tokens to copy."""

    least_vocab: ClassVar[int] = 4

    def check(self) -> None:
        super().check()
        require(self.n_copy >= 1, f"n_copy is {self.n_copy}; expected 1 or more")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 2 * self.n_copy + 2
        require(
            length >= least,
            f"{self.n_copy} tokens to copy need length {least} or more; length is {length}: ask for fewer tokens or a "
            "longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        count = self.n_copy
        tokens = whole_numbers(rng, self.vocab_size - 2, n, count)
        before = whole_numbers(rng, count, n, length - 2 * count - 1)
        blanks = np.bincount((before + count * np.arange(n)[:, None]).ravel(), minlength=n * count).reshape(n, count)
        at = np.arange(count) + np.cumsum(blanks, axis=1)
        inputs = np.full((n, length), self.vocab_size - 2, dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        np.put_along_axis(inputs, at, tokens, axis=1)
        inputs[:, -count - 1] = self.vocab_size - 1
        labels[:, -count:] = tokens
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            ask = row.index(self.vocab_size - 1)
            tokens = [token for token in row[:ask] if token != self.vocab_size - 2]
            found.append(dict(enumerate(tokens, start=ask + 1)))
        return with_answers(batch, found)
