"""Training: it equals a plain loop, survives a kill at any moment, keeps its books, and refuses what cannot be."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stateform import StateformError
from stateform.analysis import peak_bytes
from stateform.models import Classifier, LanguageModel
from stateform.system.precision import tolerance
from stateform.tasks import IGNORED, TASKS, Batch, Split, Task, make_task
from stateform.train import (
    Experiment,
    Machine,
    Outcome,
    Training,
    evaluate,
    load_trained,
    overridden,
    scores,
    train,
    trainee,
)
from stateform.train import checkpoint as checkpoints
from stateform.train import folder as folders
from stateform.train import lock as locks
from stateform.train.data import Batches, fresh, held_out, pool

CPU = Machine(accelerator="cpu", loggers=())
MQAR = "mqar(length=8, n_pairs=2, vocab_size=12)"
SMALL = {"steps": 12, "batch_size": 4, "eval_every": 4, "eval_examples": 8, "test_examples": 8, "lr": 0.01}


def experiment(task: str | Task = MQAR, model: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    made = {"pattern": "linear", "d_model": 8, "d_state": 4, "mlp_ratio": None, **(model or {})}
    return Experiment(make_task(task), made, Training(**{**SMALL, **settings}))


def numbers(outcome: Outcome) -> dict[str, Any]:
    """What two trainings share if they are the same: everything but the time they took."""
    return {k: v for k, v in outcome.metrics.items() if k != "seconds"}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def files(folder: Path) -> set[str]:
    return {x.name for x in folder.iterdir()}


FINISHED = {"experiment.json", "outcome.json", "config.json", "model.safetensors", "modeling_stateform.py"}


# -- killed ---------------------------------------------------------------------------------------------------------


def in_a_fork(what: Callable[[], Any], *, kill_after: float | None = None) -> int:
    """Run in a copy of this process, killed from outside after so many seconds; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            what()
        finally:
            os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at_batch(made: Experiment, folder: Path, number: int) -> None:
    left = number

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    train(made, folder, machine=CPU, on_progress=on_progress)


def kill_at_write(made: Experiment, folder: Path, number: int, *, before: bool) -> None:
    """Killed beside the number-th file that is written: before it has its name, or just after."""
    left, rename = number, os.replace

    def replaced(a: Any, b: Any) -> None:
        nonlocal left
        left -= 1
        if left or not before:
            rename(a, b)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replaced
    train(made, folder, machine=CPU)


KILLED = {
    "fresh batches": experiment(steps=20, eval_every=3, model={"dropout": 0.2}),
    "examples again and again, accumulated, the best kept": experiment(
        steps=20, eval_every=3, model={"dropout": 0.2}, examples=18, accumulate=2, keep="best", lr=0.03
    ),
    "a length for each batch": experiment("parity(length=9)", steps=20, eval_every=3, test_lengths=(9, 12), seed=3),
    "in float64, the best kept": experiment(steps=20, eval_every=3, precision="64-true", keep="best", patience=4),
}


@pytest.mark.parametrize(
    "name, how",
    [
        pytest.param("fresh batches", "at batches", marks=pytest.mark.slow),
        pytest.param("fresh batches", "from outside", marks=pytest.mark.slow),
        ("examples again and again, accumulated, the best kept", "at batches"),
        ("examples again and again, accumulated, the best kept", "from outside"),
        ("examples again and again, accumulated, the best kept", "at writes"),
        ("a length for each batch", "from outside"),
        pytest.param("in float64, the best kept", "at writes", marks=pytest.mark.slow),
    ],
)
def test_killed_ten_times_a_training_ends_as_the_undisturbed_one(name: str, how: str, tmp_path: Path) -> None:
    made, draw = KILLED[name], random.Random(f"{name} {how}")
    begun = time.monotonic()
    undisturbed = train(made, tmp_path / "undisturbed", machine=CPU)
    lasts = time.monotonic() - begun
    folder = tmp_path / "killed"
    for attempt in range(10):
        if how == "at batches":
            number = draw.randint(1, 5 * made.train.accumulate)
            ended = in_a_fork(lambda n=number: kill_at_batch(made, folder, n))
        elif how == "at writes":
            number, before = draw.randint(1, 3), attempt % 2 == 0
            ended = in_a_fork(lambda n=number, b=before: kill_at_write(made, folder, n, before=b))
        else:
            ended = in_a_fork(lambda: train(made, folder, machine=CPU), kill_after=draw.uniform(0, lasts / 3))
        assert ended == signal.SIGKILL or (folder / "outcome.json").is_file()
    outcome = train(made, folder, machine=CPU)
    assert weights(folder) == weights(tmp_path / "undisturbed")
    assert numbers(outcome) == numbers(undisturbed)
    assert files(folder) == files(tmp_path / "undisturbed") == FINISHED


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_goes_on_from_each_round(accumulate: int, tmp_path: Path) -> None:
    made = experiment(steps=10, eval_every=4, accumulate=accumulate, model={"dropout": 0.2})
    undisturbed = train(made, tmp_path / "undisturbed", machine=CPU)
    for done in (4, 8):  # the round after 8 is a short one
        folder = tmp_path / str(done)
        assert in_a_fork(lambda n=done, f=folder: kill_at_batch(made, f, (n + 1) * accumulate)) == signal.SIGKILL
        assert [row["step"] for row in history_in(folder)] == list(range(4, done + 1, 4))
        assert numbers(train(made, folder, machine=CPU)) == numbers(undisturbed)
        assert weights(folder) == weights(tmp_path / "undisturbed")


