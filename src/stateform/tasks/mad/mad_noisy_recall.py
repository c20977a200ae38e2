"""Noisy in-context recall: `mad_recall`, where some pairs are two random tokens of a vocabulary of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import require
from ..base import Batch, Split, register_task
from .setting import SOURCE, MADPairs


@register_task("mad_noisy_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADNoisyRecall(MADPairs):
    """Noisy in-context recall: `mad_recall`, where some pairs are two random tokens of a vocabulary of their own.

    With vocab_size=12 (keys 0 to 3, values 4 to 7, noise 8 to 11), noise_vocab_size=4 and length=10, in the test split:

        inputs  1 7 9 9 1 7 11 8 1 7
        labels  . . . . 7 .  . . 7 .
    """

    vocab_size: int = 32
    """Token ids: keys, values and noise."""
    noise_vocab_size: int = 16
    """The number of those that are noise."""
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
