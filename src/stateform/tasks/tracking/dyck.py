"""Which bracket may close now: Dyck-(k, m), k kinds of brackets nested at most m deep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import require
from ..base import Batch, Split, register_task
from .walked import Tracking


@register_task("dyck", source="Hewitt et al. 2020, RNNs can generate bounded hierarchical languages (arXiv 2010.07515)")
@dataclass(frozen=True, kw_only=True)
class Dyck(Tracking):
    """Which bracket may close now: Dyck-(k, m), k kinds of brackets nested at most m deep.

        tokens  ( [ ] ) (     kinds = 2: 0 is "(", 1 is "[", 2 is ")", 3 is "]"
        labels  ) ] ) . )     the dot is token 4: nothing is open

    Opening brackets are tokens 0 to k-1, closing ones k to 2k-1; token 2k only answers that nothing is open. A bracket
    opens or closes with probability 1/2 where both are possible; kinds are equally likely. The original generates whole
    words, up to an end token, and looks at a language model's next token; these are beginnings of words, of a given
    length, and the answer is the one closing bracket among the possible next tokens.
    """

    kinds: int = 2
    """Kinds of brackets, k."""
    max_depth: int = 5
    """Brackets that may be open at the same time, m."""

    @property
    def vocab_size(self) -> int:
        return 2 * self.kinds + 1

    def check(self) -> None:
        require(self.kinds >= 1, f"kinds is {self.kinds}; expected 1 kind of brackets or more")
        require(self.max_depth >= 1, f"max_depth is {self.max_depth}; expected 1 or more")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        k, rows = self.kinds, np.arange(n)
        kinds = rng.randint(k, size=(length, n), dtype=np.int64)
        heads = rng.randint(2, size=(length, n), dtype=np.int64).astype(bool)
        depth = np.zeros(n, dtype=np.int64)
        # The closing brackets that are due lie above the answer "nothing is open"; entries above `depth` are stale.
        stack = np.full((n, self.max_depth + 2), 2 * k, dtype=np.int64)
        tokens, answers = np.empty_like(kinds), np.empty_like(kinds)
        for t in range(length):
            opens = (depth == 0) | (heads[t] & (depth < self.max_depth))
            tokens[t] = np.where(opens, kinds[t], stack[rows, depth])
            stack[rows, depth + 1] = k + kinds[t]
            depth += np.where(opens, 1, -1)
            answers[t] = stack[rows, depth]
        return self.batch(np.ascontiguousarray(tokens.T), np.ascontiguousarray(answers.T))

    def read(self, tokens: list[int]) -> list[int]:
        due, answers = [2 * self.kinds], []
        for token in tokens:
            if token < self.kinds:
                due.append(token + self.kinds)
            else:
                due.pop()
            answers.append(due[-1])
        return answers
