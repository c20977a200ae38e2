"""Recall and copying: the published distributions, step by step, and what must never happen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stateform.errors import StateformError
from stateform.tasks import IGNORED, make_task
from stateform.tasks.recall import distinct, first_seen

from .alike import assert_alike, assert_documented, assert_shares


@pytest.mark.parametrize(
    ("spec", "dot"),
    [
        ("mqar(vocab_size=12, length=12, n_pairs=2)", 0),
        ("induction(vocab_size=6, length=8)", IGNORED),
        ("copying(vocab_size=6, length=8)", IGNORED),
        ("selective_copy(vocab_size=6, length=10, n_copy=3)", IGNORED),
    ],
)
def test_documented_examples(spec: str, dot: int) -> None:
    assert_documented(spec, dot)


@pytest.mark.parametrize(("choices", "count"), [(6, 3), (5, 3), (4, 4), (9, 1)])
def test_selections_are_equally_likely(choices: int, count: int) -> None:
    drawn = distinct(np.random.RandomState(0), choices, 20_000, count)
    every = list(itertools.permutations(range(choices), count))
    found = {selection: 0 for selection in every}
    for selection in map(tuple, drawn.tolist()):
        found[selection] += 1
    assert_shares(np.array(list(found.values())), np.full(len(every), 1 / len(every)))


def test_first_seen() -> None:
    codes = np.random.RandomState(0).randint(-5, 5, size=(50, 12))
    expected = [[row.index(code) for code in row] for row in codes.tolist()]
    assert first_seen(codes).tolist() == expected


# -- MQAR -------------------------------------------------------------------------------------------------------------


def published_mqar(
    n: int, vocab_size: int, length: int, n_pairs: int, power_a: float, random_non_queries: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The published recipe, one example after the other."""
    rng = np.random.RandomState(seed)
    context, half = 2 * n_pairs, vocab_size // 2
    all_inputs, all_labels = [], []
    for _ in range(n):
        keys = rng.choice(np.arange(1, half), n_pairs, replace=False)
        values = rng.choice(np.arange(half, vocab_size), n_pairs, replace=False)
        space = (length - context) // 2
        p = power_a * np.arange(1, space + 1) ** (power_a - 1)
        gaps = rng.choice(space, n_pairs, replace=False, p=p / p.sum())
        # A sequence that is one token longer; inputs leave the last one out, labels the first.
        sequence, answers = np.zeros(length + 1, dtype=int), np.full(length + 1, IGNORED)
        sequence[0:context:2], sequence[1:context:2] = keys, values
        sequence[context + 2 * gaps] = keys
        answers[context + 2 * gaps + 1] = values
        inputs, labels = sequence[:-1], answers[1:]
        if random_non_queries:
            inputs[inputs == 0] = rng.randint(vocab_size, size=(inputs == 0).sum())
        all_inputs.append(inputs)
        all_labels.append(labels)
    return np.array(all_inputs), np.array(all_labels)


def mqar_features(inputs: np.ndarray, labels: np.ndarray, vocab_size: int, n_pairs: int) -> np.ndarray:
    """Where it is asked; where the first pairs come back, and in which order; which keys, values and fillings."""
    asked = labels != IGNORED
    # A random filling may equal a key: its query is where the label is.
    back = [(asked & (labels == inputs[:, [2 * i + 1]])).argmax(1) for i in range(n_pairs)]
    bins = np.linspace(0, vocab_size, 9)

    def histogram(tokens: np.ndarray) -> list[np.ndarray]:
        return [((tokens >= low) & (tokens < high)).sum(1) for low, high in itertools.pairwise(bins)]

    filling = np.where(asked, -1, inputs)[:, 2 * n_pairs :]
    order = [back[0] < back[1], (back[0] < back[1]) & (back[1] < back[-1])]
    columns = [*asked.T, *back, *(b**2 for b in back), *order, (filling == 0).sum(1)]
    columns += histogram(inputs[:, : 2 * n_pairs : 2]) + histogram(inputs[:, 1 : 2 * n_pairs : 2]) + histogram(filling)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("random_non_queries", [False, True])
@pytest.mark.parametrize(
    ("vocab_size", "length", "n_pairs", "power_a"),
    [(8192, 64, 4, 0.01), (64, 64, 8, 0.01), (101, 48, 12, 1.0), (64, 40, 5, 2.5)],
)
def test_mqar_is_the_published_one(
    vocab_size: int, length: int, n_pairs: int, power_a: float, random_non_queries: bool
) -> None:
    n = 3000
    task = make_task(
        "mqar",
        {
            "vocab_size": vocab_size,
            "length": length,
            "n_pairs": n_pairs,
            "power_a": power_a,
            "random_non_queries": random_non_queries,
        },
    )
    batch = task.sample(n, seed=7)
    theirs = published_mqar(n, vocab_size, length, n_pairs, power_a, random_non_queries, seed=11)
    ours = (batch.inputs.numpy(), batch.labels.numpy())
    assert_alike(mqar_features(*ours, vocab_size, n_pairs), mqar_features(*theirs, vocab_size, n_pairs))


def test_mqar_gaps_have_their_exact_probabilities() -> None:
    """Two pairs on four places: p_i p_j / (1 - p_i), for the places of the first and of the second pair."""
    batch = make_task("mqar(vocab_size=16, length=12, n_pairs=2, power_a=0.3)").sample(40_000, seed=1)
    inputs = batch.inputs.numpy()
    first, second = ((inputs[:, 4::2] == inputs[:, [at]]).argmax(1) for at in (0, 2))
    counts = np.zeros((4, 4))
    np.add.at(counts, (first, second), 1)
    p = np.arange(1, 5) ** (0.3 - 1)
    p /= p.sum()
    expected = p[:, None] * p / (1 - p[:, None])
    np.fill_diagonal(expected, 0)
    assert expected.sum() == pytest.approx(1)
    assert_shares(counts.ravel(), expected.ravel())


