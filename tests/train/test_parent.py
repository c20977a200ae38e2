"""Going on from a run with other settings: its weights, a new experiment, and its parent written down."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stateform import StateformError
from stateform.cli import app
from stateform.sweep.run import sweep
from stateform.system.precision import tolerance
from stateform.train import Experiment, Machine, load_trained, train
from stateform.train.data import fresh
from stateform.train.parent import Parent, hash_of, weights

CPU = Machine("cpu", loggers=())
FIRST: dict[str, Any] = {
    "task": "mqar(length=8, n_pairs=2, vocab_size=12)", "model": {"pattern": "linear", "d_model": 8, "mlp_ratio": None},
    "train": {"steps": 4, "batch_size": 4, "eval_every": 2, "eval_examples": 8, "test_examples": 8, "lr": 0.01},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    train(Experiment.from_dict(FIRST), tmp_path / "first", machine=CPU)
    return tmp_path / "first"


def after(run: Path, **values: Any) -> Experiment:
    return Experiment.from_dict({"from": str(run), **values})


def killed(made: Experiment, folder: Path, at: int) -> None:
    def kill(what: str, done: int, total: int) -> None:
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train(made, folder, machine=CPU, on_progress=kill)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_it_begins_with_the_weights_of_the_run_and_its_settings(run: Path, tmp_path: Path) -> None:
    made = after(run, train={"lr": 1e-30, "weight_decay": 0.0, "steps": 2})
    outcome = train(made, tmp_path / "second", machine=CPU)
    before, now = (load_trained(folder)[1].state_dict() for folder in (run, tmp_path / "second"))
    for name, x in before.items():  # steps too small to be seen
        torch.testing.assert_close(now[name], x, rtol=tolerance(x.dtype, 8), atol=tolerance(x.dtype, 8))
    first = Experiment.from_dict(FIRST)
    assert made.task == first.task and dict(made.model) == dict(first.model) and made.train.batch_size == 4
    parent = outcome.experiment["from"]
    assert parent == {"folder": str(run), "key": first.key, "weights": hash_of(before)}
    assert json.loads((tmp_path / "second" / "experiment.json").read_text())["from"] == parent
    assert made.key != first.key and load_trained(tmp_path / "second")[0].key == made.key


def test_its_key_is_that_of_the_weights_wherever_they_are(run: Path, tmp_path: Path) -> None:
    made = after(run)
    run.rename(tmp_path / "moved")
    assert after(tmp_path / "moved").key == made.key
    train(Experiment.from_dict({**FIRST, "train": {**FIRST["train"], "seed": 1}}), tmp_path / "other", machine=CPU)
    assert after(tmp_path / "other", train={"seed": 0}).key != made.key


def test_it_sees_other_examples_than_the_run_did(run: Path) -> None:
    first, second = Experiment.from_dict(FIRST), after(run)
    assert not torch.equal(fresh(first, 0).inputs, fresh(second, 0).inputs)
    assert second.seeds[0] == first.train.seed and first.seeds == [0]


@pytest.mark.parametrize("at", [1, 3])
def test_killed_it_goes_on(at: int, run: Path, tmp_path: Path) -> None:
    made = after(run, train={"steps": 5, "lr": 0.02})
    undisturbed = train(made, tmp_path / "whole", machine=CPU)
    killed(made, tmp_path / "second", at)
    outcome = train(after(run, train={"steps": 5, "lr": 0.02}), tmp_path / "second", machine=CPU)
    assert {**outcome.metrics, "seconds": 0} == {**undisturbed.metrics, "seconds": 0}


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_run_on_its_way_gives_what_it_has(keep: str, tmp_path: Path) -> None:
    made = Experiment.from_dict({**FIRST, "train": {**FIRST["train"], "keep": keep, "lr": 1e-3}})
    with pytest.raises(StateformError, match=r"has no experiment\.json"):
        after(tmp_path / "first")
    killed(made, tmp_path / "first", 1)
    with pytest.raises(StateformError, match=r"has no weights yet; wait for its first checkpoint"):
        after(tmp_path / "first")
    killed(made, tmp_path / "first", 3)
    found = weights(tmp_path / "first")
    model = made.build()
    Parent.from_folder(tmp_path / "first").load_into(model)
    assert hash_of(model.state_dict()) == hash_of(found)


def test_weights_that_do_not_fit_are_named(run: Path, tmp_path: Path) -> None:
    for change, said in (
        ({"model": {"d_model": 16}}, r"embedding.weight is \[12, 8\], expected \[12, 16\]"),
        ({"task": {"vocab_size": 20}}, r"embedding.weight is \[12, 8\], expected \[20, 8\]"),
        ({"model": {"n_layers": 2}}, r"blocks.1\S* is missing.*and \d+ more"),
    ):
        with pytest.raises(StateformError, match=rf"do not fit this model: .*{said}.* Keep the settings of the model"):
            train(after(run, **change), tmp_path / "second", machine=CPU)
        assert not (tmp_path / "second").exists()


def test_weights_that_changed_are_refused(run: Path, tmp_path: Path) -> None:
    made = after(run)
    _, model = load_trained(run)
    with torch.no_grad():
        model.norm.weight += 1
    model.save_pretrained(run)
    with pytest.raises(StateformError, match="have changed since this training was begun"):
        train(made, tmp_path / "second", machine=CPU)
    (run / "model.safetensors").write_bytes(b"")
    with pytest.raises(StateformError, match="not a whole safetensors file"):
        after(run)
    with pytest.raises(StateformError, match="from is 3; expected the folder of a run, or its folder, key, weights"):
        Experiment.from_dict({**FIRST, "from": 3})


def test_the_command_and_a_sweep(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "--from", "first", "--steps", "2", "--lr", "1e-4", "--accelerator", "cpu", "--out", "second"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "step      2 of 2" in shown.output, (shown.output, shown.exception)
    assert CliRunner().invoke(app, command).exit_code == 0
    shown = CliRunner().invoke(app, ["train", "--from", "nowhere"])
    assert isinstance(shown.exception, StateformError) and "nowhere has no experiment.json" in str(shown.exception)
    Path("s.toml").write_text('from = "first"\n[train]\nsteps = 2\n[grid]\ntrain.lr = [1e-3, 1e-4]\n')
    found = sweep("s.toml", "out", workers=0)
    assert [row["status"] for row in found.rows] == ["done", "done"], found.rows
    assert {row["from"] for row in found.rows} == {str(run)} and found.rows[0]["model.d_model"] == 8


def test_a_run_of_own_code_runs_nothing_unasked(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    books = run / "experiment.json"
    for part in ('"linear"', '"mqar"'):
        books.write_text(books.read_text().replace(part, json.dumps(f"{tmp_path}/own.py:Mine")))
        with pytest.raises(StateformError, match=r"made of .*own.py:Mine, code in a file, which is not run unasked"):
            Experiment.from_dict({"from": str(run)}, run_files=True)
    assert not (tmp_path / "ran").exists()
