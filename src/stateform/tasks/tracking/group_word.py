"""The product of the group elements so far: the word problem."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np

from ...errors import require
from ..base import Batch, Split, register_task
from .walked import Tracking

Permutation = tuple[int, ...]
"""Where each element goes."""


@lru_cache
def group_elements(group: str) -> tuple[Permutation, ...]:
    """List the elements of a group (S3, A5, Z2, ...) as permutations, the identity first.

    Raises:
        StateformError: no such group, or one with more than 120 elements.
    """
    found = re.fullmatch(r"([SAZ])([0-9]{1,3})", group)
    expected = "expected S2 to S5 (all permutations), A3 to A5 (the even ones) or Z2 to Z120 (rotations)"
    require(found, f"group is {group!r}; {expected}")
    assert found
    kind, m = found[1], int(found[2])
    low, high = {"S": (2, 5), "A": (3, 5), "Z": (2, 120)}[kind]
    require(low <= m <= high, f"group is {group!r}; {expected}")
    if kind == "Z":
        return tuple(tuple((i + s) % m for i in range(m)) for s in range(m))
    everything = permutations(range(m))
    if kind == "S":
        return tuple(everything)
    return tuple(p for p in everything if sum(a > b for a, b in combinations(p, 2)) % 2 == 0)


@lru_cache
def group_table(group: str) -> np.ndarray:
    """Compute the multiplication table [n,n] of a group: entry [i,j] is the element that is first i, then j."""
    elements = group_elements(group)
    index = {element: i for i, element in enumerate(elements)}
    table = np.array([[index[tuple(b[i] for i in a)] for b in elements] for a in elements], dtype=np.int64)
    table.flags.writeable = False
    return table


@register_task(
    "group_word", source="Merrill et al. 2024, The Illusion of State (arXiv 2404.08819); DeltaProduct 2502.10297"
)
@dataclass(frozen=True, kw_only=True)
class GroupWord(Tracking):
    """The product of the group elements so far: the word problem.

        tokens  1 2 5     group = "S3": 0 = 012 (nothing moves), 1 = 021, 2 = 102, 3 = 120, 4 = 201, 5 = 210
        labels  1 3 2     1; first 1, then 2: 120, which is 3; then 5: 102, which is 2

    Tokens and answers are the elements, in the alphabetical order of the permutations that they are. A product applies
    the left one first: element 1 makes 0 2 1 of 0 1 2, and element 2 makes 1 2 0 of that. Each token is drawn from all
    elements alike, or from those that move at most `moved` things: with `moved=2` the identity and the swaps, an easier
    variant that the papers on eigenvalues train on.
    """

    group: str = "S3"
    """S2 to S5: all permutations; A3 to A5: the even ones; Z2 to Z120: rotations, where order does not matter."""
    moved: int | None = None
    """The most things that a token's element may move; None: any number."""

    @property
    def vocab_size(self) -> int:
        return len(group_elements(self.group))

    def check(self) -> None:
        group_elements(self.group)
        hint = "expected a number such that more than the identity is left, or None"
        require(
            len(self.choices) > 1, f"no element of {self.group} but the identity moves {self.moved} or fewer: {hint}"
        )

    @property
    def choices(self) -> np.ndarray:
        """List the elements that tokens are drawn from."""
        elements = np.array(group_elements(self.group))
        moving = (elements != np.arange(elements.shape[1])).sum(1)
        return np.flatnonzero(moving <= (elements.shape[1] if self.moved is None else self.moved)).astype(np.int64)

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        choices, table = self.choices, group_table(self.group)
        inputs = choices[rng.randint(len(choices), size=(n, length), dtype=np.int64)]
        answers = np.empty((length, n), dtype=np.int64)  # [T,B], transposed at the end
        state = np.zeros(n, dtype=np.int64)
        for t, token in enumerate(np.ascontiguousarray(inputs.T)):
            answers[t] = state = table[state, token]
        return self.batch(inputs, np.ascontiguousarray(answers.T))

    def read(self, tokens: list[int]) -> list[int]:
        elements = group_elements(self.group)
        things, answers = list(elements[0]), []
        for token in tokens:
            things = [elements[token][thing] for thing in things]
            answers.append(elements.index(tuple(things)))
        return answers
