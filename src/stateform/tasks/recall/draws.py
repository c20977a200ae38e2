"""Drawing whole numbers for tasks, and making batches and answers of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..base import IGNORED, Batch

Ints = NDArray[np.int64]
"""An array of whole numbers."""


def whole_numbers(rng: np.random.RandomState, high: int, *shape: int) -> Ints:
    """Draw numbers below `high`, all equally likely; the same on every machine, as the dtype is given."""
    return rng.randint(high, size=shape, dtype=np.int64)


def first_seen(codes: Ints) -> Ints:
    """Find, for each entry of a row, the index of the first entry of that row that equals it [n,T]."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    starts = np.zeros_like(order)
    starts[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], np.arange(1, codes.shape[1]), 0)
    leaders = np.take_along_axis(order, np.maximum.accumulate(starts, axis=1), axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, leaders, axis=1)
    return first


def distinct(rng: np.random.RandomState, choices: int, rows: int, count: int) -> Ints:
    """Draw `count` different numbers below `choices` in each row, every ordered selection alike likely [rows,count]."""
    if 2 * count > choices:
        return np.argsort(rng.random_sample((rows, choices)), axis=1)[:, :count]
    # Redrawing repetitions prefers no number, so all selections stay equally likely. It costs little for a few numbers
    # out of thousands.
    drawn = whole_numbers(rng, choices, rows, count)
    left = np.arange(rows)
    while len(left):
        part = drawn[left]
        again = first_seen(part) != np.arange(count)
        part[again] = whole_numbers(rng, choices, int(again.sum()))
        drawn[left], left = part, left[again.any(1)]
    return drawn


def batch_of(inputs: Ints, labels: Ints) -> Batch:
    """Make a batch of arrays."""
    return Batch(torch.from_numpy(inputs), torch.from_numpy(labels))


def with_answers(batch: Batch, rows: list[dict[int, int]]) -> Tensor:
    """Make answers like the labels, from the answered positions of each row."""
    answers = torch.full_like(batch.labels, IGNORED)
    for i, row in enumerate(rows):
        for at, answer in row.items():
            answers[i, at] = answer
    return answers
