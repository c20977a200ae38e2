"""The six tasks of MAD, mechanistic architecture design (Poli et al. 2024, arXiv 2403.17844), and their sweeps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from .base import IGNORED, Batch, Split, Task, make_task, register_task
from .recall import Ints, batch_of, distinct, first_seen, whole_numbers, with_answers

SOURCE = "Poli et al. 2024, arXiv 2403.17844 (MAD)"

TRAIN_SIZES = (6400, 3200, 1600, 800)
MAD_SWEEPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "mad_recall": {"vocab_size": (32, 64, 128), "length": (256, 512, 1024), "n_train": TRAIN_SIZES},
    "mad_noisy_recall": {
        "vocab_size": (48, 80, 144),
        "length": (256, 512, 1024),
        "n_train": TRAIN_SIZES,
        "frac_noise": (0.4, 0.6, 0.8),
    },
    "mad_fuzzy_recall": {"vocab_size": (32, 64, 128), "length": (256, 512, 1024), "n_train": TRAIN_SIZES},
    "mad_memorization": {"vocab_size": (512, 1024, 2048, 4096, 8192)},
    "mad_compression": {"vocab_size": (32, 64, 128), "length": (64, 128, 256), "n_train": TRAIN_SIZES},
    "mad_selective_copy": {
        "vocab_size": (32, 64, 128),
        "length": (512, 1024),
        "n_train": TRAIN_SIZES,
        "n_copy": (32, 64, 96),
    },
}
"""What the benchmark changes of each task's defaults, one option at a time. Noise has 16 tokens of the vocabulary."""
MAD_TRAIN_SIZES = {name: 256 if name == "mad_memorization" else 12800 for name in MAD_SWEEPS}
"""Training examples of each task, where they are not what is changed; 1280 examples test."""


def mad_settings(task: str) -> list[Task]:
    """The settings over which MAD averages a task's score: the baseline, then each change of MAD_SWEEPS."""
    base = {"n_train": MAD_TRAIN_SIZES[task]}
    changed = [{**base, option: value} for option, values in MAD_SWEEPS[task].items() for value in values]
    return [make_task(task, options) for options in (base, *changed)]


@dataclass(frozen=True, kw_only=True)
class _MAD(Task):
    """What the six have in common: a training set of a given size."""

    vocab_size: int = 16
    """Token ids."""
    n_train: int | None = None
    """Size of a fixed training set, as in the benchmark; None: new examples without end."""

    least_vocab: ClassVar[int] = 2

    def check(self) -> None:
        n, vocab = self.n_train, self.vocab_size
        require(n is None or n >= 1, f"n_train is {n}; expected a number of training examples, or None")
        require(
            vocab >= self.least_vocab,
            f"vocab_size is {vocab}; expected {self.least_vocab} or more for the task {self.name}",
        )

    def whole(self, split: Split) -> Batch | None:
        return _training_set(self) if split == "train" and self.n_train else None


@functools.lru_cache(maxsize=4)
def _training_set(task: _MAD) -> Batch:
    """The fixed training set of a task: the same wherever it is made."""
    assert task.n_train is not None
    rng = np.random.RandomState(12345)
    sizes = [min(256, task.n_train - at) for at in range(0, task.n_train, 256)]  # in parts: less memory
    parts = [task.draw(n, task.length, rng, "train") for n in sizes]
    return Batch(torch.cat([x.inputs for x in parts]), torch.cat([x.labels for x in parts]))


@dataclass(frozen=True, kw_only=True)
class _Recall(_MAD):
    """The three recall tasks: in training all next tokens may be asked for."""

    all_tokens: bool = True
    """Whether the training split asks for every next token, as published; the others ask for recalled values only."""

    def batch(self, inputs: Ints, asked: Ints, split: Split) -> Batch:
        """The examples, from sequences with one more token than inputs [n,T+1], and where tokens are asked for."""
        labels = inputs[:, 1:]
        if not (self.all_tokens and split == "train"):
            labels = np.where(asked[:, 1:], labels, IGNORED)
        return batch_of(inputs[:, :-1].copy(), labels.copy())


