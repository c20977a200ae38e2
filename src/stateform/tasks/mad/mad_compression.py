"""Compression: random tokens and a last one that stands for all of them: from it alone they are given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import require
from ..base import Batch, Split, register_task
from ..recall import batch_of, whole_numbers
from .setting import SOURCE, MADTask


@register_task("mad_compression", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADCompression(MADTask):
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
