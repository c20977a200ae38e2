"""In-context regular languages: words of one random automaton, one after the other; the next symbol is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from ..recall import Ints, batch_of, first_seen, whole_numbers, with_answers


@register_task("icl_regular", source="Akyurek et al. 2024, arXiv 2401.12973 (RegBench)")
@dataclass(frozen=True, kw_only=True)
class ICLRegular(Task):
    """In-context regular languages: words of one random automaton, one after the other; the next symbol is predicted.

    With n_symbols=4 (4 separates words), in the test split:

        inputs  2 0 1 3 4 2 0 1 1 4 2 0 2
        labels  . . . . 2 0 . . . 2 0 . .

    Each example has an automaton of its own: 4 to `max_states` states, an alphabet of 4 to `n_symbols` symbols; each
    state has 1 to 3 ways out, all equally likely, each with a symbol of its own to a state of its own, not to itself. A
    word starts at state 0 and has 1 to `max_word` symbols. These are RegBench's distributions (it merges equivalent
    states, which changes no word). RegBench has 10 to 19 words in an example and pads; here words fill the length.

    In training every next symbol is asked for, separators left out, as published. In the valid and test splits only
    what a reader can be sure of is: the automaton leaves no choice, and a word with the same beginning went on before
    (that is what the oracle looks up): some 20 symbols an example; one in eight would have none and is drawn anew.
    RegBench scores instead whether the predicted symbol is a possible one.
    """

    n_symbols: int = 18
    """Symbols, 4 or more; token `n_symbols` separates words."""
    length: int = 256
    """Tokens of an example, 32 or more."""
    max_states: int = 12
    """States of the largest automaton, 4 or more."""
    max_word: int = 49
    """Symbols of the longest word."""

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 1

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length)

    def check(self) -> None:
        for name in ("n_symbols", "max_states"):
            value = getattr(self, name)
            require(value >= 4, f"{name} is {value}; expected 4 or more: a state has up to 3 ways to others")
        require(self.max_word >= 1, f"max_word is {self.max_word}; expected 1 or more")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length >= 32, f"length is {length}; expected 32 or more: there are some words to learn from")
        least = 4 * (self.max_word + 1)
        require(
            length >= least,
            f"words of up to {self.max_word} symbols need length {least} or more; length is {length}: "
            "ask for shorter words (max_word) or a longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        inputs, labels = self._words(n, length, rng, split)
        # An example that asks for nothing is drawn anew.
        while len(bad := np.nonzero((labels == IGNORED).all(1))[0]):
            inputs[bad], labels[bad] = self._words(len(bad), length, rng, split)
        return batch_of(inputs, labels)

    def _words(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> tuple[Ints, Ints]:
        rows = np.arange(n)
        ways, symbols, targets = self._automata(n, rng)
        sizes = 1 + whole_numbers(rng, self.max_word, n, length // 2 + 1)
        ends = np.cumsum(sizes + 1, axis=1) - 1
        separators = np.zeros((n, length + 1), dtype=bool)
        row, word = np.nonzero(ends <= length)
        separators[row, ends[row, word]] = True

        state = np.zeros(n, dtype=np.int64)
        beginning = np.zeros(n, dtype=np.int64)  # a code of the word so far; it wraps around
        tokens = np.empty((n, length + 1), dtype=np.int64)
        forced = np.zeros((n, length + 1), dtype=bool)
        beginnings = np.empty((n, length + 1), dtype=np.int64)
        chances = rng.random_sample((length + 1, n))
        factor = np.int64(6364136223846793005)
        for t in range(length + 1):
            end = separators[:, t]
            forced[:, t], beginnings[:, t] = (ways[rows, state] == 1) & ~end, beginning
            way = (chances[t] * ways[rows, state]).astype(np.int64)
            symbol = symbols[rows, state, way]
            tokens[:, t] = np.where(end, self.n_symbols, symbol)
            state = np.where(end, 0, targets[rows, state, way])
            beginning = np.where(end, 0, (beginning + symbol + 1) * factor)

        # A reader knows how a beginning goes on if it went on before; the end of a word teaches nothing.
        time = np.arange(length + 1)
        went_on = np.where(separators, -1 - time, beginnings * 2)
        asked = ~separators
        if split != "train":
            asked = forced & (first_seen(went_on) < time)
        return tokens[:, :-1].copy(), np.where(asked, tokens, IGNORED)[:, 1:].copy()

    def _automata(self, n: int, rng: np.random.RandomState) -> tuple[Ints, Ints, Ints]:
        """Draw random automata: the number of ways out of each state [n,S], their symbols and their targets [n,S,3]."""
        most = self.max_states
        states = 4 + whole_numbers(rng, most - 3, n, 1, 1)
        letters = 4 + whole_numbers(rng, self.n_symbols - 3, n, 1, 1)
        ways = 1 + whole_numbers(rng, 3, n, most)
        order = np.argsort(rng.random_sample((n, self.n_symbols)), axis=1)  # the first ones are the alphabet

        def three(choices: int, allowed: np.ndarray) -> Ints:
            """Draw three different allowed choices for each state."""
            scores = np.where(allowed, rng.random_sample((n, most, choices)), 2.0)
            return np.argsort(scores, axis=2)[:, :, :3]

        symbols = three(self.n_symbols, np.arange(self.n_symbols) < letters)
        targets = three(most, (np.arange(most) < states) & ~np.eye(most, dtype=bool))
        return ways, order[np.arange(n)[:, None, None], symbols], targets

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            went_on: dict[tuple[int, ...], int] = {}
            answers: dict[int, int] = {}
            word: tuple[int, ...] = ()
            for t, token in enumerate(row):
                if token == self.n_symbols:
                    word = ()
                else:
                    went_on[word] = token
                    word = (*word, token)
                if word in went_on:
                    answers[t] = went_on[word]
            found.append(answers)
        return with_answers(batch, found)
