"""Whether two samples come from one distribution, and what the examples in docstrings say."""

from __future__ import annotations

import inspect
import re

import numpy as np
import torch

from stateform.tasks import IGNORED, Batch, Task, make_task


def assert_alike(ours: np.ndarray, theirs: np.ndarray, sigmas: float = 5.0) -> None:
    """The means of features [examples,features] agree within so many standard errors; constants are the same."""
    ours, theirs = ours.astype(float), theirs.astype(float)
    difference = ours.mean(0) - theirs.mean(0)
    error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    bad = np.abs(difference) > sigmas * error + 1e-12
    assert not bad.any(), f"features {np.nonzero(bad)[0]}: {ours.mean(0)[bad]} and {theirs.mean(0)[bad]}"


def assert_shares(counts: np.ndarray, expected: np.ndarray, sigmas: float = 5.0) -> None:
    """Counts agree with probabilities within so many standard errors each."""
    n = counts.sum()
    error = np.sqrt(n * expected * (1 - expected))
    bad = np.abs(counts - n * expected) > sigmas * error + 1e-9
    assert not bad.any(), f"outcomes {np.nonzero(bad)[0]}: {counts[bad]} of {n}, expected {n * expected[bad]}"


def assert_documented(spec: str, dot: int = IGNORED) -> None:
    """The oracle gives the labels of the example in the task's docstring (`.` asks for nothing; as an input: `dot`)."""
    task: Task = make_task(spec)
    lines = re.findall(r"^ +(inputs|labels) +(.*)$", inspect.getdoc(type(task)) or "", re.MULTILINE)
    assert lines, "no example in the docstring"
    for (_, tokens), (_, labels) in zip(lines[::2], lines[1::2], strict=True):
        inputs = torch.tensor([[dot if c == "." else int(c) for c in tokens.split()]])
        expected = torch.tensor([[IGNORED if c == "." else int(c) for c in labels.split()]])
        assert inputs.shape == expected.shape and len(inputs[0]) >= 2
        answers = task.oracle(Batch(inputs, expected))
        assert torch.equal(torch.where(expected == IGNORED, expected, answers), expected)
