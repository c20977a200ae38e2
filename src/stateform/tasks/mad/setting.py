"""The six tasks of MAD, mechanistic architecture design (Poli et al. 2024, arXiv 2403.17844), and their sweeps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, make_task
from ..recall import Ints, batch_of, first_seen, whole_numbers, with_answers

SOURCE = "Poli et al. 2024, arXiv 2403.17844 (MAD)"
"""The paper that the settings are from."""


TRAIN_SIZES = (6400, 3200, 1600, 800)
"""Numbers of training examples that the sweeps go through."""


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
"""The changes that the benchmark makes to each task's defaults, one option at a time. Noise has 16 tokens."""


MAD_TRAIN_SIZES = {name: 256 if name == "mad_memorization" else 12800 for name in MAD_SWEEPS}
"""Training examples of each task, unless n_train is what is changed; 1280 examples test."""


def mad_settings(task: str) -> list[Task]:
    """List the settings over which MAD averages a task's score: the baseline, then each change of MAD_SWEEPS."""
    base = {"n_train": MAD_TRAIN_SIZES[task]}
    changed = [{**base, option: value} for option, values in MAD_SWEEPS[task].items() for value in values]
    return [make_task(task, options) for options in (base, *changed)]


@dataclass(frozen=True, kw_only=True)
class MADTask(Task):
    """The base of the six tasks: a training set of a given size."""

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
        return training_set(self) if split == "train" and self.n_train else None


@functools.lru_cache(maxsize=4)
def training_set(task: MADTask) -> Batch:
    """Draw the fixed training set of a task, the same on every machine."""
    assert task.n_train is not None
    rng = np.random.RandomState(12345)
    sizes = [min(256, task.n_train - at) for at in range(0, task.n_train, 256)]  # in parts: less memory
    parts = [task.draw(n, task.length, rng, "train") for n in sizes]
    return Batch(torch.cat([x.inputs for x in parts]), torch.cat([x.labels for x in parts]))


@dataclass(frozen=True, kw_only=True)
class MADOfKeys(MADTask):
    """The three recall tasks: in training all next tokens may be asked for."""

    all_tokens: bool = True
    """True if the training split asks for every next token, as published; the others ask for recalled values only."""

    def batch(self, inputs: Ints, asked: Ints, split: Split) -> Batch:
        """Make examples from sequences [n,T+1], one token longer than inputs, and marks of the tokens asked for."""
        labels = inputs[:, 1:]
        if not (self.all_tokens and split == "train"):
            labels = np.where(asked[:, 1:], labels, IGNORED)
        return batch_of(inputs[:, :-1].copy(), labels.copy())


@dataclass(frozen=True, kw_only=True)
class MADPairs(MADOfKeys):
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
        """Draw pairs that fill the length; the last key came before, and `frac` of the others are of `noise` tokens."""
        slots = length // 2
        ordinary = self.vocab_size - noise
        n_keys = ordinary // 2
        rows = np.arange(n)[:, None]
        keys = whole_numbers(rng, n_keys, n, slots)
        value_of = n_keys + whole_numbers(rng, ordinary - n_keys, n, n_keys)
        # One slot, drawn among all, is never noise. If that is the last slot and all others are noise, the original
        # fails; here the first slot is then a pair.
        noisy = rng.random_sample((n, slots)) < frac
        noisy[rows, whole_numbers(rng, slots, n, 1)] = False
        noisy[:, 0] &= ~noisy[:, :-1].all(1)
        # The last key is one of those that came, all equally likely however often they came.
        came = np.zeros((n, n_keys), dtype=bool)
        row, slot = np.nonzero(~noisy[:, :-1])
        came[row, keys[row, slot]] = True
        keys[:, -1] = np.argmax(np.where(came, rng.random_sample(came.shape), -1), axis=1)
        noisy[:, -1] = False

        tokens = np.stack([keys, value_of[rows, keys]], axis=2)  # [n,slots,2]
        if noise:
            tokens = np.where(noisy[:, :, None], ordinary + whole_numbers(rng, noise, n, slots, 2), tokens)
        # Noise counts as keys that come once.
        again = first_seen(np.where(noisy, -1 - np.arange(slots), keys)) < np.arange(slots)
        # One more column, never asked for: the original cuts the last value off, here it stays as an input.
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
