"""Recall and copying: multi-query associative recall (MQAR), induction heads, copying, selective copying."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import require
from .base import IGNORED, Batch, Split, Task, register_task

Ints = NDArray[np.int64]


def whole_numbers(rng: np.random.RandomState, high: int, *shape: int) -> Ints:
    """Numbers below `high`, all equally likely; the same on every machine, as the dtype is given."""
    return rng.randint(high, size=shape, dtype=np.int64)


def first_seen(codes: Ints) -> Ints:
    """For each entry of a row, the index of the first entry of that row that equals it [n,T]."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    starts = np.zeros_like(order)
    starts[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], np.arange(1, codes.shape[1]), 0)
    leaders = np.take_along_axis(order, np.maximum.accumulate(starts, axis=1), axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, leaders, axis=1)
    return first


def distinct(rng: np.random.RandomState, choices: int, rows: int, count: int) -> Ints:
    """In each row `count` different numbers below `choices`; every ordered selection is equally likely [rows,count]."""
    if 2 * count > choices:
        return np.argsort(rng.random_sample((rows, choices)), axis=1)[:, :count]
    # No number is preferred by redrawing repetitions, so all selections stay equally likely; and a few numbers out of
    # thousands cost little.
    drawn = whole_numbers(rng, choices, rows, count)
    left = np.arange(rows)
    while len(left):
        part = drawn[left]
        again = first_seen(part) != np.arange(count)
        part[again] = whole_numbers(rng, choices, int(again.sum()))
        drawn[left], left = part, left[again.any(1)]
    return drawn


def batch_of(inputs: Ints, labels: Ints) -> Batch:
    """Arrays as a batch."""
    return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))


def with_answers(batch: Batch, rows: list[dict[int, int]]) -> Tensor:
    """Answers like the labels, from the answered positions of each row."""
    answers = torch.full_like(batch.labels, IGNORED)
    for i, row in enumerate(rows):
        for at, answer in row.items():
            answers[i, at] = answer
    return answers


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
