"""What holds for every task: its format, its seeds, its errors; and that its labels are the answers.

Each registered task is tested with its default options, and with those that `ALSO` lists.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stateform.errors import StateformError
from stateform.tasks import IGNORED, SPLITS, TASKS, Batch, Split, Task, make_task, task_names

ALSO = (
    "parity(every_token=False)",
    "counting(modulus=7)",
    "cycle_navigation(size=2)",
    "modular_arithmetic(every_token=False, modulus=12)",
    "modular_arithmetic(multiply=False)",
    "modular_arithmetic(brackets=True)",
    "modular_arithmetic(brackets=True, multiply=False, length=61)",
    "group_word(group='A5')",
    "group_word(group='S5', moved=2)",
    "group_word(group='Z5', every_token=False)",
    "dyck(kinds=5, max_depth=1)",
    "listops(shortest=20, length=100)",
    "listops(shortest=0, length=300, max_depth=4, max_args=3)",
)
"""Tasks with other options than the default ones."""
ELSEWHERE = {"hf_text": "it needs a network; tests/tasks/test_data.py tests it with a package of its own"}
SPECS = [*task_names(), *ALSO]
SOLVABLE = [spec for spec in SPECS if TASKS[spec.partition("(")[0]].solvable]


def task_of(spec: str) -> Task:
    """The task, or a skip where its data are not here."""
    task = make_task(spec)
    if task.name in ELSEWHERE:
        pytest.skip(f"{task.name}: {ELSEWHERE[task.name]}")
    place = os.environ.get("STATEFORM_DATA")
    if task.folder and not (place and (Path(place) / task.folder).is_dir()):
        pytest.skip(
            f"{task.name} reads the folder {task.folder} of STATEFORM_DATA, which is not here (see docs/data.md)"
        )
    return task


def lengths(task: Task) -> list[int]:
    """The lengths at which it is trained and tested."""
    return sorted({task.length, task.min_length, *task.test_lengths})


def asked(labels: Tensor) -> Tensor:
    """Where there is a label."""
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORED


def wrong(task: Task, batch: Batch) -> Tensor:
    """Where the labels are not the oracle's answers."""
    answers = task.oracle(batch)
    assert answers.shape == batch.labels.shape, "the oracle answers in the shape of the labels"
    if batch.labels.is_floating_point():
        differ = ~torch.isclose(answers.to(batch.labels.dtype), batch.labels, rtol=1e-3, atol=1e-3)
    else:
        differ = answers != batch.labels
    return differ & asked(batch.labels)


def assert_well_formed(task: Task, batch: Batch, n: int, length: int) -> None:
    """Shapes, dtypes and ranges are those that the task states."""
    inputs, labels, mask = batch.inputs, batch.labels, batch.mask
    if task.d_input is None:
        assert inputs.shape == (n, length) and inputs.dtype == torch.int64
        assert task.vocab_size is not None and int(inputs.min()) >= 0 and int(inputs.max()) < task.vocab_size
    else:
        assert task.vocab_size is None, "inputs are tokens or numbers, not both"
        assert inputs.shape == (n, length, task.d_input) and inputs.dtype == torch.float32
        assert inputs.isfinite().all()
    if task.metric == "mse":
        assert labels.shape == (n, length, task.n_out) and labels.dtype == torch.float32
        assert labels[asked(labels)].isfinite().all()
    else:
        assert labels.shape == ((n, length) if task.answers == "tokens" else (n, task.n_labels))
        assert labels.dtype == torch.int64
        given = labels[asked(labels)]
        assert int(given.min()) >= 0 and int(given.max()) < task.n_out
    flat = asked(labels).reshape(n, -1)
    assert flat.any(1).all(), "an example that asks for nothing"
    if mask is not None:
        assert mask.shape == (n, length) and mask.dtype == torch.bool and mask[:, 0].all()
        assert not (mask[:, 1:] & ~mask[:, :-1]).any(), "padding comes after the tokens"
        if task.answers == "tokens":
            assert not (asked(labels).reshape(n, length, -1).any(-1) & ~mask).any(), "padding asks for something"