@dataclass(frozen=True, kw_only=True)
class _Pairs(_Recall):
    """Recall of values that are single tokens, with or without noise."""

    length: int = 128
    """Tokens of an example: an even number, 4 or more."""

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(
            length >= 4 and length % 2 == 0,
            f"length is {length}; expected an even number, 4 or more: pairs of a key and a value",
        )

    def pairs(self, n: int, length: int, rng: np.random.RandomState, split: Split, noise: int, frac: float) -> Batch:
        """Pairs up to the length, the last one a key that came before; `frac` of the others are `noise` tokens."""
        slots = length // 2
        ordinary = self.vocab_size - noise
        n_keys = ordinary // 2
        rows = np.arange(n)[:, None]
        keys = whole_numbers(rng, n_keys, n, slots)
        value_of = n_keys + whole_numbers(rng, ordinary - n_keys, n, n_keys)
        # One slot, drawn among all, is never noise. Where that is the last and all others are noise, the original
        # fails; here the first is a pair.
        noisy = rng.random_sample((n, slots)) < frac
        noisy[rows, whole_numbers(rng, slots, n, 1)] = False
        noisy[:, 0] &= ~noisy[:, :-1].all(1)
        # The last key is one of those that came, all equally likely however often they came.
        came = np.zeros((n, n_keys), dtype=bool)
        row, slot = np.nonzero(~noisy[:, :-1])
        came[row, keys[row, slot]] = True
        keys[:, -1] = np.argmax(np.where(came, rng.random_sample(came.shape), -1), axis=1)
        noisy[:, -1] = False

        tokens = np.stack([keys, value_of[rows, keys]], axis=2)
        if noise:
            tokens = np.where(noisy[:, :, None], ordinary + whole_numbers(rng, noise, n, slots, 2), tokens)
        # Noise counts as keys that come once.
        again = first_seen(np.where(noisy, -1 - np.arange(slots), keys)) < np.arange(slots)
        # One more column, for which nobody asks: the original cuts the last value off, here it stays as an input.
        inputs = np.full((n, length + 1), IGNORED, dtype=np.int64)
        inputs[:, :length] = tokens.reshape(n, length)
        asked = np.zeros((n, length + 1), dtype=bool)
        asked[:, 1:length:2] = again
        return self.batch(inputs, asked, split)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            value: dict[int, int] = {}
            answers = {}
            for t, (key, read) in enumerate(zip(row[::2], row[1::2])):
                answers[2 * t] = value.setdefault(key, read)
            found.append(answers)
        return with_answers(batch, found)


