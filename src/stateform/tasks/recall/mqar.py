"""Multi-query associative recall: pairs of a key and a value, then each key once more, to be answered by its value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from .draws import batch_of, distinct, whole_numbers, with_answers


@register_task("mqar", source="Arora et al. 2023, arXiv 2312.04927; used in arXiv 2405.15731, appendix J.1")
@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall: pairs of a key and a value, then each key once more, to be answered by its value.

    With vocab_size=12, length=12, n_pairs=2, where `.` is token 0 or a label that is ignored:

        inputs  2 8 4 7 . . 4 . . . 2 .
        labels  . . . . . . 7 . . . 8 .

    Keys are different ones of 1 to `vocab_size/2 - 1`, values different ones of `vocab_size/2` to `vocab_size - 1`. The
    keys come back at even distances after the pairs; which ones is drawn without replacement, distance number g (1, 2,
    ...) with a weight g^(power_a - 1): mostly soon, sometimes late; power_a = 1 draws all alike.

    The distribution is that of the published generator (Zoology, `multiquery_ar`). That generator's own default is 8
    pairs and random_non_queries=True; the experiments of the Dynamical Systems Framework (arXiv 2405.15731) set
    random_non_queries=False, with vocab_size=8192 and (length, pairs) = (64, 4), (128, 8), (256, 16) and (512, 64).
    Both use power_a=0.01. It also asks for more tokens in the vocabulary than in the sequence; here it is enough that
    keys and values suffice for the pairs.
    """

    vocab_size: int = 8192
    """Token ids: 0, keys, values."""
    length: int = 64
    """Tokens of an example, an even number, at least 4 times n_pairs."""
    n_pairs: int = 4
    """Pairs of a key and a value."""
    random_non_queries: bool = False
    """Fill the places between the queries with random tokens instead of token 0."""
    power_a: float = 0.01
    """Exponent of the distances' power law, above 0; 1: all distances alike."""

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length, 4 * self.length)

    def check(self) -> None:
        require(self.n_pairs >= 1, f"n_pairs is {self.n_pairs}; expected 1 or more")
        require(self.power_a > 0, f"power_a is {self.power_a:g}; expected a number above 0, such as 0.01")
        need = 2 * self.n_pairs + 2
        require(
            self.vocab_size >= need,
            f"{self.n_pairs} pairs need a vocabulary of {need} tokens or more (0, keys and values); vocab_size is "
            f"{self.vocab_size}: ask for fewer pairs or a larger vocabulary",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 4 * self.n_pairs
        require(
            length >= least,
            f"{self.n_pairs} pairs need length {least} or more; length is {length}: ask for fewer pairs or a longer "
            "sequence",
        )
        require(length % 2 == 0, f"length is {length}; expected an even number, such as {length + 1}")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        pairs, half = self.n_pairs, self.vocab_size // 2
        keys = 1 + distinct(rng, half - 1, n, pairs)
        values = half + distinct(rng, self.vocab_size - half, n, pairs)
        places = (length - 2 * pairs) // 2
        # Sorted waiting times with these rates are a weighted draw without replacement.
        rates = np.arange(1, places + 1) ** (self.power_a - 1.0)
        waits = rng.standard_exponential((n, places)) / rates
        at = 2 * pairs + 2 * np.argsort(waits, axis=1)[:, :pairs]

        inputs = np.zeros((n, length), dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        inputs[:, 0 : 2 * pairs : 2] = keys
        inputs[:, 1 : 2 * pairs : 2] = values
        np.put_along_axis(inputs, at, keys, axis=1)
        np.put_along_axis(labels, at, values, axis=1)
        if self.random_non_queries:
            inputs = np.where(inputs == 0, whole_numbers(rng, self.vocab_size, n, length), inputs)
        return batch_of(inputs, labels)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            pairs, rest = row[: 2 * self.n_pairs], row[2 * self.n_pairs :]
            value = dict(zip(pairs[::2], pairs[1::2]))
            found.append({2 * self.n_pairs + t: value[token] for t, token in enumerate(rest) if token in value})
        return with_answers(batch, found)
