"""The base of state tracking: tokens move a state, and the answer is where it is now. Trained short, tested long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base import IGNORED, Batch, Task

CHOMSKY = "Delétang et al. 2023, Neural Networks and the Chomsky Hierarchy (arXiv 2207.02098)"
"""The paper of the regular languages."""


EIGENVALUES = "Grazzi et al. 2025, Unlocking State-Tracking in Linear RNNs (arXiv 2411.12537)"
"""The paper of negative eigenvalues."""


@dataclass(frozen=True, kw_only=True)
class Tracking(Task):
    """The base of tasks of state tracking: lengths 3 to 40 in training, up to 256 in tests, an answer per token."""

    length: int = 40
    """Tokens of a training example."""
    every_token: bool = True
    """True if each token asks for the state so far, False if only the last does."""

    @property
    def min_length(self) -> int:
        return min(3, self.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, *(T for T in (64, 128, 256) if self.length < T))

    def batch(self, inputs: np.ndarray, answers: np.ndarray) -> Batch:
        """Make a batch of tokens [B,T] and answers [B,T]; only the last answer is kept unless `every_token`."""
        if not self.every_token:
            answers[:, :-1] = IGNORED
        return Batch(torch.from_numpy(inputs), torch.from_numpy(answers))

    def oracle(self, batch: Batch) -> Tensor:
        return torch.tensor([self.read(tokens) for tokens in batch.inputs.tolist()])

    def read(self, tokens: list[int]) -> list[int]:
        """Answer one sequence by an automaton that reads one token after the other."""
        raise NotImplementedError


def walk(tokens: list[int], table: Sequence[Sequence[int]]) -> list[int]:
    """List the states that an automaton passes through from state 0; `table[state][token]` is the next state."""
    states, state = [], 0
    for token in tokens:
        state = table[state][token]
        states.append(state)
    return states
