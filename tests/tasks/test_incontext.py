"""In-context tasks: the published distributions, what can be known, and what must hold of the rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.tasks import IGNORED, Batch, make_task

from .alike import assert_alike, assert_documented, assert_shares

RULES = "cellular_automaton(rule=None, n_rows=4, length=60)"


@pytest.mark.parametrize(
    "spec",
    ["icl_regular(n_symbols=4, max_word=4, length=32)", "cellular_automaton(n_rows=2, rule=90, length=12)"],
)
def test_documented_examples(spec: str) -> None:
    assert_documented(spec)


# -- regression -------------------------------------------------------------------------------------------------------


def test_regression_format() -> None:
    batch = make_task("icl_regression(dim=3, length=21)").sample(2000, seed=1)
    inputs, labels = batch.inputs, batch.labels
    assert (inputs[:, ::2, -1] == 0).all() and (inputs[:, 1::2, :-1] == 0).all()
    assert labels[:, 1::2].isnan().all() and (labels[:, :-1:2, 0] == inputs[:, 1::2, -1]).all()
    x, y = inputs[:, ::2, :-1].double(), labels[:, ::2, 0].double()
    assert x.mean().abs() < 0.02 and abs(x.var() - 1) < 0.02 and y.mean().abs() < 0.05 and abs(y.var() - 1) < 0.1
    # One w fits all points of an example, and these w have variance 1/3 in each direction.
    w = torch.linalg.lstsq(x, y[..., None]).solution
    assert torch.allclose((x @ w)[..., 0], y, atol=1e-5)
    covariance = w[..., 0].T @ w[..., 0] / len(w)
    assert torch.allclose(covariance, torch.eye(3, dtype=torch.float64) / 3, atol=0.05)


def test_regression_asks_in_the_test_for_what_is_determined() -> None:
    task = make_task("icl_regression(dim=4, length=20)")
    assert not task.sample(3, split="train").labels[:, ::2].isnan().any()
    labels = task.sample(3, split="test").labels
    assert labels[:, :10].isnan().all() and not labels[:, 10::2].isnan().any()


def test_the_least_error_before_all_is_known() -> None:
    """After t < dim points without noise, the shortest w that fits is off by (dim - t) / dim in the mean."""
    task = make_task("icl_regression(dim=4, length=20)")
    batch = task.sample(1500, seed=3)
    error = (task.oracle(batch) - batch.labels)[:, ::2, 0].square().mean(0)
    assert torch.allclose(error[:5], torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), atol=0.1)
    assert (error[5:] < 1e-6).all()


def test_regression_with_noise() -> None:
    task = make_task("icl_regression(dim=2, length=61, noise=0.5)")
    batch = task.sample(400, seed=3, split="test")
    assert not batch.labels[:, ::2].isnan().any()
    error = (task.oracle(batch) - batch.labels)[:, ::2, 0].square().mean(0)
    assert 1.05 < error[0] < 1.5 and 0.2 < error[-10:].mean() < 0.32, "from 1 + noise^2 to noise^2 and a little"


# -- regular languages ------------------------------------------------------------------------------------------------


def published_languages(n: int, length: int, n_symbols: int, max_states: int, max_word: int, seed: int) -> np.ndarray:
    """RegBench's steps, one automaton and one symbol after the other; here words go on until the length is full."""
    rng = np.random.RandomState(seed)
    examples = []
    for _ in range(n):
        states, letters = rng.randint(4, max_states + 1), rng.randint(4, n_symbols + 1)
        alphabet = rng.choice(n_symbols, letters, replace=False)
        ways = []
        for state in range(states):
            count = rng.randint(1, 4)
            others = [other for other in range(states) if other != state]
            ways.append(
                list(
                    zip(
                        rng.choice(alphabet, count, replace=False),
                        rng.choice(others, count, replace=False),
                        strict=True,
                    )
                )
            )
        tokens: list[int] = []
        while len(tokens) < length:
            state = 0
            for _ in range(rng.randint(1, max_word + 1)):
                symbol, state = ways[state][rng.randint(len(ways[state]))]
                tokens.append(symbol)
            tokens.append(n_symbols)
        examples.append(tokens[:length])
    return np.array(examples)


@pytest.mark.parametrize(("n_symbols", "max_states", "max_word"), [(18, 12, 15), (4, 4, 7), (6, 5, 1)])
def test_languages_are_the_published_ones(n_symbols: int, max_states: int, max_word: int) -> None:
    n, length = 1500, 64
    task = make_task(
        "icl_regular",
        {"n_symbols": n_symbols, "max_states": max_states, "max_word": max_word, "length": length},
    )

    def features(tokens: np.ndarray) -> np.ndarray:
        """Separators, symbols, how many follow each other in how many ways, how many words start alike."""
        counts = (tokens[:, :, None] == np.arange(n_symbols + 1)).sum(1)
        pairs = np.array([len(set(itertools.pairwise(row))) for row in tokens.tolist()])
        triples = np.array([len(set(zip(row[:-2], row[1:-1], row[2:], strict=True))) for row in tokens.tolist()])
        words = ["".join(chr(97 + token) for token in row).split(chr(97 + n_symbols)) for row in tokens.tolist()]
        starts = np.array([len({word[:1] for word in example}) for example in words])
        second = np.array([len({word[:2] for word in example}) for example in words])
        twice = (tokens[:, :-2] == tokens[:, 2:]).sum(1)
        columns = [pairs, pairs**2, triples, starts, starts**2, second, twice, (counts > 0).sum(1)]
        return np.concatenate([np.stack(columns, 1), tokens == n_symbols, counts, counts**2], axis=1)

    ours = task.sample(n, seed=2).inputs.numpy()
    assert_alike(features(ours), features(published_languages(n, length, n_symbols, max_states, max_word, seed=3)))


