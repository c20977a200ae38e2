"""Memorization: each key has a value that is the same in all examples and never shown; a model has to learn it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, register_task
from ..recall import Ints, batch_of, whole_numbers, with_answers
from .setting import SOURCE, MADTask


@functools.lru_cache(maxsize=8)
def _values_of_keys(vocab_size: int, seed: int) -> Ints:
    """Draw the value of each key, fixed by the seed."""
    n_keys = (vocab_size - 1) // 2
    return n_keys + np.random.RandomState(seed).permutation(vocab_size - 1 - n_keys)[:n_keys].astype(np.int64)


@register_task("mad_memorization", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADMemorization(MADTask):
    """Memorization: each key has a value that is the same in all examples and never shown; a model has to learn it.

    With vocab_size=10 (keys 0 to 3, values 4 to 8; 9 asks) and length=6:

        inputs  2 9 0 9 2 9
        labels  . 7 . 4 . 7

    Keys are drawn with replacement, their values are different ones. The original has the same distribution with
    another generator of random numbers, so its table is another one.
    """

    vocab_size: int = 256
    """Token ids: keys, values, and the one that asks."""
    length: int = 32
    """Tokens of an example, an even number."""
    map_seed: int = 12345
    """The seed of the table of values."""

    least_vocab: ClassVar[int] = 3

    def check(self) -> None:
        super().check()
        require(0 <= self.map_seed < 2**32, f"map_seed is {self.map_seed}; expected a number from 0 to {2**32 - 1}")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length % 2 == 0, f"length is {length}; expected an even number: keys, each with a question behind it")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        value_of = _values_of_keys(self.vocab_size, self.map_seed)
        keys = whole_numbers(rng, len(value_of), n, length // 2)
        inputs = np.full((n, length), self.vocab_size - 1, dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        inputs[:, ::2] = keys
        labels[:, 1::2] = value_of[keys]
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        value = dict(enumerate(_values_of_keys(self.vocab_size, self.map_seed).tolist()))
        found = [{t + 1: value[key] for t, key in enumerate(row) if key in value} for row in batch.inputs.tolist()]
        return with_answers(batch, found)