@pytest.mark.parametrize("spec", ["mqar", "mqar(vocab_size=18, length=32, n_pairs=8)", "mqar(random_non_queries=True)"])
def test_mqar_invariants(spec: str) -> None:
    task = make_task(spec)
    half, pairs = task.vocab_size // 2, task.n_pairs
    batch = task.sample(200, seed=3)
    for row, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        keys, values = row[: 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < half for key in keys) and all(half <= value < task.vocab_size for value in values)
        asked = [t for t, label in enumerate(labels) if label != IGNORED]
        assert all(t >= 2 * pairs and t % 2 == 0 for t in asked)
        assert sorted(row[t] for t in asked) == sorted(keys), "each key is asked for once"
        if not task.random_non_queries:
            assert all(row[t] == 0 for t in range(2 * pairs, task.length) if t not in asked)


def test_mqar_that_cannot_be() -> None:
    with pytest.raises(StateformError, match="8 pairs need length 32 or more; length is 16: ask for fewer pairs"):
        make_task("mqar(n_pairs=8, length=16)")
    with pytest.raises(StateformError, match="8 pairs need length 32 or more; length is 30"):
        make_task("mqar(n_pairs=8)").sample(2, length=30)
    with pytest.raises(StateformError, match="length is 65; expected an even number, such as 66"):
        make_task("mqar(length=65)")
    with pytest.raises(StateformError, match="8 pairs need a vocabulary of 18 tokens or more"):
        make_task("mqar(n_pairs=8, vocab_size=17)")
    with pytest.raises(StateformError, match="power_a is 0; expected a number above 0"):
        make_task("mqar(power_a=0)")
    with pytest.raises(StateformError, match="n_pairs is 0"):
        make_task("mqar(n_pairs=0)")


# -- induction, copying -----------------------------------------------------------------------------------------------


def test_induction_is_the_published_one() -> None:
    """The published steps: random tokens, the trigger behind them; the first trigger anywhere but in the last two."""
    n, length, vocab_size = 4000, 12, 6
    rng = np.random.RandomState(5)
    inputs = np.empty((n, length), dtype=int)
    answers = np.empty(n, dtype=int)
    for i in range(n):
        tokens = [*rng.randint(vocab_size - 1, size=length - 1), vocab_size - 1]
        at = rng.randint(length - 1 - 2)
        answers[i], tokens[at] = tokens[at + 1], vocab_size - 1
        inputs[i] = tokens
    batch = make_task("induction", {"length": length, "vocab_size": vocab_size}).sample(n, seed=2)
    assert (batch.labels[:, :-1] == IGNORED).all()

    def features(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return np.concatenate([inputs[:, :, None] == np.arange(6), (answers[:, None] == np.arange(6))[:, None]], 1)

    ours = features(batch.inputs.numpy(), batch.labels[:, -1].numpy())
    assert_alike(ours.reshape(n, -1), features(inputs, answers).reshape(n, -1))
    assert ((batch.inputs == vocab_size - 1).sum(1) == 2).all()


@pytest.mark.parametrize("length", [2, 3, 16, 17, 64])
def test_copying_reads_the_copy_so_far(length: int) -> None:
    batch = make_task("copying", {"length": length}).sample(300, seed=1)
    size = length // 2
    start = length % 2
    string = batch.inputs[:, start : start + size]
    assert (batch.labels[:, :-size] == IGNORED).all() and (batch.labels[:, -size:] == string).all()
    assert (batch.inputs[:, start + size] == 27).all() and (batch.inputs[:, :start] == 26).all()
    assert (batch.inputs[:, start + size + 1 :] == string[:, :-1]).all()
    assert_shares(np.bincount(string.numpy().ravel(), minlength=26), np.full(26, 1 / 26))


def test_selective_copy_scatters_evenly() -> None:
    batch = make_task("selective_copy(vocab_size=8, length=9, n_copy=3)").sample(8000, seed=1)
    inputs, labels = batch.inputs.numpy(), batch.labels.numpy()
    read = inputs[:, :6]
    assert (inputs[:, 6:] == 7).all() and (labels[:, :6] == IGNORED).all() and ((read != 6).sum(1) == 3).all()
    assert (read[read != 6].reshape(-1, 3) == labels[:, 6:]).all()
    places = (read != 6) @ (2 ** np.arange(6))
    counts = np.bincount(places, minlength=64)
    possible = np.array([bin(i).count("1") == 3 for i in range(64)])
    assert_shares(counts, possible / possible.sum())
    assert_shares(np.bincount(labels[:, 6:].ravel()), np.full(6, 1 / 6))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("induction(vocab_size=2)", "vocab_size is 2; expected 3 or more"),
        ("induction(length=3)", "length is 3; expected 4 or more"),
        ("copying(vocab_size=3)", "vocab_size is 3; expected 4 or more"),
        ("copying(length=1)", "length is 1; expected 2 or more"),
        ("selective_copy(n_copy=0)", "n_copy is 0; expected 1 or more"),
        ("selective_copy(length=31)", "16 tokens to copy need length 32 or more; length is 31"),
        ("selective_copy(vocab_size=3)", "vocab_size is 3; expected 4 or more"),
    ],
)
def test_what_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)
