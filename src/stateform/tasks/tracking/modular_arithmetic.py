"""The value of an expression, modulo m, with products before sums."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import require
from ..base import IGNORED, Batch, Split, register_task
from .walked import CHOMSKY, EIGENVALUES, Tracking


@register_task("modular_arithmetic", source=f"{CHOMSKY}; trained on lengths 3 to 40 in {EIGENVALUES}")
@dataclass(frozen=True, kw_only=True)
class ModularArithmetic(Tracking):
    """The value of an expression, modulo m, with products before sums.

        tokens  2 + 3 * 4 =     modulus = 5, every_token=True: at each number the value of what precedes it and itself
        labels  2 . 0 . 4 4     (2, 2+3, 2+3*4), and at "=" that of the whole

        tokens  ( 2 - ( 3 + 1 ) ) =     brackets=True: at "=" alone
        labels  . . . . . . . . . 3

    The tokens are the numbers 0 to m-1 and, from m on, `+ - * ( ) =`. Without brackets, numbers and operators alternate
    and are equally likely; where the length leaves an even number of tokens before "=", the expression starts with
    a minus (the original drops a token there). With brackets, an expression of so many tokens is, as in the original, a
    number `d` (1), `-d` (2), `(d)` (3), `(-d)` (4), or else `(a?b)`, its parts split anywhere.
    The original has no "=", asks at the end alone (`every_token=False`), and, with brackets, does not multiply
    (`multiply=False`); the papers that train on lengths 3 to 40 do.
    """

    modulus: int = 5
    """Values are taken modulo this."""
    brackets: bool = False
    """True if expressions are nested (a context-free language), else they are flat (a regular one)."""
    multiply: bool = True
    """True if there are products, besides sums and differences."""

    @property
    def vocab_size(self) -> int:
        return self.modulus + 6

    def check(self) -> None:
        require(self.modulus >= 2, f"modulus is {self.modulus}; expected 2 or more")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length >= 2, f"length is {length}; expected 2 or more: a number and '='")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        inputs = np.full((n, length), self.modulus + 5, dtype=np.int64)
        answers = np.full((n, length), IGNORED, dtype=np.int64)
        if self.brackets:
            answers[:, -1] = self.fill(inputs[:, :-1], rng)
            return Batch(torch.from_numpy(inputs), torch.from_numpy(answers))
        m, first = self.modulus, (length - 1) % 2 == 0
        inputs[:, 0] = m + 1
        numbers = inputs[:, first:-1:2]
        numbers[:] = rng.randint(m, size=numbers.shape, dtype=np.int64)
        operators = inputs[:, first + 1 : -1 : 2]
        operators[:] = rng.randint(2 + self.multiply, size=operators.shape, dtype=np.int64) + m
        # The sum of the terms before the present one, and that term, a product that may go on.
        before, term = np.zeros(n, dtype=np.int64), (-numbers[:, 0] if first else numbers[:, 0]) % m
        values = [term]
        for number, operator in zip(numbers[:, 1:].T, operators.T):
            times = operator == m + 2
            before = np.where(times, before, before + term)
            term = np.where(times, term * number, np.where(operator == m + 1, -number, number)) % m
            values.append((before + term) % m)
        answers[:, first:-1:2] = np.stack(values, 1)
        answers[:, -1] = values[-1]
        return self.batch(inputs, answers)

    def fill(self, tokens: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """Write an expression into each row of the tokens [B,T], and return their values [B].

        All expressions of one depth, of all rows, are written at once, from the outermost inwards.
        """
        m = self.modulus
        minus, opening, closing = m + 1, m + 3, m + 4
        row, start = np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
        size = np.full(len(tokens), tokens.shape[1], dtype=np.int64)
        levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while len(row):
            whole = size >= 5
            wrapped = size >= 3
            tokens[row[wrapped], start[wrapped]] = opening
            tokens[row[wrapped], (start + size - 1)[wrapped]] = closing
            # Short parts are numbers: the last token but for a bracket, after a minus if the length is even.
            single = ~whole
            negative = single & (size % 2 == 0)
            values = rng.randint(m, size=len(row), dtype=np.int64)
            tokens[row[single], (start + size - 1 - wrapped)[single]] = values[single]
            tokens[row[negative], (start + wrapped)[negative]] = minus
            values = np.where(negative, -values, values) % m
            row, start, size = row[whole], start[whole], size[whole]
            left = 1 + (rng.random_sample(len(row)) * (size - 4)).astype(np.int64)
            operator = rng.randint(2 + self.multiply, size=len(row), dtype=np.int64)
            tokens[row, start + 1 + left] = m + operator
            levels.append((values, whole, operator))
            row = np.concatenate([row, row])
            start, size = np.concatenate([start + 1, start + 2 + left]), np.concatenate([left, size - left - 3])
        below = np.zeros(0, dtype=np.int64)
        for values, whole, operator in reversed(levels):
            a, b = below[: len(operator)], below[len(operator) :]
            values[whole] = np.choose(operator, [a + b, a - b, a * b]) % m
            below = values
        return below

    def read(self, tokens: list[int]) -> list[int]:
        signs = [*map(str, range(self.modulus)), *"+-*()="]
        if self.brackets:
            return [IGNORED] * (len(tokens) - 1) + [evaluate(" ".join(signs[i] for i in tokens[:-1]), self.modulus)]
        whole = [signs[i] for i in tokens]
        return [evaluate(" ".join(whole[: t + 1]).rstrip(" +-*="), self.modulus) for t in range(len(tokens))]


def evaluate(expression: str, modulus: int) -> int:
    """Compute the value of an expression of numbers, `+ - * ( )` and spaces; inner brackets are replaced by values."""
    while inner := re.search(r"\(([^()]*)\)", expression):
        expression = expression[: inner.start()] + str(evaluate(inner[1], modulus)) + expression[inner.end() :]
    # A sign after a number starts a new term; others are the term's own. Of an empty expression the value is 0.
    terms = re.split(r"(?<=\d)\s*(?=[+-])", expression)
    numbers = [[int(number) for number in re.findall(r"\d+", term) or "0"] for term in terms]
    return sum((-1) ** term.count("-") * math.prod(factors) for term, factors in zip(terms, numbers)) % modulus
