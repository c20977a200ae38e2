"""The six tasks of MAD: the published distributions, step by step, the published sweeps, fixed training sets."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.tasks import IGNORED, Split, make_task
from stateform.tasks.mad import MAD_SWEEPS, MAD_TRAIN_SIZES, mad_settings

from .alike import assert_alike, assert_documented, assert_shares


@pytest.mark.parametrize(
    "spec",
    [
        "mad_recall(vocab_size=8, length=10)",
        "mad_noisy_recall(vocab_size=12, noise_vocab_size=4, length=10)",
        "mad_fuzzy_recall(vocab_size=10, k_motif_size=2, v_motif_size=2, length=16)",
        "mad_memorization(vocab_size=10, length=6)",
        "mad_compression(vocab_size=4, length=5)",
        "mad_selective_copy(vocab_size=6, n_copy=3, length=12)",
    ],
)
def test_documented_examples(spec: str) -> None:
    assert_documented(spec)


def sample(spec: str, n: int, split: Split = "test", seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    batch = make_task(spec).sample(n, seed=seed, split=split)
    return batch.inputs.numpy(), batch.labels.numpy()


# -- recall of single tokens ------------------------------------------------------------------------------------------


def published_pairs(n: int, vocab: int, length: int, noise: int, frac: float, seed: int) -> tuple[np.ndarray, ...]:
    """The published steps for many queries: sequences as they are before the shift, and what is asked of each token."""
    rng = np.random.RandomState(seed)
    ordinary = vocab - noise
    key_ids, value_ids = np.arange(ordinary // 2), np.arange(ordinary // 2, ordinary)
    sequences: list[list[int]] = []
    targets: list[list[int]] = []
    while len(sequences) < n:
        tokens: list[int] = []
        asked: list[int] = []
        value_of: dict[int, int] = {}
        spared = rng.choice(length // 2)
        for slot in range(length // 2 - 1):
            if slot != spared and rng.random_sample() < frac:
                tokens += list(rng.randint(ordinary, vocab, size=2))
                asked += [IGNORED, IGNORED]
                continue
            key = rng.choice(key_ids)
            known = key in value_of
            value = value_of.setdefault(key, rng.choice(value_ids))
            tokens += [key, value]
            asked += [IGNORED, value if known else IGNORED]
        if not value_of:
            continue  # the original fails here: nothing but noise
        key = rng.choice(list(value_of))
        sequences.append([*tokens, key, value_of[key]])
        targets.append([*asked, IGNORED, value_of[key]])
    return np.array(sequences), np.array(targets)


def token_features(tokens: np.ndarray, asked: np.ndarray, vocab: int) -> np.ndarray:
    """Which tokens come how often, and at the start and the end; how many differ; where it is asked for."""
    count = (tokens[:, :, None] == np.arange(vocab)).sum(1)
    ends = tokens[:, [0, 1, 2, 3, -4, -3, -2, -1]]
    here = (ends[:, :, None] == np.arange(vocab)).reshape(len(tokens), -1)
    columns = [count, count**2, here, (count > 0).sum(1, keepdims=True), asked]
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize(
    ("spec", "vocab", "length", "noise", "frac"),
    [
        ("mad_recall(length=20)", 16, 20, 0, 0.0),
        ("mad_noisy_recall(length=32)", 32, 32, 16, 0.2),
        ("mad_noisy_recall(length=24, frac_noise=0.8)", 32, 24, 16, 0.8),
    ],
)
def test_recall_is_the_published_one(spec: str, vocab: int, length: int, noise: int, frac: float) -> None:
    n = 2000
    tokens, targets = published_pairs(n, vocab, length, noise, frac, seed=3)
    inputs, labels = sample(spec, n)
    # The shift of the original: inputs without the last token, targets without the first.
    assert (labels[:, -1] == IGNORED).all()
    theirs = token_features(tokens[:, :-1], targets[:, 1:] != IGNORED, vocab)
    assert_alike(token_features(inputs[:, :-1], labels[:, :-1] != IGNORED, vocab), theirs)
    asked = labels[:, :-1] != IGNORED
    assert (inputs[:, 1:][asked] == labels[:, :-1][asked]).all()
    assert (np.nonzero(asked)[1] % 2 == 0).all() and asked[:, -1].all(), "keys ask, the last one always"


def test_noise_has_tokens_of_its_own() -> None:
    inputs, _ = sample("mad_noisy_recall", 500)
    pairs = inputs.reshape(500, -1, 2)
    assert ((pairs >= 16).all(2) == (pairs >= 16).any(2)).all(), "both tokens of a pair are noise, or none"
    share = (pairs[:, :-1, 0] >= 16).mean()
    assert share == pytest.approx(0.2 * (1 - 1 / 64), abs=0.01)
    ordinary = pairs[(pairs < 16).all(2)]
    assert (ordinary[:, 0] < 8).all() and (ordinary[:, 1] >= 8).all()


@pytest.mark.parametrize("name", ["mad_recall", "mad_noisy_recall", "mad_fuzzy_recall"])
def test_training_asks_for_all_next_tokens(name: str) -> None:
    inputs, labels = sample(name, 20, "train")
    assert (labels[:, :-1] == inputs[:, 1:]).all()
    inputs, labels = sample(f"{name}(all_tokens=False)", 20, "train")
    task = make_task(f"{name}(all_tokens=False)")
    batch = task.sample(20, seed=1)
    asked = batch.labels != IGNORED
    assert asked.any(1).all() and not asked.all(1).any()
    assert (task.oracle(batch)[asked] == batch.labels[asked]).all()


# -- recall of motifs -------------------------------------------------------------------------------------------------


def published_fuzzy(
    n: int, vocab: int, length: int, longest_key: int, longest_value: int, training: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The published steps for many queries: sequences, what is asked, and how often the probe was never shown."""
    rng = np.random.RandomState(seed)
    n_keys = (vocab - 1) // 2

    def motif(low: int, high: int, size: int) -> tuple[int, ...]:
        return tuple(low + rng.permutation(high - low)[:size])

    def key_size() -> int:
        return 1 + rng.randint(longest_key) if training else longest_key

    sequences, targets, missing = [], [], 0
    for _ in range(n):
        probe = motif(0, n_keys, key_size())
        answer = motif(n_keys, vocab - 1, 1 + rng.randint(longest_value))
        both = len(probe) + len(answer)
        due = rng.randint(length - 2 * both)
        tokens: list[int] = []
        asked: list[int] = []
        value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
        while len(tokens) < length - both - longest_key - longest_value:
            size, value_size = key_size(), 1 + rng.randint(longest_value)
            if len(tokens) >= due and probe not in value_of:
                key, value = probe, answer
            else:
                key = motif(0, n_keys, size)
                value = answer if key == probe else value_of.get(key) or motif(n_keys, vocab - 1, value_size)
            known = key in value_of
            value_of[key] = value
            tokens += [*key, *value]
            asked += [IGNORED] * len(key) + (list(value) if known else [IGNORED] * len(value))
        missing += probe not in value_of
        tokens += [*probe, *answer]
        asked += [IGNORED] * len(probe) + list(answer)
        padding = length + 1 - len(tokens)
        sequences.append([vocab - 1] * padding + tokens)
        targets.append([IGNORED] * padding + asked)
    return np.array(sequences), np.array(targets), missing / n


