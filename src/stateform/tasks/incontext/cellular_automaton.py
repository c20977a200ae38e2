"""Elementary cellular automata: rows of cells in a ring, each made from the one before; the next row is asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import IGNORED, Batch, Split, Task, register_task
from ..recall import Ints, batch_of, whole_numbers, with_answers


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
    """List each cell with those beside it, in a ring."""
    ring = row[-1] + row + row[0]
    return [ring[i : i + 3] for i in range(len(row))]