@pytest.mark.parametrize("spec", SPECS)
def test_it_says_what_it_is(spec: str) -> None:
    task = make_task(spec)
    assert task.summary and task.source
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(task)), "options have defaults"
    assert make_task(task.spec) == task
    assert 1 <= task.min_length <= task.length == task.test_lengths[0]
    assert list(task.test_lengths) == sorted(set(task.test_lengths))


@pytest.mark.parametrize("spec", SOLVABLE)
def test_the_oracle_is_always_right(spec: str) -> None:
    task = task_of(spec)
    for length in lengths(task):
        for seed in range(3):
            # Some tasks train on more than can be known (all next tokens); what is tested has an answer.
            batch = task.sample(8, seed=seed, split="test", length=length)
            assert not wrong(task, batch).any(), f"seed {seed}, length {length}"


@pytest.mark.parametrize("spec", SOLVABLE)
def test_a_wrong_label_is_caught(spec: str) -> None:
    task = task_of(spec)
    batch = task.sample(8, seed=3, split="test")
    places = asked(batch.labels).nonzero()
    place = tuple(places[len(places) // 2].tolist())
    labels = batch.labels.clone()
    labels[place] = labels[place] + 1 if labels.is_floating_point() else (labels[place] + 1) % task.n_out
    found = wrong(task, Batch(batch.inputs, labels, batch.mask)).nonzero()
    assert [tuple(at) for at in found.tolist()] == [place]


@pytest.mark.parametrize("spec", SPECS)
def test_shapes_and_ranges(spec: str) -> None:
    task = task_of(spec)
    for split in SPLITS:
        for length in lengths(task):
            assert_well_formed(task, task.sample(5, split=split, length=length), 5, length)
    assert_well_formed(task, task.sample(1), 1, task.length)


@pytest.mark.parametrize("spec", SPECS)
def test_what_a_seed_gives(spec: str) -> None:
    task = task_of(spec)

    def drawn(seed: int | tuple[int, ...], split: Split) -> tuple[Tensor, Tensor]:
        batch = task.sample(16, seed=seed, split=split)
        return batch.inputs, batch.labels

    def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
        return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))

    state = torch.get_rng_state()
    first = drawn(0, "train")
    assert same(first, drawn(0, "train")), "the same arguments give the same examples"
    others = [drawn(1, "train"), drawn((0, 1), "train"), drawn((1, 0), "train"), drawn(0, "valid"), drawn(0, "test")]
    everything = [first, *others]
    for i, one in enumerate(everything):
        for other in everything[:i]:
            assert not same(one, other), "another seed or split gives other examples"
    assert torch.equal(state, torch.get_rng_state()), "the global random numbers are left alone"


@pytest.mark.parametrize("spec", SPECS)
def test_what_cannot_be_sampled(spec: str) -> None:
    task = task_of(spec)
    with pytest.raises(StateformError, match="split is 'dev'; expected train, valid, test"):
        task.sample(2, split="dev")  # type: ignore[arg-type]
    with pytest.raises(StateformError, match="n is 0"):
        task.sample(0)
    with pytest.raises(StateformError, match="seed is -1"):
        task.sample(2, seed=-1)
    for length in (0, -3, 2.5, True):
        with pytest.raises(StateformError, match="length"):
            task.sample(2, length=length)  # type: ignore[arg-type]
    with pytest.raises(StateformError, match="length"):
        make_task(task, {"length": 0})
    with pytest.raises(StateformError, match="has no option 'lenght': did you mean length"):
        make_task(task.name, {"lenght": 3})


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec not in SOLVABLE])
def test_without_an_oracle_it_says_so(spec: str) -> None:
    task = task_of(spec)
    with pytest.raises(StateformError, match="in the data alone"):
        task.oracle(task.sample(1))