def probe_places(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """Where the last key was first shown; if it never was, the place of the last pair before it [n,1]."""
    places = []
    for row in tokens.tolist():
        kinds = "".join(" " if token == vocab - 1 else "k" if token < (vocab - 1) // 2 else "v" for token in row)
        keys = [(found.start(), tuple(row[found.start() : found.end()])) for found in re.finditer("k+", kinds)]
        *before, (_, probe) = keys
        places.append([next((place for place, key in before if key == probe), before[-1][0])])
    return np.array(places)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("vocab", "length", "k", "v"), [(16, 64, 3, 3), (8, 40, 2, 3), (7, 16, 1, 2)], ids=["default", "short", "tiny"]
)
def test_fuzzy_recall_is_the_published_one(vocab: int, length: int, k: int, v: int, training: bool) -> None:
    n = 1500
    tokens, targets, missing = published_fuzzy(n, vocab, length, k, v, training, seed=5)
    task = make_task(
        "mad_fuzzy_recall",
        {"vocab_size": vocab, "length": length, "k_motif_size": k, "v_motif_size": v, "all_tokens": False},
    )
    batch = task.sample(n, seed=2, split="train" if training else "test")
    inputs, labels = batch.inputs.numpy(), batch.labels.numpy()
    theirs = token_features(tokens[:, :-1], targets[:, 1:] != IGNORED, vocab)
    ours = token_features(inputs, labels != IGNORED, vocab)
    # The original sometimes never shows what it asks for at the end, where ours does: too seldom to be seen here.
    assert missing < 0.06
    assert_alike(ours, theirs)
    assert_alike(probe_places(inputs, vocab), probe_places(tokens[:, :-1], vocab))
    asked = labels[:, :-1] != IGNORED
    assert (inputs[:, 1:][asked] == labels[:, :-1][asked]).all()
    # The last key always came before, so that the oracle can answer.
    answers = task.oracle(batch).numpy()
    assert (answers[labels != IGNORED] == labels[labels != IGNORED]).all()
    assert (labels[:, -1] != IGNORED).all()


def test_how_often_the_published_probe_is_missing() -> None:
    """The docstring says about one of fifty, with the default sizes."""
    *_, test = published_fuzzy(500, 16, 128, 3, 3, False, seed=1)
    *_, train = published_fuzzy(500, 16, 128, 3, 3, True, seed=1)
    assert 0.005 < test < 0.04 and 0.005 < train < 0.04, (test, train)


def test_motifs_of_the_test_are_the_longest() -> None:
    task = make_task("mad_fuzzy_recall")
    runs: dict[str, set[int]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        runs[split] = set()
        for row in task.sample(50, split=split).inputs.tolist():
            kinds = "".join(" " if token == 15 else "k" if token < 7 else "v" for token in row)
            runs[split] |= {len(run) for run in kinds.strip().replace("v", " ").split()}
    assert runs == {"train": {1, 2, 3}, "test": {3}}


# -- the other three --------------------------------------------------------------------------------------------------


def test_memorization_has_one_table() -> None:
    table = {}
    splits: tuple[Split, ...] = ("train", "valid", "test")
    keys = []
    for split in splits:
        inputs, labels = sample("mad_memorization", 200, split)
        assert (inputs[:, 1::2] == 255).all() and (labels[:, ::2] == IGNORED).all()
        for key, value in zip(inputs[:, ::2].ravel().tolist(), labels[:, 1::2].ravel().tolist(), strict=True):
            assert table.setdefault(key, value) == value
        keys.append(inputs[:, ::2].ravel())
    assert sorted(table) == list(range(127))
    values = list(table.values())
    assert len(set(values)) == 127 and all(127 <= value < 255 for value in values)
    assert values != sorted(values)
    assert_shares(np.bincount(np.concatenate(keys), minlength=127), np.full(127, 1 / 127))
    inputs, labels = sample("mad_memorization(map_seed=1)", 200)
    other = dict(zip(inputs[:, ::2].ravel().tolist(), labels[:, 1::2].ravel().tolist(), strict=True))
    assert sum(other[key] == table[key] for key in other) < 10


def test_compression_asks_for_everything() -> None:
    task = make_task("mad_compression")
    assert task.answers == "sequence" and task.n_labels == 32 and task.n_out == 16
    inputs, labels = sample("mad_compression", 500)
    assert (inputs == labels).all() and (inputs[:, -1] == 15).all()
    assert_shares(np.bincount(inputs[:, :-1].ravel(), minlength=15), np.full(15, 1 / 15))
    with pytest.raises(StateformError, match="length is 64, but 32 tokens are answered"):
        task.sample(2, length=64)


def test_selective_copy_is_the_published_one() -> None:
    n, vocab, length, count = 3000, 7, 24, 5
    rng = np.random.RandomState(2)
    theirs = []
    for _ in range(n):
        tokens = rng.choice(vocab - 2, size=count)
        blanks = length - 2 * count - 1
        read = np.insert(tokens, rng.randint(0, count, blanks), [vocab - 2] * blanks)
        theirs.append([*read, vocab - 1, *[vocab - 2] * count])
    inputs, labels = sample(f"mad_selective_copy(vocab_size={vocab}, length={length}, n_copy={count})", n)

    def features(inputs: np.ndarray) -> np.ndarray:
        here = inputs != vocab - 2
        places = np.nonzero(here)[1].reshape(n, -1)
        return np.concatenate([here, places**2, inputs, (inputs[:, :-1] != vocab - 2) & here[:, 1:]], axis=1)

    assert_alike(features(inputs), features(np.array(theirs)))
    ordinary = inputs[inputs < vocab - 2].reshape(n, count)
    assert (ordinary == labels[:, -count:]).all() and (labels[:, :-count] == IGNORED).all()
    assert (inputs[:, -count - 1] == vocab - 1).all() and (inputs[:, -count - 2] < vocab - 2).all()


# -- sweeps, training sets, errors ------------------------------------------------------------------------------------


def test_the_published_settings() -> None:
    settings = {name: mad_settings(name) for name in MAD_SWEEPS}
    assert {name: len(tasks) for name, tasks in settings.items()} == {
        "mad_recall": 11,
        "mad_noisy_recall": 14,
        "mad_fuzzy_recall": 11,
        "mad_memorization": 6,
        "mad_compression": 11,
        "mad_selective_copy": 13,
    }
    for name, tasks in settings.items():
        base = tasks[0]
        assert base.spec == f"{name}(n_train={MAD_TRAIN_SIZES[name]})"
        for task in tasks[1:]:
            changed = {k for k, v in task.options().items() if v != base.options()[k]}
            assert len(changed) == 1, "one option at a time"
    sizes = {name: (tasks[0].vocab_size, tasks[0].length) for name, tasks in settings.items()}
    assert sizes == {
        "mad_recall": (16, 128),
        "mad_noisy_recall": (32, 128),
        "mad_fuzzy_recall": (16, 128),
        "mad_memorization": (256, 32),
        "mad_compression": (16, 32),
        "mad_selective_copy": (16, 256),
    }


@pytest.mark.parametrize("name", sorted(MAD_SWEEPS))
def test_a_fixed_training_set(name: str) -> None:
    task = make_task(name, {"n_train": 300})
    everything = task.whole("train")
    assert everything is not None and len(everything) == 300
    known = {tuple(row) for row in everything.inputs.tolist()}
    for seed in range(3):
        batch = task.sample(40, seed=seed)
        assert {tuple(row) for row in batch.inputs.tolist()} <= known
    assert task.whole("valid") is None and task.whole("test") is None
    assert not {tuple(row) for row in task.sample(40, split="test").inputs.tolist()} & known
    again = make_task(name, {"n_train": 300}).whole("train")
    assert again is not None and torch.equal(again.inputs, everything.inputs)
    assert make_task(name).whole("train") is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mad_recall(length=127)", "length is 127; expected an even number, 4 or more"),
        ("mad_recall(vocab_size=1)", "vocab_size is 1; expected 2 or more"),
        ("mad_recall(n_train=0)", "n_train is 0; expected a number of training examples, or None"),
        ("mad_noisy_recall(frac_noise=1)", "frac_noise is 1; expected a share"),
        ("mad_noisy_recall(vocab_size=17)", "vocab_size is 17, of which 16 are noise; expected 18 or more"),
        ("mad_noisy_recall(noise_vocab_size=0)", "noise_vocab_size is 0; expected 1 or more"),
        ("mad_fuzzy_recall(vocab_size=6)", "need vocab_size 7 or more; it is 6"),
        ("mad_fuzzy_recall(k_motif_size=0)", "k_motif_size is 0"),
        ("mad_fuzzy_recall(length=12)", "expected length 13 or more; length is 12"),
        ("mad_memorization(length=31)", "length is 31; expected an even number"),
        ("mad_memorization(map_seed=-1)", "map_seed is -1"),
        ("mad_compression(length=1)", "length is 1; expected 2 or more"),
        ("mad_selective_copy(length=33)", "16 tokens to copy need length 34 or more; length is 33"),
        ("mad_selective_copy(n_copy=0)", "n_copy is 0; expected 1 or more"),
    ],
)
def test_what_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)
