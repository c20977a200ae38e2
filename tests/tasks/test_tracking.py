"""State tracking: the documented examples, the published distributions, and what groups and brackets must obey."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.tasks import IGNORED, Batch, make_task
from stateform.tasks.tracking import evaluate, group_elements, group_table

SIGNS = "01234+-*()="


def ids(text: str, signs: str) -> list[int]:
    return [signs.index(c) for c in text.split()]


def shares(values: torch.Tensor, n: int) -> np.ndarray:
    return np.bincount(values.flatten().numpy(), minlength=n) / values.numel()


# The examples in the docstrings; a dot asks for nothing.
@pytest.mark.parametrize(
    ("spec", "signs", "tokens", "labels"),
    [
        ("parity", "01", "1 0 1 1", "1 1 0 1"),
        ("counting(modulus=3)", "012", "1 0 1 1", "1 1 2 0"),
        ("even_pairs", "01", "0 1 1 0 1", "0 1 1 0 1"),
        ("even_pairs", "01", "0 0 1 1 1 0", "0 0 1 1 1 0"),
        ("cycle_navigation", "01234", "2 2 1 0 0 0", "1 2 2 1 0 4"),
        ("modular_arithmetic", SIGNS, "2 + 3 * 4 =", "2 . 0 . 4 4"),
        ("modular_arithmetic", SIGNS, "- 1 - 1 * 3 =", ". 4 . 3 . 1 1"),
        ("modular_arithmetic(brackets=True)", SIGNS, "( 2 - ( 3 + 1 ) ) =", ". . . . . . . . . 3"),
        ("modular_arithmetic(brackets=True)", SIGNS, "( - 2 * ( - 3 ) ) =", ". . . . . . . . . 1"),
        ("group_word", "012345", "1 2 5", "1 3 2"),
        ("dyck", "([)]_", "( [ ] ) (", ") ] ) _ )"),
    ],
)
def test_documented_examples(spec: str, signs: str, tokens: str, labels: str) -> None:
    inputs = torch.tensor([ids(tokens, signs)])
    answers = make_task(spec).oracle(Batch(inputs, inputs))[0].tolist()
    expected = [IGNORED if c == "." else signs.index(c) for c in labels.split()]
    assert [a if e != IGNORED else IGNORED for a, e in zip(answers, expected, strict=True)] == expected


@pytest.mark.parametrize("name", ["parity", "counting", "even_pairs", "cycle_navigation", "group_word", "dyck"])
def test_where_labels_sit(name: str) -> None:
    every = make_task(name).sample(50, seed=1)
    last = make_task(name, {"every_token": False}).sample(50, seed=1)
    assert torch.equal(every.inputs, last.inputs)
    assert (every.labels != IGNORED).all()
    assert (last.labels[:, :-1] == IGNORED).all() and torch.equal(last.labels[:, -1], every.labels[:, -1])


@pytest.mark.parametrize(
    ("spec", "n"),
    [("parity", 2), ("counting", 2), ("even_pairs", 2), ("cycle_navigation", 3), ("group_word(group='A5')", 60)],
)
def test_tokens_are_uniform_and_independent(spec: str, n: int) -> None:
    tokens = make_task(spec).sample(4000, seed=5).inputs
    assert np.abs(shares(tokens, n) - 1 / n).max() < 0.15 / n
    neighbours = tokens[:, :-1] * n + tokens[:, 1:]
    if n <= 3:
        assert np.abs(shares(neighbours, n * n) - 1 / n**2).max() < 0.05 / n**2
    first = tokens[:, 0]
    assert abs(float((first == first.roll(1)).float().mean()) - 1 / n) < 0.04, "rows differ"


@pytest.mark.parametrize("name", ["parity", "counting", "cycle_navigation", "group_word"])
def test_answers_late_in_the_sequence_are_uniform(name: str) -> None:
    task = make_task(name)
    last = task.sample(4000, seed=2).labels[:, -1]
    assert np.abs(shares(last, task.n_out) - 1 / task.n_out).max() < 0.03


def test_lengths_grow_from_training_to_test() -> None:
    task = make_task("parity")
    assert (task.min_length, task.length, task.test_lengths) == (3, 40, (40, 64, 128, 256))
    assert make_task("parity(length=128)").test_lengths == (128, 256)
    assert make_task("parity(length=2)").min_length == 2


# -- expressions ------------------------------------------------------------------------------------------------------


def text(tokens: torch.Tensor, modulus: int = 5) -> str:
    signs = [*map(str, range(modulus)), *"+-*()="]
    return "".join(signs[i] for i in tokens.tolist())


@pytest.mark.parametrize("length", [2, 3, 4, 5, 12, 41])
def test_flat_expressions(length: int) -> None:
    batch = make_task("modular_arithmetic").sample(2000, seed=3, length=length)
    starts = (length - 1) % 2 == 0
    for row, labels in zip(batch.inputs[:100], batch.labels[:100]):
        expression = text(row)
        assert expression[-1] == "=" and expression.startswith("-") == starts
        asked = [t for t in range(length) if labels[t] != IGNORED]
        assert asked == [t for t in range(length) if expression[t] in "01234="]
        for t in asked:  # Python's own arithmetic
            assert labels[t] == eval(expression[: t + 1].rstrip("=")) % 5
    numbers, operators = batch.inputs[:, starts:-1:2], batch.inputs[:, starts + 1 : -1 : 2]
    assert np.abs(shares(numbers, 5) - 0.2).max() < 0.04
    if operators.numel():
        assert np.abs(shares(operators - 5, 3) - 1 / 3).max() < 0.04
    last = make_task("modular_arithmetic(every_token=False)").sample(2000, seed=3, length=length)
    assert torch.equal(last.inputs, batch.inputs) and (last.labels[:, :-1] == IGNORED).all()
    assert torch.equal(last.labels[:, -1], batch.labels[:, -1])


def published_expression(size: int, rng: np.random.RandomState, operators: str) -> str:
    """An expression of so many tokens by the steps of the original: small sizes by hand, others by splitting."""
    number = str(rng.randint(5))
    if size <= 4:
        return [number, f"-{number}", f"({number})", f"(-{number})"][size - 1]
    left = rng.randint(1, size - 3)
    a = published_expression(left, rng, operators)
    b = published_expression(size - left - 3, rng, operators)
    return f"({a}{operators[rng.randint(len(operators))]}{b})"


def depths(expressions: list[str]) -> np.ndarray:
    """How often each depth of brackets occurs, over all tokens."""
    found: Counter[int] = Counter()
    for expression in expressions:
        depth = 0
        for c in expression:
            depth += (c == "(") - (c == ")")
            found[min(depth, 11)] += 1
    total = sum(found.values())
    return np.array([found[d] / total for d in range(12)])


@pytest.mark.parametrize("operators", ["+-*", "+-"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9, 30])
def test_nested_expressions(size: int, operators: str) -> None:
    task = make_task("modular_arithmetic(brackets=True)", {"multiply": "*" in operators})
    batch = task.sample(2000, seed=4, length=size + 1)
    ours = [text(row) for row in batch.inputs]
    assert (batch.labels[:, :-1] == IGNORED).all()
    assert all(e[-1] == "=" and label == eval(e[:-1]) % 5 for e, label in zip(ours, batch.labels[:, -1].tolist()))
    rng = np.random.RandomState(0)
    theirs = [published_expression(size, rng, operators) + "=" for _ in range(2000)]
    for sign in SIGNS:
        a, b = (sum(e.count(sign) for e in those) / len(those) for those in (ours, theirs))
        assert abs(a - b) < 0.06 + 0.06 * b, sign
    assert np.abs(depths(ours) - depths(theirs)).max() < 0.02
    # Where the outermost operator is: the split.
    assert len({len(e) for e in ours}) == 1
    splits = [np.bincount([_outer(e) for e in those], minlength=size + 1) / 2000 for those in (ours, theirs)]
    assert np.abs(splits[0] - splits[1]).max() < 0.05
    assert ((splits[0] > 0) == (splits[1] > 0)).all()


def _outer(expression: str) -> int:
    """The place of the operator of the outermost bracket; 0 if there is none."""
    depth = 0
    for t, c in enumerate(expression):
        depth += (c == "(") - (c == ")")
        if depth == 1 and c in "+-*" and expression[t - 1] in "01234)":
            return t
    return 0


def test_the_reader_of_expressions_is_python_s() -> None:
    for expression in ("3", "-3", "(-3)", "(1+-2)", "(2*-3)", "((4-1)*(2-(3*4)))", "10-3*12", "-2*3-1", "(-1--1)"):
        for modulus in (2, 5, 13):
            assert evaluate(expression, modulus) == eval(expression) % modulus, expression


# -- groups -----------------------------------------------------------------------------------------------------------

SIZES = {"S2": 2, "S3": 6, "S4": 24, "S5": 120, "A3": 3, "A4": 12, "A5": 60, "Z2": 2, "Z5": 5, "Z60": 60}


@pytest.mark.parametrize("group", SIZES)
def test_tables_are_groups(group: str) -> None:
    table, n = group_table(group), SIZES[group]
    assert table.shape == (n, n)
    assert (table[0] == np.arange(n)).all() and (table[:, 0] == np.arange(n)).all(), "element 0 is the identity"
    assert (np.sort(table, 0) == np.arange(n)[:, None]).all() and (np.sort(table, 1) == np.arange(n)).all()
    some = np.random.RandomState(0).randint(n, size=(3, 5000))
    a, b, c = some
    assert (table[table[a, b], c] == table[a, table[b, c]]).all(), "associative"
    assert (table == table.T).all() == (group[0] == "Z" or n <= 3)


@pytest.mark.parametrize(
    ("group", "orders"),
    [
        ("S3", {1: 1, 2: 3, 3: 2}),
        ("S4", {1: 1, 2: 9, 3: 8, 4: 6}),
        ("A5", {1: 1, 2: 15, 3: 20, 5: 24}),
        ("S5", {1: 1, 2: 25, 3: 20, 4: 30, 5: 24, 6: 20}),
        ("Z5", {1: 1, 5: 4}),
    ],
)
def test_orders_of_the_elements(group: str, orders: dict[int, int]) -> None:
    table = group_table(group)

    def order(element: int) -> int:
        power, count = element, 1
        while power:
            power, count = int(table[power, element]), count + 1
        return count

    assert Counter(order(i) for i in range(len(table))) == orders


@pytest.mark.parametrize(("moved", "n"), [(2, 11), (3, 31), (4, 76), (5, 120)])
def test_tokens_that_move_few_things(moved: int, n: int) -> None:
    task = make_task(f"group_word(group='S5', moved={moved})")
    tokens = task.sample(500, seed=1).inputs
    elements = group_elements("S5")
    assert len(set(tokens.flatten().tolist())) == n
    assert all(sum(x != i for i, x in enumerate(elements[t])) <= moved for t in set(tokens.flatten().tolist()))
    assert len(set(task.sample(500).labels.flatten().tolist())) == 120, "products are all of the group"


# -- brackets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kinds", "max_depth"), [(1, 3), (2, 5), (8, 2)])
def test_brackets(kinds: int, max_depth: int) -> None:
    tokens = make_task("dyck", {"kinds": kinds, "max_depth": max_depth}).sample(2000, seed=1).inputs
    opens = tokens < kinds
    depth = (2 * opens.long() - 1).cumsum(1)
    assert depth.min() == 0 and depth.max() == max_depth
    assert int(tokens.max()) < 2 * kinds, "the answer that nothing is open is no input"
    before = torch.cat([torch.zeros_like(depth[:, :1]), depth[:, :-1]], 1)
    assert opens[before == 0].all() and not opens[before == max_depth].any()
    free = opens[(before > 0) & (before < max_depth)].float()
    assert abs(float(free.mean()) - 0.5) < 0.02
    assert np.abs(shares(tokens[opens], kinds) - 1 / kinds).max() < 0.02


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("counting(modulus=1)", "modulus is 1; expected 2 or more"),
        ("cycle_navigation(size=1)", "size is 1; expected a cycle of 2"),
        ("modular_arithmetic(modulus=1)", "modulus is 1"),
        ("modular_arithmetic(length=1)", "length is 1; expected 2 or more: a number and '='"),
        ("group_word(group='S6')", r"group is 'S6'; expected S2 to S5 \(all permutations\), A3 to A5"),
        ("group_word(group='D4')", "group is 'D4'"),
        ("group_word(group=5)", "group is 5; expected a string"),
        ("group_word(group='A5', moved=2)", "no element of A5 but the identity moves 2 or fewer"),
        ("dyck(kinds=0)", "kinds is 0"),
        ("dyck(max_depth=0)", "max_depth is 0"),
        ("parity(every_token=3)", "every_token is 3; expected True or False"),
    ],
)
def test_what_does_not_go_together(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)