def test_what_is_asked_of_a_language() -> None:
    task = make_task("icl_regular")
    train = task.sample(30, split="train")
    following = train.inputs[:, 1:]
    expected = torch.where(following == 18, IGNORED, following)
    assert torch.equal(train.labels[:, :-1], expected)
    test = task.sample(300, split="test")
    asked = test.labels[:, :-1] != IGNORED
    assert torch.equal(test.labels[:, :-1][asked], test.inputs[:, 1:][asked])
    # Whatever is asked for, the same beginning went on with the same symbol each time, before and after.
    for row, labels in zip(test.inputs.tolist(), test.labels.tolist(), strict=True):
        went_on: dict[tuple[int, ...], set[int]] = {}
        word: tuple[int, ...] = ()
        beginnings: list[tuple[int, ...]] = []
        for token in row:
            if token == 18:
                word = ()
            else:
                went_on.setdefault(word, set()).add(token)
                word = (*word, token)
            beginnings.append(word)
        for beginning, label in zip(beginnings, labels, strict=True):
            assert label == IGNORED or went_on[beginning] == {label}


# -- cellular automata ------------------------------------------------------------------------------------------------


def grid(batch: Batch, n_rows: int) -> torch.Tensor:
    """The rows that are read, and the one that is asked for [n,n_rows+1,width]."""
    n, length = batch.inputs.shape
    width = length // (n_rows + 1)
    rows = batch.inputs[:, length - width * (n_rows + 1) : length - width].reshape(n, n_rows, width)
    return torch.cat([rows, batch.labels[:, None, length - width :]], dim=1)


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (90, lambda left, middle, right: left ^ right),
        (150, lambda left, middle, right: left ^ middle ^ right),
        (30, lambda left, middle, right: left ^ (middle | right)),
        (110, lambda left, middle, right: (middle | right) & ~(left & middle & right)),
        (170, lambda left, middle, right: right),
        (240, lambda left, middle, right: left),
        (204, lambda left, middle, right: middle),
        (0, lambda left, middle, right: 0 * middle),
        (255, lambda left, middle, right: 0 * middle + 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [64, 67])
def test_rules_follow_their_laws(rule: int, law, length: int) -> None:  # type: ignore[no-untyped-def]
    batch = make_task("cellular_automaton", {"rule": rule, "length": length}).sample(50, seed=1)
    rows = grid(batch, 3)
    for before, after in zip(rows.unbind(1)[:-1], rows.unbind(1)[1:], strict=True):
        assert torch.equal(law(before.roll(1, 1), before, before.roll(-1, 1)), after)
    assert (batch.inputs[:, -16:] == 2).all() and (batch.inputs[:, : length % 4] == 2).all()
    assert (batch.labels[:, :-16] == IGNORED).all()
    first = rows[:, 0]
    assert 0.4 < first.double().mean() < 0.6


def test_a_rule_in_each_example() -> None:
    task = make_task(RULES)
    train, test = task.sample(4000, seed=1), task.sample(300, seed=1, split="test")
    rows = grid(train, 4)
    assert (rows != IGNORED).all()
    # What becomes of each neighbourhood is one thing in an example, and each of two things half of the time.
    before, after = rows[:, :-1], rows[:, 1:]
    around = 4 * before.roll(1, 2) + 2 * before + before.roll(-1, 2)
    for code in range(8):
        here = around == code
        ones, shown = (after * here).sum((1, 2)), here.sum((1, 2))
        assert ((ones == 0) | (ones == shown)).all()
        first = here[:, 0].any(1)  # later rows depend on the rule
        assert_shares(torch.bincount((ones > 0)[first].long(), minlength=2).numpy(), np.array([0.5, 0.5]))
    # In the test only what the rows show is asked for, and all of that.
    answers = task.oracle(test)
    assert torch.equal(answers == IGNORED, test.labels == IGNORED)
    assert torch.equal(answers, test.labels)
    asked = (test.labels[:, -12:] != IGNORED).double().mean()
    assert 0.8 < asked < 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("icl_regression(dim=0)", "dim is 0; expected 1 or more"),
        ("icl_regression(length=42)", "points of 20 numbers need length 43 or more"),
        ("icl_regression(noise=-1)", "noise is -1; expected a standard deviation"),
        ("icl_regular(n_symbols=3)", "n_symbols is 3; expected 4 or more"),
        ("icl_regular(max_states=3)", "max_states is 3; expected 4 or more"),
        ("icl_regular(max_word=0)", "max_word is 0; expected 1 or more"),
        ("icl_regular(length=31)", "length is 31; expected 32 or more"),
        ("icl_regular(length=128)", "words of up to 49 symbols need length 200 or more"),
        ("cellular_automaton(rule=256)", "rule is 256; expected a number from 0 to 255"),
        ("cellular_automaton(n_rows=0)", "n_rows is 0; expected 1 or more"),
        ("cellular_automaton(rule=None, n_rows=1)", "n_rows is 1; expected 2 or more: without a rule given"),
        ("cellular_automaton(length=11)", "need length 12 or more; length is 11"),
    ],
)
def test_what_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)
