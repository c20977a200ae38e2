"""The batches of a training. Each is a function of its number alone, so a training resumes by counting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import require
from ..tasks import Batch, Split, Task
from .config import Experiment

EVAL_SEED = 0
"""The seed of validation and test data, the same for every experiment on a task."""


class Batches(Dataset[Batch]):
    """Batches first .. first + count - 1 of a training.

    Each is drawn anew, or taken from a finite pool of examples. Each pass over a pool has its own order, and leaves
    out the rest that is less than a batch.

    Args:
        experiment: whose batches.
        first: the number of the first.
        count: how many.
        pool: what `pool(experiment)` gave.
    """

    def __init__(self, experiment: Experiment, first: int, count: int, pool: Batch | None) -> None:
        self.experiment, self.first, self.count, self.pool = experiment, first, count, pool
        self._order: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Batch:
        if i >= self.count:
            raise IndexError(i)
        number, train = self.first + i, self.experiment.train
        if self.pool is None:
            return fresh(self.experiment, number)
        per_pass = len(self.pool) // train.batch_size
        turn, place = divmod(number, per_pass)
        if self._order[0] != turn:
            rng = np.random.RandomState(np.random.SeedSequence([*self.experiment.seeds, turn]).generate_state(4))
            self._order = turn, torch.from_numpy(rng.permutation(len(self.pool)))
        return self.pool[self._order[1][place * train.batch_size : (place + 1) * train.batch_size]]


def fresh(experiment: Experiment, number: int) -> Batch:
    """Draw the examples of batch `number`, all of one length between the task's shortest and longest."""
    task, train = experiment.task, experiment.train
    length = task.length
    if task.min_length < task.length:
        rng = np.random.RandomState(np.random.SeedSequence([*experiment.seeds, number]).generate_state(4))
        length = int(rng.randint(task.min_length, task.length + 1))
    return task.sample(train.batch_size, seed=[*experiment.seeds, number], length=length)


def pool(experiment: Experiment) -> Batch | None:
    """Give the examples that are used again and again; None where each batch is new."""
    task, train = experiment.task, experiment.train
    found = task.whole("train")
    if train.examples is not None:
        # Drawn at random, as a data set may be sorted by class.
        n = train.examples if found is None else min(train.examples, len(found))
        found = task.sample(n, seed=train.seed)
    require(found is None or len(found) >= train.batch_size,
            f"there are {0 if found is None else len(found)} training examples, fewer than a batch of "
            f"{train.batch_size}; ask for a smaller batch_size")  # fmt: skip
    return found


def held_out(task: Task, split: Split, n: int, length: int | None = None) -> Batch:
    """Draw at most n examples of a split that no training sees, as one batch."""
    everything = task.whole(split)
    n = n if everything is None else min(n, len(everything))
    return task.sample(n, seed=EVAL_SEED, split=split, length=length)


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the rows of a batch, at most `size` at a time."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]