@register_task("mad_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADRecall(_Pairs):
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


@register_task("mad_noisy_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADNoisyRecall(_Pairs):
    """Noisy in-context recall: `mad_recall`, where some pairs are two random tokens of a vocabulary of their own.

    With vocab_size=12 (keys 0 to 3, values 4 to 7, noise 8 to 11), noise_vocab_size=4 and length=10, in the test split:

        inputs  1 7 9 9 1 7 11 8 1 7
        labels  . . . . 7 .  . . 7 .
    """

    vocab_size: int = 32
    """Token ids: keys, values and noise."""
    noise_vocab_size: int = 16
    """How many of them are noise."""
    frac_noise: float = 0.2
    """The share of pairs that are noise, from 0 to below 1."""

    def check(self) -> None:
        super().check()
        noise, frac = self.noise_vocab_size, self.frac_noise
        require(noise >= 1, f"noise_vocab_size is {noise}; expected 1 or more (without noise: mad_recall)")
        require(0 <= frac < 1, f"frac_noise is {frac:g}; expected a share from 0 to below 1")
        require(
            self.vocab_size >= noise + 2,
            f"vocab_size is {self.vocab_size}, of which {noise} are noise; expected {noise + 2} or more: a key and a "
            "value besides",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        return self.pairs(n, length, rng, split, self.noise_vocab_size, self.frac_noise)


@register_task("mad_fuzzy_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADFuzzyRecall(_Recall):
    """Fuzzy in-context recall: keys and values of one to three tokens; the value of a key that came before is answered.

    With vocab_size=10 (keys of 0 to 3, values of 4 to 8, padding 9), keys of 2 tokens and values of up to 2:

        inputs  9 9 9 1 3 8 0 2 4 6 1 3 8 0 2 4
        labels  . . . . . . . . . . . 8 . . 4 6

    A key or value has no token twice; its number of tokens is drawn, for the keys of the valid and test splits it is
    always the largest. A key with its value is drawn to be the last (the probe), and put somewhere into the sequence
    if it does not come by itself. Padding is in front. In training every next token is asked for (`all_tokens`). In
    about one example of fifty the original never shows the probe before it asks for it; here it is always shown.
    """

    length: int = 128
    """Tokens of an example: more than twice the longest pair."""
    k_motif_size: int = 3
    """Tokens of the longest key."""
    v_motif_size: int = 3
    """Tokens of the longest value."""

    @property
    def n_keys(self) -> int:
        """Tokens that keys are made of; the others but one make values."""
        return (self.vocab_size - 1) // 2

    def check(self) -> None:
        super().check()
        k, v, n_values = self.k_motif_size, self.v_motif_size, self.vocab_size - 1 - self.n_keys
        require(k >= 1 and v >= 1, f"k_motif_size is {k} and v_motif_size is {v}; expected 1 or more")
        require(
            self.n_keys >= k and n_values >= v,
            f"keys of {k} and values of {v} different tokens need vocab_size {2 * max(k, v) + 1} or more; it is "
            f"{self.vocab_size}",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        longest = self.k_motif_size + self.v_motif_size
        require(
            length > 2 * longest,
            f"a pair has up to {longest} tokens and comes twice: expected length {2 * longest + 1} or more; length is "
            f"{length}",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        longest_key, longest_value = self.k_motif_size, self.v_motif_size
        shortest = 2 if split == "train" else longest_key + 1
        count = -(-length // shortest)  # as many pairs as can fit
        rows = np.arange(n)[:, None]

        def motifs(low: int, choices: int, longest: int) -> tuple[Ints, Ints]:
            """Different tokens from low on [n,1+count,longest], and how many of them count [n,1+count]."""
            tokens = low + distinct(rng, choices, n * (1 + count), longest).reshape(n, 1 + count, longest)
            return tokens, 1 + whole_numbers(rng, longest, n, 1 + count)

        # Pair 0 is the probe; a key that comes again has the value that it had first.
        keys, key_size = motifs(0, self.n_keys, longest_key)
        values, value_size = motifs(self.n_keys, self.vocab_size - 1 - self.n_keys, longest_value)
        if split != "train":
            key_size[:] = longest_key
        digits = np.where(np.arange(longest_key) < key_size[:, :, None], 1 + keys, 0)
        codes = digits @ (self.n_keys + 1) ** np.arange(longest_key)
        first = first_seen(codes)
        values, value_size = values[rows, first], value_size[rows, first]
        size = key_size + value_size

        # Pairs follow until this many tokens are there; the probe comes at a random token, or by chance before that.
        limit = length - size[:, :1] - longest_key - longest_value
        starts = np.cumsum(size[:, 1:], axis=1) - size[:, 1:]
        due = np.floor(rng.random_sample((n, 1)) * (length - 2 * size[:, :1]))
        place = np.minimum((starts < due).sum(1), (starts < limit).sum(1) - 1)[:, None]
        by_chance = ((first[:, 1:] == 0) & (np.arange(count) < place)).any(1, keepdims=True)
        which = np.tile(np.arange(1, count + 1), (n, 1))
        which[rows, place] = np.where(by_chance, which[rows, place], 0)
        starts = np.cumsum(size[rows, which], axis=1) - size[rows, which]
        used = np.concatenate([starts < limit, np.ones((n, 1), dtype=bool)], axis=1)
        which = np.concatenate([which, np.zeros((n, 1), dtype=np.int64)], axis=1)  # and at the end the probe

        again = first_seen(np.where(used, codes[rows, which], -1 - np.arange(count + 1))) < np.arange(count + 1)
        width = np.where(used, size[rows, which], 0)
        starts = length + 1 - np.cumsum(width[:, ::-1], axis=1)[:, ::-1]
        inputs = np.full((n, length + 1), self.vocab_size - 1, dtype=np.int64)
        asked = np.zeros((n, length + 1), dtype=bool)
        for tokens, sizes, offset, value in ((keys, key_size, 0, False), (values, value_size, key_size, True)):
            offsets = np.broadcast_to(offset, size.shape)[rows, which]
            row, pair, j = np.nonzero((np.arange(tokens.shape[2]) < sizes[rows, which][:, :, None]) & used[:, :, None])
            at = starts[row, pair] + offsets[row, pair] + j
            inputs[row, at] = tokens[row, which[row, pair], j]
            asked[row, at] = again[row, pair] & value
        return self.batch(inputs, asked, split)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            value_of: dict[tuple[int, ...], list[int]] = {}
            answers: dict[int, int] = {}
            t = next(i for i, token in enumerate(row) if token != self.vocab_size - 1)
            while t < len(row):
                end = t
                while end < len(row) and row[end] < self.n_keys:
                    end += 1
                key, t = tuple(row[t:end]), end
                while end < len(row) and row[end] >= self.n_keys:
                    end += 1
                value = value_of.setdefault(key, row[t:end])
                answers.update(enumerate(value, start=t - 1))
                t = end
            found.append(answers)
        return with_answers(batch, found)


@functools.lru_cache(maxsize=8)
def _values_of_keys(vocab_size: int, seed: int) -> Ints:
    """The value of each key, fixed by the seed."""
    n_keys = (vocab_size - 1) // 2
    return n_keys + np.random.RandomState(seed).permutation(vocab_size - 1 - n_keys)[:n_keys].astype(np.int64)


@register_task("mad_memorization", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADMemorization(_MAD):
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


@register_task("mad_compression", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADCompression(_MAD):
    """Compression: random tokens and a last one that stands for all of them: from it alone they are given back.

    With vocab_size=4 (3 is the last) and length=5:

        inputs  2 0 0 1 3
        labels  2 0 0 1 3

    The sequence is answered, with `length` labels of `vocab_size` classes each. In the original an MLP with a position
    code decodes the state at the last token into one token at a time; here a model's head does it at once.
    """

    answers: ClassVar[Literal["tokens", "sequence"]] = "sequence"

    length: int = 32
    """Tokens of an example, the last included, 2 or more; all examples have that length, as the head has."""

    least_vocab: ClassVar[int] = 3

    @property
    def n_labels(self) -> int:
        return self.length

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length >= 2, f"length is {length}; expected 2 or more: a token to keep, and the last one")
        require(
            length == self.length,
            f"length is {length}, but {self.length} tokens are answered: make the task with length={length}",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        inputs = whole_numbers(rng, self.vocab_size - 1, n, length)
        inputs[:, -1] = self.vocab_size - 1
        return batch_of(inputs, inputs.copy())

    def oracle(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.inputs.tolist())


@register_task("mad_selective_copy", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADSelectiveCopy(_MAD):
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
