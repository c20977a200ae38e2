"""What an experiment depends on besides its settings: changed data and code are refused, another version is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stateform import StateformError
from stateform.architectures import resolve
from stateform.sweep.results import results
from stateform.sweep.run import sweep
from stateform.tasks import Task, make_task
from stateform.train import Experiment, Machine, Outcome, evaluate, load_trained, train
from stateform.train import sources as module

CPU = Machine("cpu", loggers=())
SHORT = {"steps": 4, "batch_size": 2, "eval_every": 2, "eval_examples": 2, "test_examples": 2, "test_lengths": [8]}
OWN = '''
import torch
import stateform as sf
from stateform.tasks import Batch, Task
from dataclasses import dataclass

LAG = 1
UNUSED = 1

def shifted(x):
    return x.roll(LAG, 1)

@dataclass(frozen=True, kw_only=True)
class Echo(Task):
    """The token before."""
    length: int = 8

    @property
    def vocab_size(self):
        return 5

    def draw(self, n, length, rng, split):
        x = torch.from_numpy(rng.randint(0, 5, (n, length)))
        return Batch(x, shifted(x))

class Mine(sf.Layer):
    def __init__(self, d_model: int):
        super().__init__(d_model)
        self.proj = torch.nn.Linear(d_model, d_model)

    def system(self, u, past=None):
        x = self.proj(u)[:, :, None]
        return sf.System(x, x, x, log_decay=torch.full(x.shape[:3], -0.5))

    def output(self, y, u, system, past=None):
        return y.flatten(2)
'''


def made(task: Any, pattern: str = "linear", **settings: Any) -> Experiment:
    values = {"task": task, "model": {"pattern": pattern, "d_model": 8}, "train": {**SHORT, **settings}}
    return Experiment.from_dict(values, run_files=True)


def stop_after_a_round(experiment: Experiment, folder: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(experiment, folder, machine=CPU, on_round=stop)


def numbers(outcome: Outcome) -> dict[str, Any]:
    return {k: v for k, v in outcome.metrics.items() if k != "seconds"}


def text(path: Path, word: str) -> Path:
    path.write_text(f"{word} and again " * 100)
    return path


def trees(path: Path, value: int) -> Path:
    """A file of the Long Range Arena; nothing but its values differs, and its size not at all."""
    path.write_text("Source\tTarget\n" + f"( ( [MIN {value} ) 5 ] )\t{value}\n" * 40)
    return path


DATA: dict[str, Any] = {"text": (text, ("sea", "sun"), "text"), "trees": (trees, (1, 2), "listops")}


@pytest.mark.parametrize("how", ["stopped", "finished"])
@pytest.mark.parametrize("kind", DATA)
def test_replaced_data_are_refused(kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, (before, after), name = DATA[kind]
    monkeypatch.chdir(tmp_path)
    path, folder = write(Path("data.txt"), before), tmp_path / "run"
    experiment = made(f"{name}(path='data.txt', length=8)")
    undisturbed = train(experiment, machine=CPU)
    (stop_after_a_round if how == "stopped" else train)(experiment, folder)
    kept = {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}
    write(path, after)
    os.utime(path, ns=(1, 1))  # the time and the size of a file are no part of what it is
    with pytest.raises(
        StateformError, match=rf"what {name}\(.*data.txt.*\) reads has changed since; bring it back, or"
    ):
        train(experiment, folder, machine=CPU)
    assert {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()} == kept
    assert train(experiment, tmp_path / "other", machine=CPU).metrics["sources"] != undisturbed.metrics["sources"]
    write(path, before)
    assert numbers(train(experiment, folder, machine=CPU)) == numbers(undisturbed)


def test_an_outcome_whose_data_are_gone_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(self: Task) -> str:
        raise StateformError("no data: there is no folder mnist")

    experiment = made("mqar(length=8, n_pairs=2, vocab_size=12)")
    outcome = train(experiment, tmp_path / "run", machine=CPU)
    monkeypatch.setattr(Task, "contents", gone)
    assert train(experiment, tmp_path / "run", machine=CPU) == outcome
    assert "no folder mnist: the outcome in" in (said := capsys.readouterr().err) and "held against it" in said
    with pytest.raises(StateformError, match="no folder mnist"):
        train(experiment, tmp_path / "other", machine=CPU)


def test_trained_on_other_data_it_is_tested_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text(tmp_path / "data.txt", "sea")
    outcome = train(made(f"text(path='{path}', length=8)"), tmp_path / "run", machine=CPU)
    assert evaluate(tmp_path / "run") == outcome.metrics["test"] and not capsys.readouterr().err
    text(path, "sun")
    assert evaluate(tmp_path / "run") != outcome.metrics["test"]
    assert "has changed since the training" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [False, True])
def test_what_the_first_version_wrote_is_gone_on_with(
    finished: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = made(f"text(path='{text(tmp_path / 'data.txt', 'sea')}', length=8)")
    undisturbed = train(experiment, machine=CPU)
    (train if finished else stop_after_a_round)(experiment, tmp_path / "run")
    books = tmp_path / "run" / "experiment.json"
    first = {k: v for k, v in json.loads(books.read_text()).items() if k != "sources"}
    books.write_text(json.dumps(first))
    assert numbers(train(experiment, tmp_path / "run", machine=CPU)) == numbers(undisturbed)
    assert "may have changed since: it was not written down" in capsys.readouterr().err
    assert Experiment.from_dict(first).key == experiment.key, "the key is that of the first version"


def test_another_version_is_said_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = made("mqar(length=8, n_pairs=2, vocab_size=12)")
    stop_after_a_round(experiment, tmp_path / "run")
    assert not capsys.readouterr().err
    monkeypatch.setattr(module, "stateform_version", lambda: "9.9")
    train(experiment, tmp_path / "run", machine=CPU)
    assert "begun with stateform 0." in (said := capsys.readouterr().err) and "this is 9.9" in said


@pytest.mark.parametrize(
    "change, named",
    [
        ("LAG = 1>LAG = 2", "the code of Echo"), ("randint(0, 5,>randint(0, 4,", "the code of Echo"),
        ("-0.5)>-0.25)", "the code of Mine"), ("UNUSED = 1>UNUSED = 2", None), ("LAG = 1>LAG = 1  # a word", None),
    ],
)  # fmt: skip
def test_code_that_was_changed_is_refused(change: str, named: str | None, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    asked = (f"{file}:Echo", f"{file}:Mine")
    stop_after_a_round(made(*asked), tmp_path / "run")
    before, after = change.split(">")
    assert before in OWN
    file.write_text(OWN.replace(before, after))
    os.utime(file, ns=(1, 1))
    changed = made(*asked)
    if named is None:
        assert train(changed, tmp_path / "run", machine=CPU).metrics["steps"] == 4
        return
    with pytest.raises(StateformError, match=f"{named} has changed since; bring it back"):
        train(changed, tmp_path / "run", machine=CPU)


def test_code_without_a_source_has_no_hash() -> None:
    space: dict[str, Any] = {"__name__": "typed"}
    exec("class Typed:\n    def f(self): pass", space)
    assert module.code_of(space["Typed"]) is None and module.code_of(Experiment) == module.code_of(type(CPU))


def test_a_sweep_of_replaced_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = text(tmp_path / "data.txt", "sea")
    plan = {"name": "s", "task": f"text(path='{path}', length=8)", "model": {"pattern": "linear", "d_model": 8},
            "train": SHORT, "grid": {"train.seed": [0, 1]}}  # fmt: skip
    found = sweep(plan, tmp_path / "out", workers=0)
    text(path, "sun")
    with pytest.raises(StateformError, match=r"has the outcome of .*seed 0, but what text.* reads has changed since"):
        sweep(plan, tmp_path / "out", workers=0)
    assert [run.outcome for run in results(tmp_path / "out" / "store.db").runs] == [run.outcome for run in found.runs]
    text(path, "sea")
    capsys.readouterr()
    assert sweep(plan, tmp_path / "out", workers=0).complete and not capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:  # a store of the first version
        first = [run for run in found.runs]
        for run in first:
            del run.outcome["metrics"]["sources"]  # type: ignore[index]
        patch.setattr("stateform.sweep.store.Store.runs", lambda *_: first)
        sweep(plan, tmp_path / "out", workers=0)
    assert capsys.readouterr().err.count("it was not written down") == 1


# -- files that are named ----------------------------------------------------------------------------------------------


def test_a_file_is_run_where_it_is_named_and_nowhere_else(tmp_path: Path) -> None:
    file, ran = tmp_path / "own.py", tmp_path / "ran"
    file.write_text(OWN + f"\nwith open({str(ran)!r}, 'a') as file:\n    file.write('x')\n")
    values = {"task": f"{file}:Echo(length=4)", "model": {"pattern": f"{file}:Mine*2", "d_model": 8}, "train": SHORT}
    with pytest.raises(StateformError, match=r"is not run unasked; if you trust it, .*run_file\('.*own.py'\)"):
        Experiment.from_dict(values)
    assert not ran.exists()
    experiment = Experiment.from_dict(values, run_files=True)
    train(experiment, tmp_path / "run", machine=CPU)
    assert ran.read_text() == "x", "once for both of its classes"
    again, model = load_trained(tmp_path / "run")
    assert again.key == experiment.key and len(model.blocks) == 2 and again.task.length == 4
    assert again.task == make_task(f"{file}:Echo", {"length": 4})
    other = tmp_path / "other.py"
    other.write_text(OWN + f"\nwith open({str(ran)!r}, 'a') as file:\n    file.write('y')\n")
    for name in ("experiment.json", "config.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(str(file), str(other)))
    with pytest.raises(StateformError, match="not run unasked"):
        load_trained(tmp_path / "run")
    with pytest.raises(StateformError, match="run it first"):
        type(model).from_pretrained(tmp_path / "run")
    assert ran.read_text() == "x"
    assert resolve(f"{other}:Mine")[0].__name__ == "Mine" and ran.read_text() == "xy"
    assert type(model).from_pretrained(tmp_path / "run").config.pattern == f"{other}:Mine*2"


@pytest.mark.parametrize(
    "spec, says",
    [
        ("none.py:Echo", "there is no file none.py"), ("own.py:Ecko", "own.py has no task 'Ecko': did you mean Echo"),
        ("own.py:Mine", "has no task 'Mine'"), ("bad.py", "bad.py could not be run: ZeroDivisionError"),
        ("empty.py", "empty.py defines no task; expected a class derived from stateform.tasks.Task"),
        ("own.py:Echo(lagg=3)", "has no option 'lagg'"),
    ],
)  # fmt: skip
def test_tasks_in_files_that_cannot_be(spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("bad.py").write_text("1 / 0")
    Path("empty.py").write_text("")
    with pytest.raises(StateformError) as error:
        make_task(spec)
    assert says in str(error.value)
