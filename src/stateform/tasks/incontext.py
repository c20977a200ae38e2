"""In-context learning: linear regression, regular languages, cellular automata; each example has a rule of its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from .base import IGNORED, Batch, Split, Task, register_task
from .recall import Ints, batch_of, first_seen, whole_numbers, with_answers


@register_task("icl_regression", source="Garg et al. 2022, arXiv 2208.01066")
@dataclass(frozen=True, kw_only=True)
class ICLRegression(Task):
    """In-context linear regression: points x and their y = w.x + noise, in turns; y is to be predicted from x.

    With dim=2 and length=5 (tokens are columns, `.` is NaN):

        inputs   x11  0   x21  0   x31
                 x12  0   x22  0   x32
                 0    y1  0    y2  0
        labels   y1   .   y2   .   y3

    Each example has a w of its own; x is standard normal, w normal with variance 1/dim, so that y has variance 1 and
    the error is the one that the paper plots (it has variance 1 for w, and divides the error by dim). Its y is in the
    first number of a token like that of x; here it has a number of its own, as a model without position codes could not
    tell the two apart. The paper has 20 dimensions and 41 points, that is length 82.

    In training all points are asked for, as in the paper. In the valid and test splits without noise only those after
    more than `dim` others are: these are determined, up to rounding. With noise, all are, and least squares with a
    ridge (`oracle`) is the best there is, not exact.
    """

    metric: ClassVar[Literal["accuracy", "mse", "bits"]] = "mse"

    dim: int = 20
    """Numbers of a point."""
    length: int = 82
    """Tokens of an example, two a point: more than twice dim + 1."""
    noise: float = 0.0
    """Standard deviation of the noise on y."""

    @property
    def vocab_size(self) -> None:
        return None

    @property
    def d_input(self) -> int:
        return self.dim + 1

    @property
    def n_out(self) -> int:
        return 1

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length)

    def check(self) -> None:
        require(self.dim >= 1, f"dim is {self.dim}; expected 1 or more")
        require(0 <= self.noise < float("inf"), f"noise is {self.noise:g}; expected a standard deviation, 0 or more")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 2 * self.dim + 3
        require(
            length >= least,
            f"points of {self.dim} numbers need length {least} or more, for {self.dim + 1} of them with their y and "
            f"another; length is {length}: ask for fewer numbers or a longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        points = (length + 1) // 2
        x = rng.standard_normal((n, points, self.dim)).astype(np.float32)
        w = rng.standard_normal((n, self.dim, 1)) / np.sqrt(self.dim)
        y = x.astype(np.float64) @ w + self.noise * rng.standard_normal((n, points, 1))
        tokens = np.zeros((n, points, 2, self.dim + 1), dtype=np.float32)
        tokens[:, :, 0, :-1] = x
        tokens[:, :, 1, -1:] = y
        labels = np.full((n, points, 2, 1), np.nan, dtype=np.float32)
        asked = 0 if split == "train" or self.noise else self.dim + 1
        labels[:, asked:, 0] = y[:, asked:]
        rows = [torch.from_numpy(x.reshape(n, 2 * points, -1)[:, :length].copy()) for x in (tokens, labels)]
        return Batch(rows[0], rows[1])

    def oracle(self, batch: Batch) -> Tensor:
        tokens = batch.inputs.double().numpy()
        answers = np.zeros(batch.labels.shape)
        for i, row in enumerate(tokens):
            x, y = row[::2, :-1], row[1::2, -1]
            for t in range(len(x)):
                # The mean of w given the points so far; without noise, the shortest w that fits them.
                fit = x[:t].T @ x[:t] + self.noise**2 * self.dim * np.eye(self.dim)
                w = np.linalg.solve(fit, x[:t].T @ y[:t]) if self.noise else np.linalg.lstsq(x[:t], y[:t])[0]
                answers[i, 2 * t] = x[t] @ w
        return torch.from_numpy(answers).float()


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

        # What a beginning went on with is known if it went on before; where the word ended, nothing is learned.
        time = np.arange(length + 1)
        went_on = np.where(separators, -1 - time, beginnings * 2)
        asked = ~separators
        if split != "train":
            asked = forced & (first_seen(went_on) < time)
        return tokens[:, :-1].copy(), np.where(asked, tokens, IGNORED)[:, 1:].copy()

    def _automata(self, n: int, rng: np.random.RandomState) -> tuple[Ints, Ints, Ints]:
        """Random automata: how many ways a state has [n,S]; their symbols and where they lead [n,S,3]."""
        most = self.max_states
        states = 4 + whole_numbers(rng, most - 3, n, 1, 1)
        letters = 4 + whole_numbers(rng, self.n_symbols - 3, n, 1, 1)
        ways = 1 + whole_numbers(rng, 3, n, most)
        order = np.argsort(rng.random_sample((n, self.n_symbols)), axis=1)  # the first ones are the alphabet

        def three(choices: int, allowed: np.ndarray) -> Ints:
            """Three different allowed ones for each state."""
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


@register_task("cellular_automaton", source="elementary cellular automata: Wolfram 1983, Rev. Mod. Phys. 55, 601")
@dataclass(frozen=True, kw_only=True)
class CellularAutomaton(Task):
    """Elementary cellular automata: rows of cells in a ring, each made from the one before; the next row is asked for.

    With n_rows=2, rule=90 (a cell becomes the sum of its neighbours, modulo 2) and length=12 (2 asks, `.` is ignored):

        inputs  1 0 0 0  0 1 0 1  2 2 2 2
        labels  . . . .  . . . .  0 0 0 0

    The first row is random. A row is length / (n_rows + 1) cells wide; what remains are tokens 2 in front. With
    rule=None each example has a random rule of its own, to be found from the rows; only cells with neighbours that the
    rows show somewhere are asked for (in training all are).
    """

    rule: int | None = 110
    """Number of the rule, 0 to 255, bit 4 left + 2 middle + right of which is the new cell; None: one an example."""
    n_rows: int = 3
    """Rows to read."""
    length: int = 64
    """Tokens of an example, at least three for each row, the asked one included."""

    @property
    def vocab_size(self) -> int:
        return 3

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length, 4 * self.length)

    def check(self) -> None:
        require(
            self.rule is None or 0 <= self.rule <= 255,
            f"rule is {self.rule}; expected a number from 0 to 255, or None for a random one in each example",
        )
        least = 1 if self.rule is not None else 2
        require(
            self.n_rows >= least,
            f"n_rows is {self.n_rows}; expected {least} or more"
            + ("" if self.rule is not None else ": without a rule given, there is none to be seen in one row"),
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 3 * (self.n_rows + 1)
        require(
            length >= least,
            f"{self.n_rows} rows of three cells or more, and the row that is asked for, need length {least} or more; "
            f"length is {length}: ask for fewer rows or a longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        rows, labels = self._rows(n, length, rng, split)
        while len(bad := np.nonzero((labels == IGNORED).all(1))[0]):  # all neighbours are new, which is rare
            rows[bad], labels[bad] = self._rows(len(bad), length, rng, split)
        return batch_of(rows, labels)

    def _rows(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> tuple[Ints, Ints]:
        width = length // (self.n_rows + 1)
        rules = whole_numbers(rng, 256, n, 1) if self.rule is None else np.full((n, 1), self.rule, dtype=np.int64)
        row, rows, seen = whole_numbers(rng, 2, n, width), [], np.zeros((n, 8), dtype=bool)
        for _ in range(self.n_rows):
            rows.append(row)
            around = 4 * np.roll(row, 1, axis=1) + 2 * row + np.roll(row, -1, axis=1)
            known = np.take_along_axis(seen, around, axis=1)
            np.put_along_axis(seen, around, True, axis=1)
            row = (rules >> around) & 1
        inputs = np.full((n, length), 2, dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        used = width * (self.n_rows + 1)
        inputs[:, length - used : length - width] = np.concatenate(rows, axis=1)
        labels[:, length - width :] = (
            row if self.rule is not None or split == "train" else np.where(known, row, IGNORED)
        )
        return inputs, labels

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for tokens in batch.inputs.tolist():
            width = len(tokens) // (self.n_rows + 1)
            cells = "".join(map(str, tokens[len(tokens) % (self.n_rows + 1) : -width]))
            rows = [cells[at : at + width] for at in range(0, len(cells), width)]
            becomes = {}
            if self.rule is not None:
                becomes = {f"{7 - i:03b}": int(new) for i, new in enumerate(f"{self.rule:08b}")}
            for row, after in itertools.pairwise(rows):
                becomes.update(zip(_neighbours(row), map(int, after)))
            start = len(tokens) - width
            asked = enumerate(_neighbours(rows[-1]), start=start)
            found.append({t: becomes[around] for t, around in asked if around in becomes})
        return with_answers(batch, found)


def _neighbours(row: str) -> list[str]:
    """Each cell with those beside it, in a ring."""
    ring = row[-1] + row + row[0]
    return [ring[i : i + 3] for i in range(len(row))]