def history_in(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = checkpoints.read(folder / "checkpoint.safetensors")["callbacks"]["Rounds"]["history"]
    return found


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(experiment(), tmp_path, machine=CPU)

    def never(*_: Any) -> None:
        raise AssertionError("there was nothing left to do")

    again = train(experiment(), tmp_path, machine=CPU, on_progress=never, on_round=never)
    assert again == first


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for keep in ("last", "best"):
        made = experiment(keep=keep)
        inside = train(made, machine=Machine(accelerator="cpu"))
        assert files(tmp_path) == set()
        assert numbers(inside) == numbers(train(made, tmp_path / keep, machine=CPU))
        (tmp_path / keep).rename(tmp_path.parent / f"{tmp_path.name} {keep}")


# -- a plain loop ---------------------------------------------------------------------------------------------------


def loss_by_hand(model: Any, batch: Batch) -> Tensor:
    """The mean loss of a batch, all logits computed."""
    inputs = batch.inputs.to(model.norm.weight.dtype) if batch.inputs.is_floating_point() else batch.inputs
    logits = model(inputs, batch.mask).logits
    if batch.labels.is_floating_point():
        asked = ~batch.labels.isnan().any(-1)
        return (logits[asked] - batch.labels[asked]).square().mean()
    return F.cross_entropy(logits.flatten(0, -2), batch.labels.flatten(), ignore_index=IGNORED)


def by_hand(made: Experiment) -> tuple[dict[str, Tensor], list[float]]:
    """The weights after AdamW with warm-up, decay of the rate, clipping and accumulation, written out; the losses."""
    t, task = made.train, made.task
    torch.manual_seed(t.seed)
    model = made.build().to(torch.float64 if t.precision == "64-true" else torch.float32).train()
    matrices = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    kept = dict(model.named_parameters())
    first, second = ({name: torch.zeros_like(p) for name, p in kept.items()} for _ in range(2))
    warm, losses = round(t.warmup * t.steps), []
    for step in range(t.steps):
        model.zero_grad()
        for number in range(step * t.accumulate, (step + 1) * t.accumulate):
            loss = loss_by_hand(model, task.sample(t.batch_size, seed=[t.seed, number]))
            losses.append(float(loss.detach()))
            (loss / t.accumulate).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in kept.values() if p.grad is not None))
        cut = 1.0 if t.clip is None else min(1.0, t.clip / (norm + 1e-6))
        if step < warm:
            rate = t.lr * (step + 1) / warm
        else:
            done = (step - warm) / (t.steps - warm)
            fall = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}[t.schedule]
            rate = t.lr * (t.final_lr + (1 - t.final_lr) * fall)
        with torch.no_grad():
            for name, p in kept.items():
                if p.grad is None:
                    continue
                if t.decay_all or name in matrices:
                    p.mul_(1 - rate * t.weight_decay)
                g = p.grad * cut
                first[name] = t.beta1 * first[name] + (1 - t.beta1) * g
                second[name] = t.beta2 * second[name] + (1 - t.beta2) * g.square()
                mean, square = first[name] / (1 - t.beta1 ** (step + 1)), second[name] / (1 - t.beta2 ** (step + 1))
                p.sub_(rate * mean / (square.sqrt() + 1e-8))
    return {name: p.detach() for name, p in kept.items()}, losses


