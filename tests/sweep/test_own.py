"""Tasks and layers of the user's own in sweeps: other processes find them, or it is said what to do."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import stateform
from stateform import StateformError
from stateform.architectures import REGISTRY
from stateform.cli import app
from stateform.sweep import engines
from stateform.sweep.own import Origin, by_value, origins
from stateform.sweep.run import sweep
from stateform.tasks import TASKS
from stateform.train import Experiment
from tests.sweep.test_sweep import BASE, grid, works
from tests.train.test_sources import OWN, SHORT

NAMED = OWN.replace("@dataclass", '@register_task("typed_echo")\n@dataclass').replace(
    "class Mine", '@sf.register("typed_layer")\nclass Mine'
).replace("import Batch, Task", "import Batch, Task, register_task")  # fmt: skip
SWEEP = f"""
from stateform.sweep.run import sweep
def run(**how):
    plan = dict(name="own", task="typed_echo", model=dict(pattern="typed_layer", d_model=8), train={SHORT})
    found = sweep(plan, "out", **how)
    print([run.status for run in found.runs], [run.error for run in found.runs])
"""


def python(*arguments: str, folder: Path, given: str | None = None) -> tuple[int, str, str]:
    """What a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], cwd=folder, capture_output=True, text=True, input=given,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_what_was_typed_is_swept_in_its_own_process(tmp_path: Path) -> None:
    code, said, errors = python("-c", f"{NAMED}{SWEEP}\nrun()", folder=tmp_path)
    assert code == 0 and "['done']" in said, (said, errors)
    note = r"stateform: Echo, Mine: defined in a notebook, .* cannot find it; the runs are computed in this one"
    assert len(re.findall(note, errors)) == 1


def test_workers_that_were_asked_for_are_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["stateform.sweep.run"], "origins", lambda *_: ["Echo"])
    with pytest.raises(StateformError, match=r"Echo: defined .* put it in a file, and name it as file.py:Class, or"):
        sweep(BASE, tmp_path / "out", workers=2, runner=works)
    assert not (tmp_path / "out").exists()


def test_a_script_that_is_a_sweep_has_a_log_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(f"{NAMED}{SWEEP}\nrun(workers=1)\n")
    _, said, errors = python("bad.py", folder=tmp_path)
    assert "['failed']" in said and "put that below `if __name__" in said and not errors, (said, errors)
    (log,) = (tmp_path / "out" / "logs").glob("*.txt")
    assert "Traceback" in log.read_text() and "a worker of a sweep has come upon a sweep" in log.read_text()


@pytest.mark.slow
def test_a_script_is_run_again_by_workers(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(f'{NAMED}{SWEEP}\nif __name__ == "__main__":\n    run(workers=1)\n')
    code, said, errors = python("good.py", folder=tmp_path)
    assert code == 0 and "['done'] [None]" in said and not errors, (said, errors)


@pytest.mark.slow
def test_a_script_from_the_standard_input_needs_nothing_of_its_own(tmp_path: Path) -> None:
    """There is no file that a worker could run again, and no need to."""
    plain = SWEEP.replace("typed_echo", "mqar(length=8, n_pairs=2, vocab_size=12)").replace("typed_layer", "linear")
    code, said, errors = python("-", folder=tmp_path, given=f"{plain}\nrun(workers=1)\n")
    assert code == 0 and "['done']" in said and not errors, errors


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's file, in which commands are given."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    settings = "\n".join(f"{name} = {value}" for name, value in SHORT.items())
    Path("own.toml").write_text(
        f'task = "own.py:Echo(length=8)"\n[model]\npattern = "own.py:Mine*2 linear"\nd_model = 8\n[train]\n{settings}\n'
    )
    return tmp_path


def command(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_files_are_named_in_commands(folder: Path) -> None:
    found = command("train", "--config", "own.toml", "--accelerator", "cpu")
    assert found.exit_code == 0, (found.output, found.exception)
    (run,) = (folder / "runs").iterdir()
    assert re.fullmatch(r"Echo-[0-9a-f]{16}", run.name)
    again = command("train", "own.py:Echo(length=8)", "--config", "own.toml", "--model", "own.py:Mine*2 linear")
    assert again.exit_code == 0 and "Going on" not in again.output and len(list((folder / "runs").iterdir())) == 1
    tested = command("eval", str(run), "--examples", "2", "--code", "own.py")
    assert tested.exit_code == 0, tested.exception
    swept = command("sweep", "own.toml", "--workers", "1", "--set", "grid.train.seed=[0,1]")
    assert swept.exit_code == 0 and "2/2" in swept.output, (swept.output, swept.exception)


def test_a_worker_works_where_the_sweep_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths may be relative, and the process may have gone to another folder since it began."""
    (folder / "text.txt").write_text("sea and again " * 100)
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    model = {"pattern": "../own.py:Mine", "d_model": 8}
    plan = {"name": "own", "task": "text(path='../text.txt', length=8)", "model": model, "train": SHORT}
    found = sweep(plan, "out", workers=1)
    assert [run.status for run in found.runs] == ["done"], found.runs[0].error
    assert {x.name for x in (folder / "below").iterdir()} == {"out"}


def test_where_classes_come_from(folder: Path) -> None:
    made = Experiment.from_dict(
        {"task": "own.py:Echo", "model": {"pattern": "own.py:Mine linear", "d_model": 8}, "train": SHORT},
        run_files=True,
    )
    file = Origin("file", str(folder / "own.py"))
    assert origins([made], works) == [file] == list(dict.fromkeys(by_value([made])))
    assert origins([], engines.trained) == []
    cls = type(made.task)
    try:
        cls.__module__, TASKS["typed"] = "__main__", cls
        (origin, _) = by_value([made])
        assert origin.kind == "value"
        del TASKS["typed"]
        origin.bring()
        assert TASKS["typed"] is cls and "typed" not in REGISTRY
    finally:
        cls.__module__ = "stateform_user_own"
        TASKS.pop("typed", None)


def dies_first(*_: Any) -> dict[str, Any]:
    os._exit(1)


def test_a_death_leaves_a_log_and_says_where(tmp_path: Path) -> None:
    said: list[str] = []
    found = sweep(grid(1), tmp_path, workers=1, runner=dies_first, on_finished=said.append)
    log = tmp_path / "logs" / f"{found.runs[0].key}.txt"
    assert log.read_text().count("its process ended with exit code 1") == 5
    assert str(log) in str(found.failed[0].error) and all(str(log) in line for line in said)


def fails_here(*_: Any) -> dict[str, Any]:
    raise RuntimeError("no such thing")


def test_a_failure_in_this_process_leaves_a_log(tmp_path: Path) -> None:
    found = sweep(grid(1), tmp_path, workers=0, runner=fails_here)
    log = (tmp_path / "logs" / f"{found.runs[0].key}.txt").read_text()
    assert "Traceback" in log and "no such thing" in log


def test_the_package_is_sent_by_its_name() -> None:
    """What was typed names it, and goes to the machines of a cluster."""
    assert pickle.loads(pickle.dumps(stateform)) is stateform


@pytest.mark.slow
def test_ray_has_files_and_what_was_typed(folder: Path) -> None:
    pytest.importorskip("ray")
    found = command("sweep", "own.toml", "--engine", "ray", "--workers", "1")
    assert found.exit_code == 0 and "1/1" in found.output, (found.output, found.exception)
    code, said, errors = python("-c", f"{NAMED}{SWEEP}\nrun(engine='ray', workers=1)", folder=folder)
    assert code == 0 and "['done'] [None]" in said, (said, errors)
