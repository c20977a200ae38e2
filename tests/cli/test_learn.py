"""`stateform train` and `eval` from outside: two processes, signals, files, errors of one line."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stateform import StateformError
from stateform.cli import app, main
from stateform.system.precision import tolerance
from stateform.tasks import IGNORED
from stateform.train import Experiment, Machine, load_trained, train
from stateform.train.data import held_out

BASE = [
    "train", "mqar(length=8, n_pairs=2, vocab_size=12)", "--model", "linear", "--d-model", "8", "--accelerator", "cpu",
    "--set", "model.mlp_ratio=none", "--set", "train.eval_examples=6", "--set", "train.test_examples=6",
]  # fmt: skip


def run(*arguments: str) -> str:
    """What a command prints; it must end well."""
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == 0 and found.exception is None, (found.output, found.exception)
    return found.output


def started(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """The command in a process, and in a process group, of its own."""
    command = [sys.executable, "-W", "error::UserWarning:stateform", "-m", "stateform", *arguments]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # see in_a_fork
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    signal.signal(signal.SIGINT, inherited)
    return process


# -- two processes --------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """On a task of which the halves of a batch ask for different numbers of answers."""
    values: dict[str, Any] = {
        "task": "mad_recall(length=12, vocab_size=8)", "model": {"pattern": "linear", "d_model": 8, "mlp_ratio": None},
        "train": {"steps": 10, "batch_size": 5, "accumulate": 2, "eval_every": 4, "eval_examples": 7, "lr": 0.01,
                  "test_examples": 8, "precision": "64-true", "keep": "best", "clip": 0.6},
    }  # fmt: skip
    made = Experiment.from_dict(values)
    counts = [(held_out(made.task, "valid", 7)[rank::2].labels != IGNORED).sum() for rank in (0, 1)]
    assert counts[0] != counts[1], "else this tests little"
    (tmp_path / "it.json").write_text(json.dumps(values))
    (tmp_path / "it.toml").write_text(
        f'task = "{values["task"]}"\n'
        + "".join(
            f"[{part}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values[part].items() if v is not None)
            for part in ("model", "train")
        )
    )
    process = started(
        "train", "--config", "it.toml", "--set", "model.mlp_ratio=none", "--out", "two", "--accelerator", "cpu",
        "--devices", "2", "--strategy", "ddp", folder=tmp_path,
    )  # fmt: skip
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    alone = train(made, tmp_path / "one", machine=Machine("cpu", loggers=()))
    together = json.loads((tmp_path / "two" / "outcome.json").read_text())["metrics"]
    bound = 64 * tolerance(torch.float64, 10)
    for ours, theirs in zip(together["history"], alone.metrics["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=bound)
    assert together["test"] == alone.metrics["test"]
    one, two = (load_trained(tmp_path / name)[1].state_dict() for name in ("one", "two"))
    for name, x in one.items():
        assert x.dtype == torch.float64
        torch.testing.assert_close(two[name], x, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")
    # One process speaks and writes.
    assert [line.split()[1] for line in said.splitlines() if line.startswith("step")] == ["4", "8", "10"]
    assert said.count(made.name) == 2 and said.count("Model, outcome and logs") == 1, said
    assert errors == ""
    assert {x.name for x in (tmp_path / "two").iterdir()} == {
        "experiment.json", "outcome.json", "config.json", "model.safetensors", "modeling_stateform.py", "log",
    }  # fmt: skip
    assert [x.name for x in (tmp_path / "two" / "log").iterdir()] == ["version_0"]
    with (tmp_path / "two" / "log" / "version_0" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8", "10"]


@pytest.mark.slow
def test_two_processes_are_interrupted_together(tmp_path: Path) -> None:
    long = [*BASE, "--steps", "4000", "--batch-size", "8", "--out", "run", "--set", "train.eval_every=5"]
    process = started(*long, "--devices", "2", "--strategy", "ddp", folder=tmp_path)
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors == "Interrupted; run the same command to go on.\n"
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


# -- signals --------------------------------------------------------------------------------------------------------


def in_a_fork(arguments: list[str]) -> int:
    """The command in a copy of this process, which has imported everything; it writes said.txt and errors.txt."""
    child = os.fork()
    if child:
        return child
    code: Any = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
        for name, number in (("said.txt", 1), ("errors.txt", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))  # noqa: SIM115
        sys.argv = ["stateform", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_from_outside_the_same_command_goes_on(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*BASE, "--steps", "60", "--batch-size", "256", "--set", "train.eval_every=5", "--seed", "3"]
    monkeypatch.chdir(tmp_path)
    child = in_a_fork(command)
    while "\nstep" not in (Path("said.txt").read_text() if Path("said.txt").exists() else ""):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended"
        time.sleep(0.001)
    os.kill(child, getattr(signal, name))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert Path("errors.txt").read_text() == "Interrupted; run the same command to go on.\n"
    (folder,) = (tmp_path / "runs").iterdir()
    assert "outcome.json" not in {x.name for x in folder.iterdir()}
    said = run(*command)
    assert said.splitlines()[1] == f"Going on from the last checkpoint in runs/{folder.name}"
    steps = [int(step) for step in re.findall(r"^step +(\d+) of 60", said, re.MULTILINE)]
    assert steps[0] > 5 and steps == list(range(steps[0], 61, 5))
    whole = train(Experiment.from_dict(json.loads((folder / "experiment.json").read_text())), machine=Machine("cpu"))
    outcome = json.loads((folder / "outcome.json").read_text())["metrics"]
    assert outcome["history"] == whole.metrics["history"] and outcome["test"] == whole.metrics["test"]


def test_interrupted_before_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stateform.train.train", interrupted)
    found = CliRunner().invoke(app, [*BASE, "--out", str(tmp_path / "run")])
    assert found.exit_code == 130 and "Interrupted; there was no checkpoint yet." in found.output


# -- commands -------------------------------------------------------------------------------------------------------


def test_train_and_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it.toml").write_text(
        'task = "parity"\n[model]\npattern = "softmax"\nd_model = 16\nmlp_ratio = 2\n'
        "[train]\nsteps = 4\nbatch_size = 4\neval_every = 2\neval_examples = 8\ntest_examples = 8\n"
    )
    said = run(
        "train", "parity(length=8)", "--config", "it.toml", "--model", "linear*2", "--steps", "3", "--lr", "3e-3",
        "--set", "model.d_state=4", "--set", "train.test_lengths=[8, 16]", "--accelerator", "cpu", "--seed", "7",
    )  # fmt: skip
    (folder,) = Path("runs").iterdir()
    values = json.loads((folder / "experiment.json").read_text())
    assert folder.name.startswith("parity-") and folder.name.endswith(Experiment.from_dict(values).key)
    assert values["model"] == {"pattern": "linear*2", "d_model": 16, "mlp_ratio": 2, "d_state": 4}
    assert (
        values["train"] | {"steps": 3, "lr": 3e-3, "seed": 7, "test_lengths": [8, 16], "batch_size": 4}
        == values["train"]
    )
    assert said.splitlines()[0] == "linear*2 on parity(length=8) (d_model 16, mlp_ratio 2, d_state 4)"
    assert re.search(r"^step +2 of 3 +loss [\d.]+ +accuracy [\d.]+ +lr [\d.e-]+ +\d+ s$", said, re.MULTILINE)
    outcome = json.loads((folder / "outcome.json").read_text())
    again = run(
        "train", "parity(length=8)", "--config", "it.toml", "--model", "linear*2", "--steps", "3", "--lr", "0.003",
        "--set", "model.d_state=4", "--set", "train.test_lengths=[8, 16]", "--accelerator", "cpu", "--seed", "7",
    )  # fmt: skip
    assert "step " not in again and "Going on" not in again, "what is finished is shown again"
    table = run("eval", str(folder), "--json", "found.json")
    assert json.loads(Path("found.json").read_text()) == outcome["metrics"]["test"]
    assert re.search(r"16 .*accuracy|accuracy(.|\n)*16 ", table) and "found.json" in table
    run("eval", str(folder), "--lengths", "5, 12", "--examples", "3", "--batch-size", "2", "--json", "found.json")
    found = json.loads(Path("found.json").read_text())
    assert set(found) == {"5", "12"} and all(x["examples"] == 3 for x in found.values())
    listed = run("tasks").splitlines()
    assert any(re.match(r"mqar +Multi-query", line) for line in listed) and len(listed) > 20


BAD: dict[str, tuple[list[str], str]] = {
    "no task": (["train", "--model", "linear"], "there is no task; name one"),
    "unknown task": (["train", "mqr", "--model", "linear"], "unknown task 'mqr': did you mean mqar"),
    "no model": (["train", "parity"], "the model has no pattern"),
    "unknown layer": (["train", "parity", "--model", "lineer"], "did you mean linear"),
    "setting": ([*BASE, "--set", "train.stpes=3"], "no setting 'stpes': did you mean steps"),
    "part": ([*BASE, "--set", "trian.steps=3"], "no part 'trian': did you mean train"),
    "no assignment": ([*BASE, "--set", "steps"], "cannot read 'steps'; expected setting=value"),
    "steps": ([*BASE, "--steps", "0"], "steps is 0"),
    "lr": ([*BASE, "--lr", "nan"], "lr is nan"),
    "seed": ([*BASE, "--seed", str(2**70)], "train.seed holds a whole number of 71 bits; expected 64 at most"),
    "setting of many bits": ([*BASE, "--set", f"train.lr={10**400}"], "train.lr holds a whole number of 1329 bits"),
    "seed that is no size": ([*BASE, "--seed", str(2**60)], "seed is 1152921504606846976; expected a whole number, 9e"),
    "date": ([*BASE, "--set", "train.steps=2020-01-01"], "steps is datetime.date"),
    "no file": ([*BASE, "--config", "none.toml"], "there is no file none.toml"),
    "no TOML": ([*BASE, "--config", "bad.toml"], "cannot read bad.toml as TOML"),
    "model that is no table": (["train", "--config", "flat.toml"], "model is 'linear' in flat.toml; expected a table"),
    "logger": ([*BASE, "--logger", "csvs"], "unknown logger 'csvs'"),
    "devices": ([*BASE, "--devices", "0"], "devices is 0"),
    "no folder": (["eval", "nowhere"], "nowhere has no experiment.json"),
    "lengths": (["eval", "nowhere", "--lengths", "a,b"], "lengths is 'a,b'; expected whole numbers with commas"),
    "unwritable": (["eval", "nowhere", "--json", "no/such/file.json"], "there is no folder no/such"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_the_users_to_mend(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("= 3")
    Path("flat.toml").write_text('task = "parity"\nmodel = "linear"\n')
    arguments, says = BAD[name]
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, StateformError), found.output
    assert says in str(found.exception)
    assert {x.name for x in tmp_path.iterdir()} == {"bad.toml", "flat.toml"}, "nothing is begun"


def test_other_loggers_come_besides_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    seen: list[Machine] = []

    def stop(*_: Any, machine: Machine, **__: Any) -> None:
        seen.append(machine)
        raise StateformError("enough")

    monkeypatch.setattr("stateform.train.train", stop)
    for given in ([], ["tensorboard"], ["csv", "wandb"]):
        CliRunner().invoke(
            app, [*BASE, "--out", str(tmp_path / "x"), *(x for name in given for x in ("--logger", name))]
        )
    assert [m.loggers for m in seen] == [("csv",), ("csv", "tensorboard"), ("csv", "wandb")]