PLAIN = {
    "language": experiment("mad_recall(length=16, vocab_size=8)", precision="64-true", accumulate=2, clip=0.5),
    "as published": experiment(
        model={"mlp_ratio": 2.0, "tie_embeddings": False, "pattern": "mamba2 normalized"},
        precision="64-true", decay_all=True, schedule="linear", final_lr=0.1, warmup=0.3, clip=None, beta2=0.99, seed=5,
    ),
    "classes": experiment("listops(shortest=4, length=20)", precision="64-true", schedule="constant", warmup=0.0),
    "numbers": experiment("icl_regression(dim=2, length=12)", precision="64-true", weight_decay=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_training_equals_a_plain_loop(name: str, tmp_path: Path) -> None:
    made = PLAIN[name]
    outcome = train(made, tmp_path, machine=CPU)
    _, model = load_trained(tmp_path)
    expected, losses = by_hand(made)
    bound = 16 * tolerance(torch.float64, made.train.steps)
    for key, p in model.named_parameters():
        assert p.dtype == torch.float64
        torch.testing.assert_close(p.detach(), expected[key], rtol=bound, atol=bound, msg=lambda m, k=key: f"{k}: {m}")
    per_round = made.train.eval_every * made.train.accumulate
    if made.task.name == "mad_recall":  # batches ask for different numbers of answers: the row is their mean
        return
    for i, row in enumerate(outcome.metrics["history"]):
        assert row["loss"] == pytest.approx(np.mean(losses[i * per_round : (i + 1) * per_round]), rel=bound)


# -- truncated back-propagation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_bptt_as_long_as_the_sequence_changes_no_bit(name: str, tmp_path: Path) -> None:
    made = PLAIN[name]
    for bptt in (None, made.task.length, made.task.length // 4):
        train(replace(made, train=replace(made.train, bptt=bptt)), tmp_path / str(bptt), machine=CPU)
    whole, equal, short = (weights(tmp_path / str(n)) for n in (None, made.task.length, made.task.length // 4))
    assert equal == whole
    assert short != whole


@pytest.mark.parametrize("task", ["mad_recall(length=16, vocab_size=8)", "listops(shortest=4, length=20)"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_bptt_cuts_gradients_where_the_state_is_handed_on(task: str, dropout: float) -> None:
    made = experiment(task, model={"pattern": "mamba2 softmax", "dropout": dropout})
    torch.manual_seed(0)
    model, batch = made.build().double(), made.task.sample(3)
    parts = list(model.parameters())

    def gradients(hidden: Tensor) -> list[Tensor]:
        weight = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
        return torch.autograd.grad((hidden * weight).sum(), parts, allow_unused=True)

    torch.manual_seed(1)
    got = gradients(scores.read(model, batch.inputs, 5))
    torch.manual_seed(1)
    state, pieces = None, []
    for start in range(0, batch.inputs.shape[1], 5):
        hidden, after = model.hidden(batch.inputs[:, start : start + 5], initial_state=state, return_state=True)
        state = after.detach()
        pieces.append(hidden)
    for a, b in zip(got, gradients(torch.cat(pieces, 1)), strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    if not dropout:
        assert torch.allclose(scores.read(model, batch.inputs, 5), model.hidden(batch.inputs)[0])


def test_bptt_takes_the_memory_of_a_piece() -> None:
    made = experiment("mad_recall(length=512, vocab_size=8)", model={"pattern": "mamba2*2", "mlp_ratio": 2.0})
    model, batch = made.build(), made.task.sample(2)

    def peak(bptt: int | None) -> int:
        return peak_bytes(lambda: scores.score(model, made.task, batch, bptt).loss.backward())

    peak(None)  # makes the gradients
    assert peak(64) < peak(None) / 4


# -- data -----------------------------------------------------------------------------------------------------------


def test_a_finite_set_of_examples_is_used_in_an_order_of_its_own_in_each_pass() -> None:
    made = experiment(examples=10, batch_size=3, seed=4)
    chosen = pool(made)
    assert chosen is not None and len(chosen) == 10
    known = {tuple(row): i for i, row in enumerate(chosen.inputs.tolist())}
    assert len(known) == 10
    batches = Batches(made, 0, 9, chosen)
    orders = [
        [known[tuple(row)] for i in range(3) for row in batches[3 * turn + i].inputs.tolist()] for turn in (0, 1, 2)
    ]
    assert all(len(set(order)) == 9 for order in orders), "no example twice in a pass"
    assert len({tuple(order) for order in orders}) == 3
    later = Batches(made, 5, 2, chosen)  # a batch depends on its number alone
    assert torch.equal(later[1].inputs, batches[6].inputs) and len(later) == 2


def test_batches_differ_by_number_seed_and_split() -> None:
    made = experiment()
    drawn = [fresh(made, 0), fresh(made, 1), fresh(experiment(seed=1), 0), held_out(made.task, "valid", 4)]
    assert len({tuple(x.inputs.flatten().tolist()) for x in drawn}) == 4
    lengths = {fresh(experiment("parity(length=9)", test_lengths=(9,)), i).inputs.shape[1] for i in range(40)}
    assert lengths == set(range(3, 10))


@dataclass(frozen=True, kw_only=True)
class Waves(Task):
    """Numbers in, a class for the whole: a set of 30, sorted by their class, of which some are padded."""

    answers = "sequence"
    name = "waves"

    @property
    def vocab_size(self) -> None:
        return None

    @property
    def d_input(self) -> int:
        return 2

    @property
    def n_out(self) -> int:
        return 3

    def whole(self, split: Split) -> Batch:
        n = 30
        kind = torch.arange(n) // 10
        inputs = torch.randn(n, self.length, 2, generator=torch.Generator().manual_seed(len(split)))
        inputs = inputs + kind[:, None, None]
        mask = torch.arange(self.length) < self.length - (torch.arange(n) % 3)[:, None]
        return Batch(inputs * mask[..., None], kind[:, None], mask)


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setitem(TASKS, "waves", Waves)
    return Waves(length=12)


def test_some_examples_of_a_data_set_are_not_its_first(waves: Task) -> None:
    chosen = pool(experiment(waves, examples=9))
    assert chosen is not None and len(chosen) == 9 and len(set(chosen.labels.flatten().tolist())) == 3
    whole = pool(experiment(waves))
    assert whole is not None and len(whole) == 30
    more = pool(experiment(waves, examples=1000))
    assert more is not None and len(more) == 30


# -- books ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, every, rounds", [(10, 4, [4, 8, 10]), (3, 100, [3]), (6, 3, [3, 6]), (2, 1, [1, 2])])
def test_a_row_a_round(steps: int, every: int, rounds: list[int]) -> None:
    seen: list[dict[str, Any]] = []
    said: list[tuple[str, int, int]] = []
    made = experiment(steps=steps, eval_every=every, accumulate=2)
    outcome = train(made, machine=CPU, on_round=seen.append, on_progress=lambda *x: said.append(x))
    m = outcome.metrics
    assert [row["step"] for row in m["history"]] == rounds and seen == m["history"]
    assert m["steps"] == steps and m["stopped"] == "all steps done" and m["name"] == made.name
    assert m["valid"] == seen[-1]["valid"] and m["best"] == max(row["valid"] for row in seen)
    assert [done for what, done, _ in said if what.startswith("training")] == [i // 2 for i in range(1, 2 * steps + 1)]
    assert said[-1] == ("testing", steps, steps) and {total for *_, total in said} == {steps}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"schedule": "cosine", "warmup": 0.2}, [0.5, 1, 1, 0.9619398, 0.8535534, ..., 0]),
        ({"schedule": "linear", "warmup": 0.2, "final_lr": 0.5}, [0.5, 1, 1, 0.9375, 0.875, 0.8125, ..., 0.5]),
        ({"schedule": "constant", "warmup": 0.4}, [0.25, 0.5, 0.75, 1, 1, ..., 1]),
        ({"schedule": "linear", "warmup": 0.0}, [1, 0.9, 0.8, ..., 0]),
        ({"schedule": "cosine", "warmup": 1.0}, [0.1, 0.2, 0.3, ..., 1]),
        ({"schedule": "cosine", "warmup": 0.04}, [1, ..., 0]),
    ],
)  # fmt: skip
def test_learning_rates(settings: dict[str, Any], expected: list[Any]) -> None:
    rate = trainee.Rate(Training(steps=10, **settings))
    known, last = expected[: expected.index(...)], expected[-1]
    assert [rate(step) for step in range(len(known))] == pytest.approx(known)
    assert rate(10) == pytest.approx(last)


def test_training_ends_where_it_is_good_enough() -> None:
    stopped = train(experiment(stop_at=0.0), machine=CPU).metrics
    assert (stopped["steps"], stopped["stopped"]) == (4, "reached 0")
    stopped = train(experiment("icl_regression(dim=2, length=12)", stop_at=1e9), machine=CPU).metrics
    assert (stopped["steps"], stopped["stopped"]) == (4, "reached 1e+09")
    goes_on = train(experiment("icl_regression(dim=2, length=12)", stop_at=1e-9), machine=CPU).metrics
    assert goes_on["stopped"] == "all steps done"


def test_training_ends_when_it_gets_no_better() -> None:
    outcome = train(experiment(lr=1e-20, patience=2, steps=40), machine=CPU).metrics
    assert outcome["stopped"] == "no better for 2 validations" and outcome["steps"] == 12
    assert len({row["valid"] for row in outcome["history"]}) == 1


def test_the_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    settings = {"steps": 24, "eval_every": 3, "schedule": "constant", "warmup": 0.0, "lr": 0.3}
    best = train(experiment(**settings, keep="best"), tmp_path / "best", machine=CPU)
    last = train(experiment(**settings), tmp_path / "last", machine=CPU)
    assert best.metrics["history"] == last.metrics["history"]
    row = max(best.metrics["history"], key=lambda row: (row["valid"], -row["step"]))
    assert row["step"] < 24, "else this tests nothing"
    assert best.metrics["best"] == row["valid"] and best.metrics["valid"] == last.metrics["valid"]
    train(experiment(**settings | {"steps": row["step"]}), tmp_path / "short", machine=CPU)
    assert weights(tmp_path / "best") == weights(tmp_path / "short") != weights(tmp_path / "last")
    assert best.metrics["test"] == evaluate(tmp_path / "short")


def test_the_seed_changes_weights_and_examples_but_no_validation() -> None:
    made = [experiment(seed=seed, lr=1e-20) for seed in (0, 1)]
    outcomes = [train(one, machine=CPU).metrics for one in made]
    assert outcomes[0]["history"][-1]["valid_loss"] != outcomes[1]["history"][-1]["valid_loss"]
    assert made[0].key != made[1].key
    a, b = (trainee.Trainee(one.build(), one).valid for one in made)
    assert torch.equal(a.inputs, b.inputs)


def test_decay_is_for_matrices_unless_it_is_for_all(tmp_path: Path) -> None:
    def groups(**settings: Any) -> list[tuple[float, int]]:
        made = experiment(**settings)
        given = trainee.Trainee(made.build(), made).configure_optimizers()["optimizer"].param_groups
        return [(group["weight_decay"], len(group["params"])) for group in given]

    everything = len(list(experiment().build().parameters()))
    (decay, n), (none, m) = groups(weight_decay=0.3)
    assert decay == 0.3 and none == 0 and n + m == everything and m >= 2
    assert groups(weight_decay=0.3, decay_all=True) == [(0.3, everything)]


@pytest.mark.parametrize("task", [MQAR, "icl_regression(dim=2, length=12)", Waves(length=12)])
def test_precisions(task: str | Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "waves", Waves)
    losses = {}
    for precision, dtype in (("32-true", torch.float32), ("64-true", torch.float64), ("bf16-mixed", torch.float32)):
        outcome = train(experiment(task, precision=precision), tmp_path / precision, machine=CPU)
        _, model = load_trained(tmp_path / precision)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert evaluate(tmp_path / precision) == outcome.metrics["test"]
        losses[precision] = outcome.metrics["history"][-1]["valid_loss"]
    assert losses["32-true"] == pytest.approx(losses["64-true"], rel=1e-4)
    assert losses["bf16-mixed"] == pytest.approx(losses["64-true"], rel=0.05)
    assert len(set(losses.values())) == 3
    assert torch.get_default_dtype() == torch.float32


def test_a_finished_float64_training_killed_before_its_outcome(tmp_path: Path) -> None:
    made = experiment(precision="64-true")
    train(made, tmp_path / "whole", machine=CPU)

    def kill(what: str, done: int, total: int) -> None:
        if what == "testing":
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(lambda: train(made, tmp_path / "killed", machine=CPU, on_progress=kill)) == signal.SIGKILL
    assert "outcome.json" not in files(tmp_path / "killed")
    train(made, tmp_path / "killed", machine=CPU)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_killed_after_its_outcome_it_leaves_nothing_behind(tmp_path: Path) -> None:
    made = experiment(keep="best")
    train(made, tmp_path / "whole", machine=CPU)
    writes = 0

    def count(a: Any, b: Any, rename: Any = os.replace) -> None:
        nonlocal writes
        writes += 1
        rename(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", count)
        outcome = train(made, tmp_path / "counted", machine=CPU)
    folder = tmp_path / "killed"
    assert in_a_fork(lambda: kill_at_write(made, folder, writes, before=False)) == signal.SIGKILL
    assert {"outcome.json", "checkpoint.safetensors", "best.safetensors"} <= files(folder)
    assert numbers(train(made, folder, machine=CPU)) == numbers(outcome)
    assert files(folder) == FINISHED


def test_killed_at_any_write_it_leaves_nothing_behind(tmp_path: Path) -> None:
    """Whatever it wrote when it was killed, the folder of the next run has no half-written file."""
    names: list[str] = []

    def note(a: Any, b: Any, rename: Any = os.replace) -> None:
        names.append(Path(a).name)
        rename(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", note)
        train(experiment(keep="best"), tmp_path / "watched", machine=CPU)
    folder = tmp_path / "killed"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"half")
    assert any(name.startswith(".modeling_stateform.py.") for name in names)
    train(experiment(keep="best"), folder, machine=CPU)
    assert files(folder) == FINISHED


def test_settings_of_the_process_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> list[Any]:
        names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")
        return [
            *(logging.getLogger(name).level for name in names),
            signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled(),
        ]  # fmt: skip

    def stop(error: type[BaseException]) -> Callable[..., None]:
        def on_progress(what: str, done: int, total: int) -> None:
            raise error

        return on_progress

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if tests run in the background
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)  # threads and forks go ill together
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = settings()
        machine = Machine(accelerator="cpu", threads=3, loggers=(), deterministic=True)
        train(experiment(precision="64-true"), machine=machine)
        assert settings() == before and threads == [3, torch.get_num_threads()]
        for error in (KeyboardInterrupt, StateformError, ZeroDivisionError):
            with pytest.raises(error):
                train(experiment(precision="64-true"), machine=machine, on_progress=stop(error))
            assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
        signal.signal(signal.SIGINT, inherited)


def test_interrupted_it_goes_on(tmp_path: Path) -> None:
    calls = 0

    def interrupt(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    undisturbed = train(experiment(), machine=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(experiment(), tmp_path, machine=CPU, on_progress=interrupt)
    assert [row["step"] for row in history_in(tmp_path)] == [4]
    assert numbers(train(experiment(), tmp_path, machine=CPU)) == numbers(undisturbed)


def test_numbers_are_logged_once(tmp_path: Path) -> None:
    made = experiment()
    train(made, tmp_path, machine=Machine(accelerator="cpu"))
    lines = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    names, *rows = [line.split(",") for line in lines]
    assert {"lr", "step", "train/loss", "valid/loss", "valid/accuracy"} <= set(names)
    assert [row[names.index("step")] for row in rows] == ["4", "8", "12"]
    assert files(tmp_path) == FINISHED | {"log"}


@pytest.mark.parametrize("name", ["~", "file:", "a::b", "100%?#"])
def test_numbers_are_logged_in_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(experiment(steps=2), Path(name, "run"), machine=Machine(accelerator="cpu"))
    assert (tmp_path / name / "run" / "log" / "version_0" / "metrics.csv").is_file()
    asked: list[str] = []
    monkeypatch.setattr("pytorch_lightning.loggers.MLFlowLogger", lambda *_, tracking_uri: asked.append(tracking_uri))
    trainee.loggers(("mlflow",), Path(name), experiment())
    assert Path(url2pathname(urlparse(asked[0]).path)) == tmp_path / name / "mlruns"


# -- checkpoints ----------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Whether two nests have the same types and values, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and [*map(repr, a)] == [*map(repr, b)] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def raw(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8) if x.numel() else x


NEST: dict[str, Any] = {
    "state": {0: {"step": torch.tensor(7.0), "exp": torch.randn(3, 2)}, 1: torch.zeros(0, 4), "0": torch.ones(2)},
    "types": [torch.tensor(True), torch.randn(3).bfloat16(), torch.arange(3), torch.randn(2, 2).double(),
              torch.tensor([math.nan, -math.inf]), torch.randn(2, 3).half().T, torch.randn(2, dtype=torch.complex64)],
    "plain": ["text \u00e9 \n", 1, 1.5, True, None, math.inf, -math.inf, math.nan, 10**20, -0.0],
    "nested": ((1, 2), [(), [], {}], {"tensor": "x", "dict": [1]}), ("a", 1): {None: 1, True: 2, 2.5: 3},
    "a/b": torch.zeros(1), "a": {"b": torch.ones(1)},
}  # fmt: skip


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    shared = torch.randn(4)
    nest = {**NEST, "shared": [shared, shared[1:3], shared]}
    checkpoints.write(tmp_path / "x", nest)
    assert same(checkpoints.read(tmp_path / "x"), nest)
    assert not same(checkpoints.read(tmp_path / "x"), {**nest, "a/b": torch.ones(1)})


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    for value, named in ((object(), "object"), (np.int64(3), "int64"), ({1, 2}, "set"), (len, "builtin_function")):
        with pytest.raises(StateformError, match=f"a/b/1 of the checkpoint is a {named}"):
            checkpoints.write(tmp_path / "x", {"a": {"b": [0, value]}})
    assert files(tmp_path) == set()


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def broken(path: Path) -> dict[str, bytes]:
    """Ways in which a checkpoint is none."""
    from safetensors.torch import save

    whole, other = path.read_bytes(), {"x": torch.zeros(2)}
    torch.save({"state": Trap(path.parent / "ran")}, path.parent / "pickle")
    pickle = (path.parent / "pickle").read_bytes()
    (path.parent / "pickle").unlink()

    def of(skeleton: str) -> bytes:
        return save(other, {"format": checkpoints.FORMAT, "skeleton": skeleton})

    return {
        "empty": b"", "cut": whole[: len(whole) // 2], "cut in the header": whole[:20], "short of one": whole[:-1],
        "text": b"hello" * 100, "pickle": pickle, "weights": save(other),
        "older": save(other, {"format": "stateform-0"}),
        "no skeleton": save(other, {"format": checkpoints.FORMAT}), "no json": of("{"), "not packed": of('{"a": 1}'),
        "no such tensor": of('{"tensor": "y"}'), "no list": of('{"dict": 3}'), "no pairs": of('{"dict": [3]}'),
        "of nothing": of("{}"), "list as key": of('{"dict": [[{"list": []}, 1]]}'),
    }  # fmt: skip


def unfinished(folder: Path, made: Experiment | None = None) -> Path:
    """A training that was killed after its first round; its checkpoint."""
    made = made or experiment()
    assert in_a_fork(lambda: kill_at_batch(made, folder, 5)) == signal.SIGKILL
    return folder / "checkpoint.safetensors"


OTHERS = ("weights", "older")
"""Checkpoints that are whole, and not of this version."""


def test_a_broken_checkpoint_is_said_and_the_training_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = experiment(steps=5)
    undisturbed = train(made, machine=CPU)
    path = unfinished(tmp_path / "run", made)
    (path.parent / "previous.safetensors").unlink(missing_ok=True)
    whole = {x.name: x.read_bytes() for x in path.parent.iterdir()}
    for how, content in broken(path).items():
        for name, data in (whole | {path.name: content}).items():
            (path.parent / name).write_bytes(data)
        (path.parent / "outcome.json").unlink(missing_ok=True)
        capsys.readouterr()
        if how in OTHERS:
            with pytest.raises(StateformError, match=r"checkpoint.safetensors is no .* delete it to begin .* anew"):
                train(made, path.parent, machine=CPU)
            assert path.read_bytes() == content, "it is left as it is"
            continue
        assert numbers(train(made, path.parent, machine=CPU)) == numbers(undisturbed), how
        said = capsys.readouterr().err
        assert said.startswith(f"stateform: {path} is damaged") and "begins anew" in said and said.count("\n") == 1, how
        assert files(path.parent) == FINISHED
    assert not (path.parent / "ran").exists()


def test_a_broken_checkpoint_has_one_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = experiment(keep="best", model={"dropout": 0.2})
    undisturbed = train(made, tmp_path / "whole", machine=CPU)
    folder = tmp_path / "run"
    assert in_a_fork(lambda: kill_at_batch(made, folder, 9)) == signal.SIGKILL  # in the third round
    assert {"checkpoint.safetensors", "previous.safetensors", "best.safetensors"} < files(folder)
    (folder / "checkpoint.safetensors").write_bytes(b"")
    rounds: list[int] = []
    outcome = train(made, folder, machine=CPU, on_round=lambda row: rounds.append(row["step"]))
    assert "is damaged" in (said := capsys.readouterr().err) and "the one before it" in said
    assert rounds == [8, 12], "the first round was kept"
    assert numbers(outcome) == numbers(undisturbed) and weights(folder) == weights(tmp_path / "whole")
    assert files(folder) == FINISHED


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "run")
    for other in (experiment(model={"d_model": 16}), experiment(model={"pattern": "mamba2"})):
        path.write_bytes(unfinished(tmp_path / other.key, other).read_bytes())
        with pytest.raises(StateformError, match=r"checkpoint.safetensors is not of this training: .*delete it"):
            train(experiment(), tmp_path / "run", machine=CPU)
    for content in (
        {},
        {"callbacks": {}},
        {"callbacks": {"Rounds": 3}},
        {"callbacks": {"Rounds": {}}, "state_dict": {}},
    ):
        checkpoints.write(path, content)
        with pytest.raises(StateformError, match=r"is not of this training: .*delete it"):
            train(experiment(), tmp_path / "run", machine=CPU)


def test_lost_weights_of_the_best_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = experiment(keep="best", lr=1e-20)  # the first round stays the best
    undisturbed = train(made, machine=CPU)
    for content in (b"x", b"", None):
        path = unfinished(tmp_path / str(content), made)
        best = path.parent / "best.safetensors"
        best.unlink() if content is None else best.write_bytes(content)
        assert numbers(train(made, path.parent, machine=CPU)) == numbers(undisturbed)
        said = capsys.readouterr().err
        assert re.search(r"best.safetensors, the weights of the best .* cannot be read: .*begins anew", said)


@pytest.mark.parametrize("fails", ["checkpoint.safetensors", "best.safetensors", "model.safetensors", "outcome.json"])
def test_a_full_disk_loses_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment(keep="best")
    undisturbed = train(made, tmp_path / "whole", machine=CPU)
    seen = 0

    def full(a: Any, b: Any, rename: Any = os.replace) -> None:
        nonlocal seen
        seen += Path(b).name == fails
        if Path(b).name == fails and (seen > 1 or fails in FINISHED):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(a, b)

    monkeypatch.setattr(os, "replace", full)
    if fails == "best.safetensors":  # each round is the best so far
        monkeypatch.setattr(trainee, "better", lambda *_: True)
    with pytest.raises(StateformError, match=f"cannot write .*{fails}: No space left on device"):
        train(made, tmp_path / "run", machine=CPU)
    monkeypatch.undo()
    assert "outcome.json" not in files(tmp_path / "run") and not any(x.startswith(".") for x in files(tmp_path / "run"))
    assert [row["step"] for row in history_in(tmp_path / "run")] == ([4, 8, 12] if fails in FINISHED else [4])
    assert numbers(train(made, tmp_path / "run", machine=CPU)) == numbers(undisturbed)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_full_disk_while_numbers_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.loggers import CSVLogger

    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")

    monkeypatch.setattr(CSVLogger, "save", full)
    with pytest.raises(StateformError, match=r"metrics.csv: No space left on device.*what was saved last is kept"):
        train(experiment(), tmp_path, machine=Machine(accelerator="cpu"))


# -- a loss that is not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, at, says",
    [("loss", 6, "the loss is nan at step 6"), ("gradient", 7, "the loss of the validation is nan after step 8")],
)
def test_a_loss_that_is_not_finite(
    how: str, at: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(experiment(), tmp_path / "whole", machine=CPU)
    plain = scores.score
    step = 0

    def spoilt(model: Any, task: Task, batch: Batch, *rest: Any) -> scores.Score:
        nonlocal step
        found = plain(model, task, batch, *rest)
        if not model.training:
            return found
        step += 1
        bad = torch.tensor(math.nan) if how == "loss" else (0 * next(model.parameters()).sum()).sqrt()
        return replace(found, loss=found.loss + bad) if step - 1 == at else found

    monkeypatch.setattr(trainee, "score", spoilt)
    with pytest.raises(StateformError, match=f"{says}; try a lower lr.*What was saved last is kept"):
        train(experiment(), tmp_path / "run", machine=CPU)
    monkeypatch.undo()
    assert [row["step"] for row in history_in(tmp_path / "run")] == [4]
    assert numbers(train(experiment(), tmp_path / "run", machine=CPU)) == numbers(undisturbed)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_learning_rate_that_is_far_too_high(tmp_path: Path) -> None:
    made = experiment(lr=1e30, clip=None, warmup=0.0, model={"mlp_ratio": 2.0})
    with pytest.raises(StateformError, match=r"loss .*(nan|inf) .*step"):
        train(made, tmp_path, machine=CPU)
    assert "outcome.json" not in files(tmp_path)


# -- what cannot be -------------------------------------------------------------------------------------------------


def of(task: Any = MQAR, model: Any = None, **settings: Any) -> dict[str, Any]:
    return {"task": task, "model": {"pattern": "linear", "d_model": 8} if model is None else model, "train": settings}


LINEAR = {"pattern": "linear", "d_model": 8}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "task": (of("mqr"), "unknown task 'mqr': did you mean mqar"),
    "option of a task": (of("mqar(n_pair=2)"), "the task mqar has no option 'n_pair': did you mean n_pairs"),
    "more pairs than fit": (of("mqar(n_pairs=20, length=16)"), "20 pairs need length 80 or more; length is 16"),
    "a task of another type": (of(3), "a task is named by a string"),
    "a table without a name": (of({"length": 8}), "the table task has no name"),
    "no task": ({"model": LINEAR}, "the experiment has no task"),
    "part": (of() | {"trian": {}}, "no part 'trian': did you mean train"),
    "model that is no table": (of(model="linear"), "model is 'linear'; expected a table"),
    "no pattern": (of(model={"d_model": 8}), "the model has no pattern"),
    "layer": (of(model=LINEAR | {"pattern": "mamba9"}), "mamba9.*did you mean mamba"),
    "pattern of another type": (of(model=LINEAR | {"pattern": 3}), "pattern.*3"),
    "setting of the model": (of(model=LINEAR | {"d_modell": 8}), "no setting 'd_modell': did you mean d_model"),
    "option of another layer": (of(model=LINEAR | {"d_conv": 4}), "no setting 'd_conv'"),
    "type of a model's setting": (of(model=LINEAR | {"dropout": "much"}), "dropout is 'much'; expected a number"),
    "what the task decides": (of(model=LINEAR | {"vocab_size": 12}), "the task decides the model's vocab_size"),
    "pooling": (of(model=LINEAR | {"pooling": "mean"}), "the task decides the model's pooling"),
    "percent": (of(stop_at=99.0), "stop_at is 99.0; .* expected a share"),
    "positions": (of(model=LINEAR | {"max_positions": 8}), "max_positions is 8; .* up to 32 tokens"),
    "setting of the training": (of(stpes=3), "no setting 'stpes': did you mean steps"),
    "steps": (of(steps=0), "steps is 0; expected a whole number, 1 or more"),
    "steps of another type": (of(steps=1.5), "steps is 1.5; expected a whole number"),
    "steps in words": (of(steps="many"), "steps is 'many'"),
    "batch_size": (of(batch_size=0), "batch_size is 0"),
    "accumulate": (of(accumulate=-1), "accumulate is -1"),
    "bptt": (of(bptt=0), "bptt is 0; expected a whole number, 1 or more"),
    "half a token of bptt": (of(bptt=1.5), "bptt is 1.5; expected a whole number"),
    "eval_every": (of(eval_every=0), "eval_every is 0"),
    "lr": (of(lr=-1), "lr is -1"),
    "lr without end": (of(lr=math.inf), "lr is inf"),
    "lr that is none": (of(lr=math.nan), "lr is nan; expected a number"),
    "weight_decay": (of(weight_decay=math.inf), "weight_decay is inf"),
    "clip": (of(clip=0), "clip is 0.*or none"),
    "warmup": (of(warmup=2), "warmup is 2.*a share"),
    "beta2": (of(beta2=1), "beta2 is 1"),
    "schedule": (of(schedule="cosin"), "schedule is 'cosin'; expected 'cosine' or 'linear' or 'constant'"),
    "precision": (of(precision="8-true"), "precision is '8-true'; expected '32-true'"),
    "keep": (of(keep="first"), "keep is 'first'"),
    "seed": (of(seed=-1), "seed is -1"),
    "patience": (of(patience=0), "patience is 0"),
    "stop_at": (of(stop_at="good"), "stop_at is 'good'"),
    "no test lengths": (of(test_lengths=[]), "test_lengths is"),
    "test lengths of another type": (of(test_lengths=["8"]), "test_lengths is"),
    "a length without the task": (of(test_lengths=[8, 9]), "length is 9; expected an even number"),
    "fewer examples than a batch": (of(examples=10, batch_size=64), "examples is 10, fewer than a batch of 64"),
    "another format": (of() | {"format": 99}, "format 99; this version reads format 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_refused_before_any_work(name: str) -> None:
    values, says = BAD[name]
    with pytest.raises(StateformError, match=says):
        Experiment.from_dict(values)


def test_an_experiment_is_its_dict_and_its_key() -> None:
    assert "bptt" not in experiment().to_dict()["train"]  # what was trained before there was this setting has its key
    made = experiment("parity(length=9)", test_lengths=(9, 12), clip=None, keep="best", stop_at=1, lr=1, bptt=4)
    again = Experiment.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again.to_dict() == made.to_dict() and again.key == made.key and len(made.key) == 16
    given = {"test_lengths": (9, 12), "clip": None, "keep": "best", "stop_at": 1.0, "lr": 1.0, "bptt": 4}
    same_in_numbers = experiment("parity(length=9)", **given)
    assert same_in_numbers.key == made.key
    assert len({made.key, experiment().key, experiment(seed=1).key, experiment(model={"d_model": 16}).key}) == 4


def test_overrides() -> None:
    values = {"task": "mqar(n_pairs=20)", "model": dict(LINEAR), "train": {"clip": 1.0}}
    new = overridden(
        values, ["task.length=128", "train.clip=none", "model.pattern=mamba2(d_state=4)", "train.lr = 3e-3"]
    )
    made = Experiment.from_dict(new)  # length 64 would be too short for 20 pairs
    assert made.task == make_task("mqar(n_pairs=20, length=128)") and made.train.clip is None and made.train.lr == 3e-3
    assert made.model["pattern"] == "mamba2(d_state=4)"
    assert values == {"task": "mqar(n_pairs=20)", "model": LINEAR, "train": {"clip": 1.0}}, "the given ones are kept"
    table = {"task": {"name": "mqar(n_pairs=2)", "vocab_size": 32}}
    new = overridden(table, ["task.n_pairs=3"])
    assert make_task(new["task"]["name"], {k: v for k, v in new["task"].items() if k != "name"}).spec == (
        "mqar(vocab_size=32, n_pairs=3)"
    )
    for text, says in (("lr=3", "names no setting"), ("train.lr", "setting=value"), ("train.=3", "names no setting")):
        with pytest.raises(StateformError, match=says):
            overridden(values, [text])


MACHINES: dict[str, tuple[dict[str, Any], str]] = {
    "logger": ({"loggers": ("csvs",)}, "unknown logger 'csvs': did you mean csv"),
    "devices": ({"devices": 0}, "devices is 0"),
    "threads": ({"threads": 0}, "threads is 0"),
    "accelerator": ({"accelerator": "abacus"}, "cannot train with accelerator 'abacus'"),
    "strategy": ({"accelerator": "cpu", "strategy": "luck"}, "strategy 'luck': .*luck"),
    "copies": ({"accelerator": "cpu", "strategy": "ddp_spawn", "devices": 2}, "trains in copies of this process"),
    "more devices than rows": ({"accelerator": "cpu", "strategy": "ddp", "devices": 5}, "5 devices share batches of 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_machines_that_are_not(name: str, tmp_path: Path) -> None:
    settings, says = MACHINES[name]
    with pytest.raises(StateformError, match=says) as error:
        train(experiment(), tmp_path / "run", machine=Machine(**settings))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists(), "nothing is begun"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_more_devices_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(StateformError, match="cannot train with accelerator 'gpu', devices 2"):
        train(experiment(), tmp_path / "run", machine=Machine("gpu", 2))
    with pytest.raises(StateformError, match="precision 16-mixed does not exist here"):
        train(experiment(precision="16-mixed"), tmp_path / "run", machine=CPU)
    assert not (tmp_path / "run").exists()


def test_without_lightning_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(StateformError, match=r'pip install "stateform\[train\]"'):
        train(experiment(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_the_package_of_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'wandb'")

    for name, cls in (("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger"), ("tensorboard", "TensorBoardLogger")):
        monkeypatch.setattr(f"pytorch_lightning.loggers.{cls}", missing)
        with pytest.raises(StateformError, match=f"the logger {name} needs a package that is not installed"):
            train(experiment(), tmp_path / "run", machine=Machine("cpu", loggers=("csv", name)))
    assert not (tmp_path / "run").exists()


def test_a_data_set_with_fewer_examples_than_a_batch(waves: Task, tmp_path: Path) -> None:
    with pytest.raises(StateformError, match="there are 30 training examples, fewer than a batch of 31"):
        train(experiment(waves, batch_size=31), tmp_path / "run", machine=CPU)
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    made = experiment()
    train(made, tmp_path / "other", machine=CPU)
    before = (tmp_path / "other" / "outcome.json").read_bytes()
    with pytest.raises(
        StateformError, match=r"holds another experiment \(train.lr 0.01, here 0.5; train.seed 0, here 1\)"
    ):
        train(experiment(lr=0.5, seed=1), tmp_path / "other", machine=CPU)
    with pytest.raises(StateformError, match=r"\(task.length 8, .* and \d more\); choose another folder"):
        train(experiment("mqar(length=16, n_pairs=3, vocab_size=64)"), tmp_path / "other", machine=CPU)
    assert (tmp_path / "other" / "outcome.json").read_bytes() == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(StateformError, match=r"is not empty \(thesis.tex\) and holds no experiment"):
        train(made, tmp_path / "foreign", machine=CPU)
    assert files(tmp_path / "foreign") == {"thesis.tex"}
    with pytest.raises(StateformError, match=r"thesis.tex is a file; choose another folder"):
        train(made, tmp_path / "foreign" / "thesis.tex", machine=CPU)
    with pytest.raises(StateformError, match=r"cannot make the folder .*below"):
        train(made, tmp_path / "foreign" / "thesis.tex" / "below", machine=CPU)


def test_two_trainings_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    made, refused = experiment(), []

    def second(what: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(StateformError, match="is in use by another training") as error:
                train(made, tmp_path / "run", machine=CPU)
            refused.append(str(error.value))

    outcome = train(made, tmp_path / "run", machine=CPU, on_progress=second)
    assert refused and f"(process {os.getpid()} on " in refused[0] and "choose another folder" in refused[0]
    assert numbers(outcome) == numbers(train(made, machine=CPU)) and files(tmp_path / "run") == FINISHED


@pytest.mark.parametrize("at", ["before the folder", "in a begun one", "in one without its outcome"])
def test_of_two_trainings_that_start_together_one_is_refused(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    made, folder = experiment(), tmp_path / "run"

    def kill(what: str, done: int, total: int) -> None:
        if what == "testing":
            os.kill(os.getpid(), signal.SIGKILL)

    if at == "in a begun one":
        unfinished(folder, made)
    elif at == "in one without its outcome":
        assert in_a_fork(lambda: train(made, folder, machine=CPU, on_progress=kill)) == signal.SIGKILL
    with locks.Lock(folder) as other:
        if folder.exists():
            other.take()
        else:  # the other one makes the folder while this one has found none
            monkeypatch.setattr(folders, "make_folder", lambda path: (path.mkdir(), other.take()))
        with pytest.raises(StateformError, match="is in use by another training"):
            train(made, folder, machine=CPU)
        assert "outcome.json" not in files(folder)
    monkeypatch.undo()
    assert train(made, folder, machine=CPU).metrics["steps"] == 12


def test_the_lock_of_a_killed_training_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    unfinished(tmp_path / "run")
    assert (tmp_path / "run" / locks.LOCK).is_file(), "it was killed with its lock"
    assert train(experiment(), tmp_path / "run", machine=CPU).metrics["steps"] == 12
    assert files(tmp_path / "run") == FINISHED


def test_a_lock_that_is_deleted_by_its_last_holder_is_no_lock(tmp_path: Path) -> None:
    """Opened before it was deleted, it would be held beside that of another process."""
    with locks.Lock(tmp_path) as first:
        first.take()
        handle = os.open(tmp_path / locks.LOCK, os.O_RDWR)
    assert not locks._is_still(tmp_path / locks.LOCK, handle)
    with locks.Lock(tmp_path) as second:
        second.take()
        assert not locks._is_still(tmp_path / locks.LOCK, handle) and second.handle is not None
        assert locks._is_still(tmp_path / locks.LOCK, second.handle)
    os.close(handle)
    assert files(tmp_path) == set()


def test_damaged_books(tmp_path: Path) -> None:
    made, folder = experiment(), tmp_path / "run"
    train(made, folder, machine=CPU)
    whole = {name: (folder / name).read_bytes() for name in ("experiment.json", "outcome.json")}
    cases: list[tuple[str, bytes, str]] = [
        ("experiment.json", whole["experiment.json"][:-20], "is damaged, no JSON"),
        ("experiment.json", b"\xff\xfe", "is damaged, no JSON"),
        ("experiment.json", b"[1]", "holds list; expected a table"),
        ("experiment.json", b'{"format": 1}', "the experiment has no task"),
        ("experiment.json", whole["experiment.json"].replace(b'"format": 1', b'"format": 2'), "format 2; this version"),
        ("experiment.json", whole["experiment.json"].replace(b'"steps"', b'"stepz"'), "no setting 'stepz'"),
        ("outcome.json", whole["outcome.json"][:-20], "is damaged, no JSON.*delete it to train again"),
        ("outcome.json", b"3", "holds int"),
        ("outcome.json", b'{"metrics": {}}', "this is no outcome of a training"),
        ("outcome.json", b'{"metrics": 1, "experiment": 2}', "this is no outcome of a training"),
    ]
    for name, content, says in cases:
        (folder / name).write_bytes(content)
        with pytest.raises(StateformError, match=says) as error:
            train(made, folder, machine=CPU)
        assert str(folder / name) in str(error.value)
        if name == "experiment.json":
            with pytest.raises(StateformError, match=says):
                evaluate(folder)
        (folder / name).write_bytes(whole[name])
    (folder / "outcome.json").unlink()
    assert train(made, folder, machine=CPU).metrics["steps"] == 12


# -- trained --------------------------------------------------------------------------------------------------------


def test_what_was_trained_is_evaluated_and_loaded(tmp_path: Path) -> None:
    made = experiment(test_examples=50)
    outcome = train(made, tmp_path, machine=CPU)
    again, model = load_trained(tmp_path)
    assert again.key == made.key and isinstance(model, LanguageModel) and not model.training
    assert evaluate(tmp_path) == outcome.metrics["test"] and set(outcome.metrics["test"]) == {"8", "16", "32"}
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome
    found = evaluate(tmp_path, lengths=[10], examples=7, batch_size=3)
    assert set(found) == {"10"} and found["10"]["examples"] == 7
    assert evaluate(tmp_path, lengths=[10], examples=7) == found, "the batch does not matter"
    assert outcome.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert torch.equal(LanguageModel.from_pretrained(tmp_path).state_dict()["norm.weight"], model.norm.weight)
    with pytest.raises(StateformError, match="holds a LanguageModel; expected a Classifier"):
        Classifier.from_pretrained(tmp_path)
    for bad, says in (
        ({"lengths": []}, "lengths is empty"), ({"lengths": [9]}, "length is 9"), ({"lengths": [0]}, "length is 0"),
        ({"examples": 0}, "examples is 0"), ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"device": "abacus"}, "cannot use the device 'abacus'"),
    ):  # fmt: skip
        with pytest.raises(StateformError, match=says):
            evaluate(tmp_path, **bad)  # type: ignore[arg-type]


def test_lengths_beyond_learned_positions_are_refused(tmp_path: Path) -> None:
    train(experiment(model={"max_positions": 32}, steps=2), tmp_path, machine=CPU)
    with pytest.raises(StateformError, match="has learned 32 positions; ask for lengths up to that, not 64"):
        evaluate(tmp_path, lengths=[32, 64])


def test_what_is_not_trained_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(StateformError, match=r"has no experiment.json; expected a folder that a training wrote"):
        load_trained(tmp_path)
    unfinished(tmp_path / "run")
    with pytest.raises(StateformError, match="is not finished; run it again to go on"):
        evaluate(tmp_path / "run")
    train(experiment(), tmp_path / "run", machine=CPU)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(StateformError, match="not a whole safetensors file"):
        evaluate(tmp_path / "run")


TASK_OPTIONS = {"listops": "shortest=10, length=60", "text": "length=32", "mad_compression": "length=16"}


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"hf_text"}))
def test_every_task_trains(name: str, tmp_path: Path) -> None:
    if TASKS[name].folder:
        pytest.skip("it reads files")
    options = TASK_OPTIONS.get(name, "")
    if name == "text":
        (tmp_path / "book.txt").write_bytes(bytes(np.random.RandomState(0).randint(32, 127, size=4000, dtype=np.uint8)))
        options += f", path={str(tmp_path / 'book.txt')!r}"
    task = make_task(f"{name}({options})")
    made = experiment(task, model={"d_state": 2}, steps=2, eval_every=1, test_lengths=(task.length,), test_examples=4)
    outcome = train(made, tmp_path / "run", machine=CPU)
    loaded, model = load_trained(tmp_path / "run")
    assert evaluate(tmp_path / "run") == outcome.metrics["test"]
    assert loaded.task == task and outcome.metrics["state_size"] > 0
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["valid"]) for row in outcome.metrics["history"])
    assert isinstance(model, LanguageModel if made.speaks else Classifier)


# -- scores ---------------------------------------------------------------------------------------------------------


SCORED = {
    "tokens": MQAR, "uneven": "mad_recall(length=16, vocab_size=8)", "sequence": "listops(shortest=4, length=20)",
    "several labels": "mad_compression(length=8)", "numbers": "icl_regression(dim=2, length=12)",
    "numbers in": Waves(length=12),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORED)
def test_scores_by_hand(name: str) -> None:
    made = experiment(SCORED[name], model={"pattern": "linear mamba2"}, precision="64-true")
    torch.manual_seed(1)
    model = made.build().double().eval()
    batch = held_out(made.task, "test", 9)
    found = scores.score(model, made.task, batch)
    inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
    logits, labels = model(inputs, batch.mask).logits, batch.labels
    if made.task.answers == "sequence":
        logits = logits.unflatten(-1, (made.task.n_labels, -1))
    if labels.is_floating_point():
        asked = ~labels.isnan().any(-1)
        error = (logits - labels).square().mean(-1)[asked].sum().detach()
        assert int(found.asked) == int(asked.sum()) > 0
        torch.testing.assert_close(found.loss.detach(), error)
        torch.testing.assert_close(found.points, error)
        assert found.metric == pytest.approx(float(error / asked.sum()))
        return
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    asked, right = labels != IGNORED, (logits.argmax(-1) == labels) & (labels != IGNORED)
    assert int(found.asked) == int(asked.sum()) > 0 and found.examples == 9
    torch.testing.assert_close(found.loss, each.sum())
    torch.testing.assert_close(found.mean_loss, F.cross_entropy(logits.flatten(0, -2), labels.flatten()))
    assert int(found.points) == int(right.sum()) and found.metric == pytest.approx(float(right.sum() / asked.sum()))
    assert int(found.whole) == sum(bool(torch.equal(r, a)) for r, a in zip(right, asked))
    halves = scores.score(model, made.task, batch[:4]) + scores.score(model, made.task, batch[4:])
    assert halves.metric == found.metric and int(halves.whole) == int(found.whole) and halves.examples == 9
    torch.testing.assert_close(halves.loss, found.loss)
    if batch.mask is not None:  # padding changes nothing
        assert not batch.mask.all(), "else this tests nothing"
        alone = [replace(batch[i : i + 1], inputs=batch.inputs[i : i + 1, :n], mask=None)
                 for i, n in enumerate(batch.mask.sum(1).tolist())]  # fmt: skip
        torch.testing.assert_close(sum(scores.score(model, made.task, one).loss for one in alone), found.loss)


def test_right_answers_score_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment("mad_recall(length=16, vocab_size=8)")
    model, batch = made.build(), held_out(made.task, "test", 6)
    answers = batch.labels.clone()
    first = (answers[2] != IGNORED).nonzero()[0, 0]
    answers[2, first] = (answers[2, first] + 1) % 8  # one wrong
    keep = batch.labels != IGNORED
    monkeypatch.setattr(model, "logits", lambda hidden: F.one_hot(answers[keep], 8).float() * 50)
    found = scores.score(model, made.task, batch)
    asked = int(keep.sum())
    assert int(found.points) == asked - 1 and int(found.whole) == 5 and found.metric == pytest.approx(1 - 1 / asked)


def test_bits_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(bytes(range(32, 127)) * 40)
    made = experiment(make_task(f"text(length=16, path={str(tmp_path / 'book.txt')!r})"))
    batch = held_out(made.task, "test", 3)
    model = made.build()
    found = scores.score(model, made.task, batch)
    assert found.metric == pytest.approx(
        float(found.mean_loss.detach()) / math.log(2)
    ) and found.metric == pytest.approx(8, abs=0.1)


def test_what_is_better() -> None:
    accuracy, error = make_task(MQAR), make_task("icl_regression(dim=2, length=12)")
    assert (
        scores.better(accuracy, 0.5, None)
        and scores.better(accuracy, 0.5, 0.4)
        and not scores.better(accuracy, 0.5, 0.5)
    )
    assert scores.better(error, 0.5, 0.6) and not scores.better(error, 0.5, 0.5) and not scores.better(error, 0.5, 0.4)
