"""State tracking: the tokens move a state, and the answer is where it is now. Trained short, tested long."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from .base import IGNORED, Batch, Split, Task, register_task

CHOMSKY = "Delétang et al. 2023, Neural Networks and the Chomsky Hierarchy (arXiv 2207.02098)"
EIGENVALUES = "Grazzi et al. 2025, Unlocking State-Tracking in Linear RNNs (arXiv 2411.12537)"


@dataclass(frozen=True, kw_only=True)
class Tracking(Task):
    """What the tasks of this file share: lengths 3 to 40 in training, up to 256 in tests, and an answer a token."""

    length: int = 40
    """Tokens of a training example."""
    every_token: bool = True
    """Whether each token asks for the state so far, or the last one alone."""

    @property
    def min_length(self) -> int:
        return min(3, self.length)

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, *(T for T in (64, 128, 256) if self.length < T))

    def batch(self, inputs: np.ndarray, answers: np.ndarray) -> Batch:
        """Tokens [B,T] and the answers to them [B,T], of which only the last is kept if only that is asked for."""
        if not self.every_token:
            answers[:, :-1] = IGNORED
        return Batch(torch.from_numpy(inputs), torch.from_numpy(answers))

    def oracle(self, batch: Batch) -> Tensor:
        return torch.tensor([self.read(tokens) for tokens in batch.inputs.tolist()])

    def read(self, tokens: list[int]) -> list[int]:
        """The answers to one sequence, by an automaton that takes one symbol after the other."""
        raise NotImplementedError


def walk(tokens: list[int], table: Sequence[Sequence[int]]) -> list[int]:
    """The states that an automaton passes through from state 0, where `table[state][token]` is the next state."""
    states, state = [], 0
    for token in tokens:
        state = table[state][token]
        states.append(state)
    return states


@register_task("parity", source=f"{CHOMSKY}; trained on lengths 3 to 40 in {EIGENVALUES}")
@dataclass(frozen=True, kw_only=True)
class Parity(Tracking):
    """Whether the number of ones so far is odd.

        tokens  1 0 1 1
        labels  1 1 0 1

    Tokens 0 and 1 are equally likely; the answer is 1 for an odd number. The original asks at the end alone
    (`every_token=False`).
    """

    @property
    def vocab_size(self) -> int:
        return 2

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits.cumsum(1) % 2)

    def read(self, tokens: list[int]) -> list[int]:
        return walk(tokens, [[0, 1], [1, 0]])


@register_task("counting", source=f"counting modulo m, after {EIGENVALUES}")
@dataclass(frozen=True, kw_only=True)
class Counting(Tracking):
    """How many ones there were so far, modulo m.

        tokens  1 0 1 1     m = 3
        labels  1 1 2 0

    Tokens 0 and 1 are equally likely, so that positions alone do not give the answer; in the paper's theorem, and with
    `every_token=False`, the count is wanted at the end.
    """

    modulus: int = 3
    """What the count is taken modulo of; 2 is parity."""

    @property
    def vocab_size(self) -> int:
        return self.modulus

    def check(self) -> None:
        require(self.modulus >= 2, f"modulus is {self.modulus}; expected 2 or more")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits.cumsum(1) % self.modulus)

    def read(self, tokens: list[int]) -> list[int]:
        return walk(tokens, [[count, (count + 1) % self.modulus] for count in range(self.modulus)])


@register_task("even_pairs", source=CHOMSKY)
@dataclass(frozen=True, kw_only=True)
class EvenPairs(Tracking):
    """Whether the neighbours 01 and 10 come, together, an odd number of times so far.

        tokens  0 1 1 0 1
        labels  0 1 1 0 1

    The answer is 0 for an even number, as in the original: then the first token equals the present one. The original
    asks at the end alone (`every_token=False`).
    """

    @property
    def vocab_size(self) -> int:
        return 2

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        bits = rng.randint(2, size=(n, length), dtype=np.int64)
        return self.batch(bits, bits ^ bits[:, :1])

    def read(self, tokens: list[int]) -> list[int]:
        # States: an even or odd number of changes, and the last token; state 4 is the start.
        table = [[2 * (odd ^ (last ^ token)) + token for token in (0, 1)] for odd in (0, 1) for last in (0, 1)]
        table.append([0, 1])
        states, state = [], 4
        for token in tokens:
            state = table[state][token]
            states.append(state // 2)
        return states


@register_task("cycle_navigation", source=CHOMSKY)
@dataclass(frozen=True, kw_only=True)
class CycleNavigation(Tracking):
    """Where one stands on a cycle after steps back, none and forward.

        tokens  2 2 1 0 0 0     size = 5
        labels  1 2 2 1 0 4

    Token 0 is a step back, 1 none, 2 a step forward, equally likely; the walk starts at place 0. The original asks at
    the end alone (`every_token=False`).
    """

    size: int = 5
    """Places on the cycle."""

    @property
    def vocab_size(self) -> int:
        return max(3, self.size)

    def check(self) -> None:
        require(self.size >= 2, f"size is {self.size}; expected a cycle of 2 places or more")

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        steps = rng.randint(3, size=(n, length), dtype=np.int64)
        return self.batch(steps, (steps - 1).cumsum(1) % self.size)

    def read(self, tokens: list[int]) -> list[int]:
        size = self.size
        return walk(tokens, [[(place - 1) % size, place, (place + 1) % size] for place in range(size)])


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
    """What values are taken modulo of."""
    brackets: bool = False
    """Whether expressions are nested (a context-free language) or not (a regular one)."""
    multiply: bool = True
    """Whether there are products, besides sums and differences."""

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
        # What was summed up before the present term, and that term: a product that may go on.
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
            # The numbers: the last token but for a bracket, after a minus where the length is even.
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
    """The value of an expression of numbers, `+ - * ( )` and spaces: innermost brackets are replaced by their value."""
    while inner := re.search(r"\(([^()]*)\)", expression):
        expression = expression[: inner.start()] + str(evaluate(inner[1], modulus)) + expression[inner.end() :]
    # A sign after a number starts a new term; others are the term's own. Of an empty expression the value is 0.
    terms = re.split(r"(?<=\d)\s*(?=[+-])", expression)
    numbers = [[int(number) for number in re.findall(r"\d+", term) or "0"] for term in terms]
    return sum((-1) ** term.count("-") * math.prod(factors) for term, factors in zip(terms, numbers)) % modulus


Permutation = tuple[int, ...]


@lru_cache
def group_elements(group: str) -> tuple[Permutation, ...]:
    """The elements of a group as permutations, the identity first: S and a number, A and a number, or Z and a number.

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
    """The multiplication table [n,n] of a group: entry [i,j] is the element that is first i, then j."""
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
    """How many things a token's element may move at most; None: any number."""

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
        """The elements that tokens are drawn from."""
        elements = np.array(group_elements(self.group))
        moving = (elements != np.arange(elements.shape[1])).sum(1)
        return np.flatnonzero(moving <= (elements.shape[1] if self.moved is None else self.moved)).astype(np.int64)

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        choices, table = self.choices, group_table(self.group)
        inputs = choices[rng.randint(len(choices), size=(n, length), dtype=np.int64)]
        answers = np.empty((length, n), dtype=np.int64)
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
        # The closing brackets that are due, above the answer that nothing is; what lies above `depth` is left-over.
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
