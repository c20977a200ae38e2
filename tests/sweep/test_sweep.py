"""Sweeps: what a file asks for, runs that die in every way, and a store that loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stateform import StateformError
from stateform.cli import app
from stateform.result import Progress
from stateform.sweep import run as sweeps
from stateform.sweep import search
from stateform.sweep.engines.processes import visible_gpu
from stateform.sweep.plan import Plan, read_plan
from stateform.sweep.run import sweep
from stateform.sweep.store import CRASHES, Store
from stateform.train.config import Experiment

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "name": "small", "task": "mqar(length=16, n_pairs=2, vocab_size=32)",
    "model": {"pattern": "linear", "d_model": 16}, "train": {"steps": 10},
}  # fmt: skip
GRID = {"model.d_state": [2, 4], "train.seed": [0, 1, 2]}
VARIANTS = [{"label": name, "set": {"model.pattern": name}} for name in ("linear", "normalized", "mamba2", "deltanet")]


def grid(seeds: int = 3, **more: Any) -> dict[str, Any]:
    return BASE | {"grid": {"train.seed": list(range(seeds))}} | more


# -- runners, which other processes import ------------------------------------------------------------------------


def outcome(experiment: dict[str, Any]) -> dict[str, Any]:
    score = 0.5 + 0.01 * experiment["train"]["seed"] - abs(experiment["train"]["lr"] - 3e-3)
    metrics = {"metric": "accuracy", "valid": score, "test": {"16": {"accuracy": score}, "32": {"accuracy": score / 2}},
               "loss": float("nan"), "steps": 10, "seconds": 0.1, "parameters": 100, "stopped": "all steps done",
               "state_size": 16 * experiment["model"].get("d_state", 4)}  # fmt: skip
    return {"experiment": experiment, "metrics": metrics}


def begun(folder: Path) -> str:
    """Write down that a run was begun, and the process that does it; the run's key."""
    with (folder.parent.parent / "calls.txt").open("a") as file:
        file.write(f"{folder.name} {os.getpid()}\n")
    return folder.name


def calls(folder: Path) -> Counter[str]:
    path = folder / "calls.txt"
    return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()


def works(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun(folder)
    on_progress("training", 5, 10)
    return outcome(experiment)


def dies(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    """Killed as long as there are tokens to take, in the middle of the run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun(folder)
    for token in sorted((folder.parent.parent / "tokens").glob("*")):
        with contextlib.suppress(FileNotFoundError):
            token.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return outcome(experiment)


def fails(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    print("what it printed")
    if experiment["train"]["seed"] == 1 and not (folder.parent.parent / "mended").exists():
        raise RuntimeError("the loss is not finite")
    return works(experiment, folder, on_progress)


def waits(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    """Some are done at once; the others wait until the file `go` is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun(folder)
    while experiment["train"]["seed"] >= 4 and not (folder.parent.parent / "go").exists():
        time.sleep(0.02)
    return outcome(experiment)


def interrupts(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    if experiment["train"]["seed"] == 1 and not (folder.parent.parent / "mended").exists():
        raise KeyboardInterrupt
    return works(experiment, folder, on_progress)


# -- what a file asks for -----------------------------------------------------------------------------------------


def test_every_combination_is_a_run() -> None:
    plan = read_plan(BASE | {"grid": GRID, "variants": VARIANTS})
    assert len(plan.runs) == plan.total == 24
    first = plan.runs[0]
    assert (first.label, first.settings) == ("linear", {"model.d_state": 2, "train.seed": 0})
    assert first.experiment.model == {"pattern": "linear", "d_model": 16, "d_state": 2}
    assert len({run.experiment.key for run in plan.runs}) == 24


def test_names_may_be_tables(tmp_path: Path) -> None:
    file = tmp_path / "sizes.toml"
    file.write_text(
        'task = "mqar(length=16, n_pairs=2, vocab_size=32)"\nmodel.d_model = 16\n[grid]\nmodel.d_state = [2, 4]\n'
        '"train.seed" = [0, 1]\n[[variants]]\nlabel = "a"\nset = {model.pattern = "linear"}\n'
        '[quick]\ngrid.train.seed = [7]\ntrain.steps = 3\n'
    )  # fmt: skip
    assert [run.settings for run in read_plan(file).runs] == [
        {"model.d_state": n, "train.seed": s} for n in (2, 4) for s in (0, 1)
    ]
    quick = read_plan(file, quick=True)
    assert (quick.name, quick.total) == ("sizes-quick", 2)
    assert quick.runs[0].experiment.train.steps == 3 and quick.runs[0].experiment.train.seed == 7


def test_a_variant_has_axes_of_its_own() -> None:
    variants = [
        *VARIANTS[:1],
        {"label": "lstm", "set": {"model.pattern": "lstm"}, "skip": ["model.d_state", "model.n_heads"]},
        {"label": "wide", "set": {"model.d_model": 32}, "grid": {"model.d_state": [8], "train.lr": [1e-3, 3e-3]}},
        {"label": "fixed", "set": {"model.d_state": 16}},
    ]
    base = BASE | {"model": BASE["model"] | {"n_heads": 2}}
    runs = read_plan(base | {"grid": GRID, "variants": variants}).runs
    assert Counter(run.label for run in runs) == {"linear": 6, "lstm": 3, "wide": 6, "fixed": 3}
    assert all("n_heads" not in run.experiment.model for run in runs if run.label == "lstm")
    assert runs[6].settings == {"train.seed": 0}


def test_overrides_are_stronger_than_everything() -> None:
    values = BASE | {"grid": GRID, "variants": VARIANTS}
    plan = read_plan(values, overrides=["train.seed=5"])
    assert plan.total == 8 and {run.experiment.train.seed for run in plan.runs} == {5}
    plan = read_plan(values, overrides=["train.seed=[5, 6]", "train.steps=7", "task.n_pairs=3"])
    assert plan.total == 16
    assert {(r.experiment.train.steps, r.experiment.task.options()["n_pairs"]) for r in plan.runs} == {(7, 3)}
    assert read_plan(values, overrides=["grid.model.d_state=[2]"]).total == 12
    with pytest.raises(StateformError, match=r"two runs are the same experiment: linear, .*normalized"):
        read_plan(values, overrides=["model.pattern=linear"])
    fixed = read_plan(
        BASE | {"search": {"trials": 3, "space": {"train.lr": [1e-3, 1e-2]}}}, overrides=["train.lr=1e-4"]
    )
    assert fixed.total == 1 and not fixed.space


def test_tasks_are_an_axis_too() -> None:
    plan = read_plan(BASE | {"grid": {"task": ["parity", "mqar(length=16, n_pairs=2)"], "train.seed": [0]}})
    assert [run.experiment.task.name for run in plan.runs] == ["parity", "mqar"]
    assert read_plan(BASE, overrides=["task=parity(length=8)"]).runs[0].experiment.task.length == 8


def test_overrides_reach_whole_tasks_and_the_variants_that_vary_nothing() -> None:
    tasks = {"task": ["parity", "counting(modulus=5)"]}
    variants = [*VARIANTS[:1], {"label": "other", "set": {"model.pattern": "linear", "task": "dyck(length=30)"}}]
    plan = read_plan(BASE | {"grid": tasks, "variants": variants}, overrides=["task.length=20"])
    assert [r.experiment.task.spec for r in plan.runs] == [
        "parity(length=20)", "counting(length=20, modulus=5)", "dyck(length=20)",
    ]  # fmt: skip
    assert read_plan(BASE | {"grid": tasks}, overrides=["task=['dyck']"]).runs[0].experiment.task.name == "dyck"
    with pytest.raises(StateformError, match="expected one task, as the sweep varies none"):
        read_plan(BASE, overrides=["task=['parity', 'dyck']"])
    own = [*VARIANTS[:1], {"label": "own", "set": {"model.pattern": "mamba2"}, "grid": {"train.lr": [1e-3, 3e-3]}}]
    plan = read_plan(BASE | {"variants": own}, overrides=["train.lr=1e-4"])
    assert [(r.label, r.experiment.train.lr) for r in plan.runs] == [("linear", 1e-4), ("own", 1e-4)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gird": {}}, "no part 'gird': did you mean grid"),
        ({"name": "a/b"}, "the sweep's name is 'a/b'"),
        ({"grid": {"model.d_stat": [4]}}, "no setting 'd_stat': did you mean d_state"),
        ({"grid": {"train.sed": [4]}}, "in linear.*no setting 'sed': did you mean seed"),
        ({"grid": {"task.n_pair": [4]}}, "no option 'n_pair': did you mean n_pairs"),
        ({"grid": {"modle.d_state": [4]}}, "'modle.d_state'; expected task.NAME.* did you mean model"),
        ({"grid": {"seed": [4]}}, "'seed'; expected task.NAME"),
        ({"grid": {"train.seed": []}}, "train.seed has no values"),
        ({"grid": {"train.seed": 3}}, "train.seed is 3; expected a list"),
        ({"grid": {"train.seed": [1, 1]}}, "train.seed has 1 twice"),
        ({"grid": {"train.lr": [1e-3, -1.0]}}, "lr is -1.0; expected a number above 0"),
        ({"grid": 3}, r"\[grid\] is 3; expected a table"),
        ({"variants": []}, "variants is"),
        ({"variants": [{"set": {}}]}, "label None"),
        ({"variants": [{"label": "a", "sett": {}}]}, "variant 'a' has no part 'sett': did you mean set"),
        ({"variants": [{"label": "a"}, {"label": "a"}]}, "two variants have the label 'a'"),
        ({"variants": [{"label": "a"}, {"label": "b"}]}, "two runs are the same experiment: a and b"),
        ({"variants": [{"label": "a", "skip": ["train.sed"]}], "grid": {"train.seed": [0]}}, "did you mean train.seed"),
        ({"variants": [{"label": "a", "skip": ["train.seed"]}], "grid": {"train.seed": [0]}}, "every variant skips"),
        ({"variants": [{"label": "a", "set": {"model.pattern": "lineer"}}]}, "in a: .*lineer.*linear"),
        ({"search": {"space": {"train.lr": [1]}}}, "trials = 0"),
        ({"search": {"trials": 3}}, "space.* is empty"),
        ({"search": {"trials": 3, "space": {"train.lr": {"low": 1}}}}, "expected numbers low < high"),
        ({"search": {"trials": 3, "space": {"train.lr": {"low": 0, "high": 1, "log": True}}}}, "starts above 0"),
        ({"search": {"trials": 3, "space": {"train.lr": {"low": 0.1, "hihg": 1}}}}, "no 'hihg': did you mean high"),
        ({"search": {"trials": 3, "space": {"train.lr": {"low": -1, "high": 1}}}}, "in linear, lr -1: lr is -1"),
        ({"search": {"trials": 3, "space": {"train.seed": [0, 1]}}, "grid": {"train.seed": [0]}}, "both an axis"),
        ({"search": {"trials": 3, "space": {"model.d_stat": [4]}}}, "did you mean d_state"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_any_work(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "variants" not in change:
        change = {"variants": VARIANTS[:1]} | change
    with pytest.raises(StateformError, match=said):
        sweep(BASE | change, tmp_path / "out", workers=0, runner=works)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [("my sweep (1).toml", "my-sweep-1"), ("a.b_c-d.toml", "a.b_c-d"), ("größe.toml", "größe"), ("(  ).toml", "sweep")],
)
def test_a_file_may_have_any_name(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text('task = "parity"\nmodel = {pattern = "linear", d_model = 16}\n')
    assert read_plan(tmp_path / file).name == name


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StateformError, match="there is no file"):
        read_plan(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[grid\n")
    with pytest.raises(StateformError, match="as TOML"):
        read_plan(tmp_path / "bad.toml")
    with pytest.raises(StateformError, match=r"no table \[quick\]"):
        read_plan(BASE, quick=True)
    with pytest.raises(StateformError, match="did you mean train"):
        read_plan(BASE, overrides=["trian.steps=3"])


# -- the store ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db", create=True) as opened:
        yield opened


def rows(n: int = 3) -> list[Any]:
    return [run.row for run in read_plan(grid(n)).runs]


def test_a_run_is_there_once_and_finished_once(store: Store) -> None:
    store.add("s", rows())
    keys = [row[0] for row in rows()]
    run = store.claim("s", keys)
    assert run is not None and store.finish(run, {"metrics": {"valid": float("inf")}})
    store.add("s", rows())
    assert [(r.status, r.attempts) for r in store.runs("s")] == [("done", 1), ("waiting", 0), ("waiting", 0)]
    assert store.runs()[0].outcome == {"metrics": {"valid": None}}
    assert not store.finish(run, {"metrics": {}}) and not store.fail(run, "no")
    with pytest.raises(sqlite3.IntegrityError, match="done already"):
        store.connection.execute("UPDATE runs SET status = 'waiting'")
    assert Experiment.from_dict(store.runs()[0].experiment).key == keys[0]


def test_two_claim_different_runs(store: Store) -> None:
    store.add("s", rows())
    store.add("other", rows())
    keys = [row[0] for row in rows()]
    with Store(store.path) as second:
        taken = [one.claim("s", keys) for one in (store, second, store, second)]
        assert [run and run.settings["train.seed"] for run in taken] == [0, 1, 2, None]
        assert second.claim("other", keys) is None  # the same experiments, which run just now
        assert taken[0] is not None and not second.finish(taken[0], {})
    assert store.claim("s", []) is None


def test_what_a_dead_process_had_is_free_again(store: Store) -> None:
    store.add("s", rows())
    keys = [row[0] for row in rows()]
    for _ in keys:
        store.claim("s", keys)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = store.worker.split(":")[0]
    others = [f"{here}:{ended.pid}:a", f"{here}:{os.getppid()}:b", "elsewhere:1:c"]
    for key, worker in zip(keys, others):
        store.connection.execute("UPDATE runs SET worker = ? WHERE key = ?", (worker, key))
    assert store.recover() == 1
    assert [run.status for run in store.runs()] == ["waiting", "running", "running"]
    store.connection.execute("UPDATE runs SET heartbeat = heartbeat - 61")
    assert store.recover() == 2


def test_the_heart_beats(store: Store) -> None:
    store.add("s", rows(1))
    store.claim("s", [rows(1)[0][0]])
    store.connection.execute("UPDATE runs SET heartbeat = 0")
    with store.beating(every=0.01):
        for _ in range(1000):
            if store.connection.execute("SELECT heartbeat FROM runs").fetchone()[0]:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no heartbeat")


def test_a_run_that_crashes_again_and_again_fails(store: Store) -> None:
    store.add("s", rows(1))
    key = rows(1)[0][0]
    for k in range(CRASHES):
        run = store.claim("s", [key])
        assert run is not None and store.record_crash(run, "killed") is (k + 1 < CRASHES)
    assert store.runs()[0].status == "failed" and store.runs()[0].error == "killed"
    assert store.retry("s", [key]) == 1 and store.claim("s", [key]) is not None


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    text, other, later = tmp_path / "a.db", tmp_path / "b.db", tmp_path / "c.db"
    text.write_text("not a database, but a text that is longer than the header of one is" * 9)
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE meta (stuff)")
        connection.execute("CREATE TABLE runs (stuff)")
    with Store(later, create=True) as store:
        store.connection.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    for path, said in ((text, "no SQLite database"), (other, "tables meta, runs, and no store"), (later, "format 2")):
        before = path.read_bytes()
        for create in (True, False):
            with pytest.raises(StateformError, match=said):
                Store(path, create=create)
        assert path.read_bytes() == before
    with pytest.raises(StateformError, match="there is no store"):
        Store(tmp_path / "none.db")
    with pytest.raises(StateformError, match="is a folder"):
        Store(tmp_path)
    with pytest.raises(StateformError, match="cannot make the folder"):
        Store(text / "below" / "a.db", create=True)


def test_a_damaged_store_is_refused_and_left(tmp_path: Path) -> None:
    sweep(grid(60), tmp_path, workers=0, runner=lambda e, f, p: outcome(e))
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30000] = b"\xff" * 30000
    path.write_bytes(data)
    with pytest.raises(StateformError, match="is damaged"):
        Store(path)
    with pytest.raises(StateformError, match="damaged"):
        sweep(grid(60), tmp_path, workers=0, runner=works)
    assert path.read_bytes() == data and not calls(tmp_path)


def test_a_full_disk(store: Store) -> None:
    store.add("s", rows())
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count = {pages}")
    run = store.claim("s", [row[0] for row in rows()])
    assert run is not None
    with pytest.raises(StateformError, match=r"full; make room and run the same command again"):
        store.finish(run, {"metrics": "x" * 100000})
    store.connection.execute("PRAGMA max_page_count = 100000")
    assert store.runs()[0].status == "running" and store.finish(run, {"metrics": {}})


# -- running ------------------------------------------------------------------------------------------------------


def test_in_this_process(tmp_path: Path) -> None:
    said: list[str] = []
    shown: list[tuple[str, int, int]] = []
    found = sweep(
        grid(), tmp_path, workers=0, runner=works, on_finished=said.append, on_progress=lambda *a: shown.append(a)
    )
    assert [run.status for run in found.runs] == ["done"] * 3 and found.complete and not found.failed
    assert re.fullmatch(r"2/3  linear  seed 1   accuracy 0\.508   0 s", said[1])
    assert ("1/3  linear  seed 1: training", 1500, 3000) in shown and shown[-1][1:] == (3000, 3000)
    sweep(grid(5), tmp_path, workers=0, runner=works)
    assert len(calls(tmp_path)) == 5 and set(calls(tmp_path).values()) == {1}
    assert [len(sweep(grid(n), tmp_path, workers=0, runner=works).runs) for n in (1, 5)] == [1, 5]


def test_what_fails_fails_alone_and_is_tried_again_when_asked(tmp_path: Path) -> None:
    found = sweep(grid(), tmp_path, workers=2, runner=fails)
    assert [run.status for run in found.runs] == ["done", "failed", "done"]
    assert found.failed[0].error == "RuntimeError: the loss is not finite"
    log = (tmp_path / "logs" / f"{found.failed[0].key}.txt").read_text()
    assert "what it printed" in log and "Traceback" in log
    (tmp_path / "mended").touch()
    again = sweep(grid(), tmp_path, workers=0, runner=fails)
    assert again.failed
    again = sweep(grid(), tmp_path, workers=0, runner=fails, retry=True)
    assert not again.failed and len(again.runs) == 3
    assert set(calls(tmp_path).values()) == {1}


def test_after_an_interruption_it_goes_on(tmp_path: Path) -> None:
    found = sweep(grid(), tmp_path, workers=0, runner=interrupts)
    assert not found.complete and [run.status for run in found.runs] == ["done", "waiting", "waiting"]
    (tmp_path / "mended").touch()
    found = sweep(grid(), tmp_path, workers=0, runner=interrupts)
    assert found.complete and [run.status for run in found.runs] == ["done"] * 3
    assert set(calls(tmp_path).values()) == {1}


def test_24_runs_whose_workers_are_killed_ten_times(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    for k in range(10):
        (tmp_path / "tokens" / str(k)).touch()
    said: list[str] = []
    found = sweep(
        BASE | {"grid": GRID, "variants": VARIANTS}, tmp_path, workers=2, runner=dies, on_finished=said.append
    )
    assert not list((tmp_path / "tokens").iterdir())
    assert len(found.runs) == len({run.key for run in found.runs}) == 24
    assert {run.status for run in found.runs} == {"done"}
    assert sum(run.crashes for run in found.runs) == 10 == sum("SIGKILL" in line for line in said)
    assert sum(calls(tmp_path).values()) == 34 and len(said) == 34 and said[-1].startswith("24/24")
    with Store(tmp_path / "store.db") as store:
        assert len(store.runs()) == 24


def test_a_run_that_always_kills_its_worker_ends(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    for k in range(50):
        (tmp_path / "tokens" / str(k)).touch()
    found = sweep(grid(1), tmp_path, workers=1, runner=dies)
    assert found.runs[0].status == "failed" and "SIGKILL" in str(found.runs[0].error)
    assert sum(calls(tmp_path).values()) == CRASHES


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def exits(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    """Ended by SIGTERM, as `train` ends then, when it is begun first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    key = begun(folder)
    if calls(folder.parent.parent)[key] == 1:
        raise SystemExit(143)
    return outcome(experiment)


def test_a_worker_that_is_asked_to_end_has_failed_nothing(tmp_path: Path) -> None:
    found = sweep(grid(1), tmp_path, workers=1, runner=exits)
    assert [(run.status, run.crashes) for run in found.runs] == [("done", 1)]


def test_what_runs_in_another_sweep_is_waited_for(tmp_path: Path) -> None:
    plan, begun = read_plan(grid(2)), threading.Event()

    def elsewhere() -> None:
        with Store(tmp_path / "store.db", create=True) as other:
            other.add("other", [plan.runs[0].row])
            run = other.claim("other", [plan.runs[0].experiment.key])
            begun.set()
            time.sleep(0.5)
            assert run is not None and other.finish(run, outcome(run.experiment))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert begun.wait(60)
    found = sweep(plan, tmp_path, workers=0, runner=works)
    thread.join()
    assert [run.status for run in found.runs] == ["done"] * 2


def test_a_sweep_killed_as_a_whole_repeats_nothing_that_is_finished(tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom tests.sweep.test_sweep import grid, sweep, waits\n"
        "if __name__ == '__main__':\n    sweep(grid(8), sys.argv[1], workers=2, runner=waits)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        for _ in range(6000):
            if sum(calls(tmp_path).values()) >= 6 or process.poll() is not None:
                break
            time.sleep(0.02)
        assert sum(calls(tmp_path).values()) == 6  # four are done, two are being computed
    finally:
        process.kill()
        process.wait()
    workers = {int(line.split()[1]) for line in (tmp_path / "calls.txt").read_text().splitlines()}
    for _ in range(1000):
        if not any(map(alive, workers)):
            break
        time.sleep(0.02)
    assert not any(map(alive, workers)), "workers without a parent go on"
    with Store(tmp_path / "store.db") as store:
        done = {run.key for run in store.runs() if run.status == "done"}
        assert len(done) == 4
    (tmp_path / "go").touch()
    found = sweep(grid(8), tmp_path, workers=0, runner=waits)
    assert [run.status for run in found.runs] == ["done"] * 8
    assert {key: n for key, n in calls(tmp_path).items() if n != 1 and key in done} == {}
    assert sorted(calls(tmp_path).values()) == [1] * 6 + [2] * 2


def test_what_cannot_be_asked_of_it(tmp_path: Path) -> None:
    for options, said in (
        ({"engine": "rey"}, "did you mean ray"), ({"workers": -1}, "workers is -1"), ({"address": "x"}, "engine ray"),
        ({"engine": "ray", "workers": 0}, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(StateformError, match=said):
            sweep(grid(), tmp_path / "out", runner=works, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_gpus_are_dealt_out() -> None:
    assert [visible_gpu(k, None) for k in range(2)] == ["0", "1"]
    assert visible_gpu(1, "3, 5") == "5"


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "optuna", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    searched = BASE | {"search": {"trials": 2, "space": {"train.lr": [1e-3, 1e-2]}}}
    for values, options in ((grid(), {"engine": "ray"}), (searched, {"workers": 0})):
        with pytest.raises(StateformError, match=r"stateform\[sweep\]"):
            sweep(values, tmp_path, runner=works, **options)  # type: ignore[arg-type]
    with pytest.raises(StateformError, match=r"stateform\[sweep\]"):
        sweep(grid(), tmp_path, workers=0, runner=works).save_parquet(tmp_path / "a.parquet")


# -- search -------------------------------------------------------------------------------------------------------

SPACE = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model.d_state": [2, 4]}


def searched(trials: int = 6, **more: Any) -> dict[str, Any]:
    return BASE | {"search": {"trials": trials, "space": SPACE}} | more


def test_a_search_has_so_many_trials_and_finds_what_is_best(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    found = sweep(searched(variants=VARIANTS[:2]), tmp_path, workers=0, runner=works)
    assert Counter(run.label for run in found.runs) == {"linear": 6, "normalized": 6}
    plan = read_plan(searched(variants=VARIANTS[:2]))
    studied = search.Search(tmp_path / "store.db", plan)
    assert [len(study.trials) for _, study in studied.studies] == [6, 6]
    by_key = {run.key: search.score(run) for run in found.runs}
    for cell, study in studied.studies:
        assert {cell.planned(t.params).experiment.key for t in study.trials} <= set(by_key)
        assert all(t.value == by_key[cell.planned(t.params).experiment.key] for t in study.trials)
        assert study.direction.name == "MAXIMIZE"
    studied.close()
    sweep(searched(variants=VARIANTS[:2]), tmp_path, workers=0, runner=works)
    assert sum(calls(tmp_path).values()) == 12


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    count = 0

    def stops(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return works(experiment, folder, on_progress)

    assert not sweep(searched(), tmp_path, workers=0, runner=stops).complete
    studied = search.Search(tmp_path / "store.db", read_plan(searched()))
    (study,) = (study for _, study in studied.studies)
    study.ask()  # killed before it was said what to try
    study.ask(studied.space)  # killed before there was a run
    studied.close()
    found = sweep(searched(), tmp_path, workers=0, runner=works)
    assert len(found.runs) == 6 and {run.status for run in found.runs} == {"done"}
    assert set(calls(tmp_path).values()) == {1}
    studied = search.Search(tmp_path / "store.db", read_plan(searched()))
    states = Counter(t.state for _, study in studied.studies for t in study.trials)
    studied.close()
    assert states == {optuna.trial.TrialState.COMPLETE: 6, optuna.trial.TrialState.FAIL: 1}


def test_a_search_whose_space_was_changed(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweep(searched(2), tmp_path, workers=0, runner=works)
    wider = {"train.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "model.d_state": [2, 4]}
    assert len(sweep(BASE | {"search": {"trials": 4, "space": wider}}, tmp_path, workers=0, runner=works).runs) == 4
    other = BASE | {"search": {"trials": 5, "space": SPACE | {"model.d_state": [2, 4, 8]}}}
    with pytest.raises(StateformError, match=r"begun with other values of model\.d_state; give the sweep a new name"):
        sweep(other, tmp_path, workers=0, runner=works)


def test_a_choice_that_is_proposed_again_is_not_run_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    few = BASE | {"search": {"trials": 5, "space": {"model.d_state": [2, 4]}}}
    found = sweep(few, tmp_path, workers=0, runner=works)
    assert len(found.runs) <= 2 and set(calls(tmp_path).values()) == {1}
    studied = search.Search(tmp_path / "store.db", read_plan(few))
    assert [t.state.name for t in studied.studies[0][1].trials] == ["COMPLETE"] * 5
    studied.close()


@pytest.mark.parametrize(
    "names", [["try?1", "try?2", "a#b"], ["100%", "%41", "{x}", "a{0}"], ["~", "file:", ":memory:"]]
)
def test_a_folder_of_any_name_has_a_search_of_its_own(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    for trials, name in enumerate(names, 1):
        sweep(searched(trials), name, workers=0, runner=works)
    for trials, name in enumerate(names, 1):
        assert len(sweep(searched(trials), name, workers=0, runner=works).runs) == trials
        assert {x.name for x in Path(name).iterdir()} == {"calls.txt", "runs", "store.db"}
    assert {x.name for x in tmp_path.iterdir()} == set(names)


# -- Ray ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_survives_a_killed_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "0").touch()
    found = sweep(grid(8), tmp_path, workers=2, engine="ray", runner=dies)
    assert not list((tmp_path / "tokens").iterdir())
    assert [run.status for run in found.runs] == ["done"] * 8
    assert sum(calls(tmp_path).values()) == 9


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "a.toml", tmp_path / "out"
    file.write_text('task = "parity"\nmodel = {pattern = "linear", d_model = 16}\ngrid.train.seed = [0, 1, 2]\n')

    def command(*words: str) -> Any:
        return CliRunner().invoke(app, ["sweep", str(file), "--out", str(out), *words])

    shown = command("--dry-run")
    assert shown.exit_code == 0 and "linear  seed 2" in shown.output and not out.exists()
    original = sweeps.sweep
    for runner, code, said in (
        (interrupts, 130, "same command goes on"),
        (fails, 1, "1 run failed"),
        (fails, 1, f"--out {out} --retry"),
    ):
        monkeypatch.setattr(
            "stateform.sweep.run.sweep",
            lambda *a, r=runner, **k: original(*a, **k | {"runner": r, "workers": 0}),
        )
        shown = command()
        assert shown.exit_code == code and said in shown.output, shown.output
    (out / "mended").touch()
    shown = command("--retry", "--html", str(tmp_path / "a.html"))
    assert shown.exit_code == 0 and "3/3  linear  seed 1" in shown.output and "store.db" in shown.output
    assert "<html" in (tmp_path / "a.html").read_text()


def test_a_plan_can_be_given_as_it_is(tmp_path: Path) -> None:
    plan = read_plan(grid())
    assert isinstance(plan, Plan)
    assert json.dumps(sweep(plan, tmp_path, workers=0, runner=works).to_dict())


@pytest.mark.parametrize(
    "damaged, content", [("checkpoint.safetensors", b""), ("experiment.json", b"{"), ("outcome.json", b"")]
)
def test_a_run_with_one_damaged_file_begins_anew(
    damaged: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"steps": 2, "batch_size": 2, "eval_every": 1, "eval_examples": 2, "test_examples": 2}
    plan = read_plan(grid(1, train=short))
    folder = tmp_path / "runs" / plan.runs[0].experiment.key
    first = sweep(plan, tmp_path, workers=0)
    for name in ("config.json", "model.safetensors", "outcome.json"):
        (folder / name).unlink()
    (folder / damaged).write_bytes(content)
    (tmp_path / "store.db").unlink()
    again = sweep(plan, tmp_path, workers=0)
    assert [run.status for run in again.runs] == ["done"], again.runs[0].error
    assert again.runs[0].outcome["metrics"]["test"] == first.runs[0].outcome["metrics"]["test"]  # type: ignore[index]
    assert "damaged" in (said := capsys.readouterr().err) and "begins anew" in said
    assert {x.name for x in folder.iterdir()} >= {"experiment.json", "outcome.json", "model.safetensors"}


@pytest.mark.parametrize(
    "more, said",
    [
        ({"grid": {"train.seed": list(range(1000)), "model.d_state": list(range(1, 1001))}}, "has 1,000,000 runs; "),
        ({"grid": {"train.seed": list(range(200_000))}}, r"train.seed has 200,000 values; expected 100,000 at most"),
        ({"grid": {f"train.{name}": [0.1, 0.2] for name in ("lr", "warmup", "clip", "beta1", "beta2", "final_lr")}
          | {f"model.{name}": list(range(1, 30)) for name in ("d_state", "n_heads", "d_conv")}}, r"has 1,560,896 runs"),
        ({"search": {"trials": 10**12, "space": SPACE}}, r"has 1,000,000,000,000 runs; expected 100,000 at most"),
        ({"cases": [{"set": {"train.seed": k}} for k in range(1000)], "grid": {"model.d_state": list(range(1, 1001))}},
         r"has 1,000,000 runs"),
    ],
)  # fmt: skip
def test_too_many_runs_are_counted_before_one_is_made(
    more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("work before the count")

    monkeypatch.setattr("stateform.sweep.plan.Combination", made)
    monkeypatch.setattr(Experiment, "from_dict", made)
    with pytest.raises(StateformError, match=said):
        read_plan(BASE | more)


@pytest.mark.parametrize("values", [[0.0, -0.0], [1, 1], ["a", "a"], [[1, 2], [1, 2]], [True, True]])
def test_a_value_that_is_there_twice(values: list[Any]) -> None:
    with pytest.raises(StateformError, match=r"task has .* twice"):
        read_plan(BASE | {"grid": {"task": values}})


ALTERED: dict[str, tuple[str, str]] = {
    "metrics as a list": ('{"experiment": {}, "metrics": []}', "metrics is a list, not a table"),
    "outcome as a list": ("[1]", "outcome is a list, not a table or nothing"),
    "no metrics": ('{"experiment": {}}', "metrics is nothing, not a table"),
    "a score as a text": ('{"metrics": {"valid": "x"}}', "metrics.valid is a text, not a number"),
    "a truth as a number": ('{"metrics": {"seconds": true}}', "metrics.seconds is true or false, not a number"),
    "tests as a list": ('{"metrics": {"test": [1]}}', "metrics.test is a list, not a table or nothing"),
    "a test as a text": ('{"metrics": {"test": {"8": {"accuracy": "x"}}}}', "metrics.test.8.accuracy is a text"),
    "a metric as a number": ('{"metrics": {"metric": 3}}', "metrics.metric is a number, not a text"),
    "a machine as a list": ('{"metrics": {"machine": [1]}}', "metrics.machine is a list"),
    "deep": ('{"metrics": ' + "[" * 100_000 + "]" * 100_000 + "}", "the outcome of run 1 is no JSON"),
    "cut": ('{"metrics": ', "the outcome of run 1 is no JSON"),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_store_is_one_clear_error(how: str, tmp_path: Path) -> None:
    value, said = ALTERED[how]
    sweep(grid(1), tmp_path, workers=0, runner=works)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as file, file:
        file.execute("DROP TRIGGER done_stays")
        file.execute("UPDATE runs SET outcome = ?", (value,))
    for command in (["results", str(tmp_path)], ["results", str(tmp_path), "--csv", str(tmp_path / "x.csv")]):
        shown = CliRunner().invoke(app, command)
        assert isinstance(shown.exception, StateformError), (shown.output, shown.exception)
        assert str(tmp_path / "store.db") in str(shown.exception) and said in str(shown.exception)
    with pytest.raises(StateformError, match="restore the file from a copy"):
        sweep(grid(1), tmp_path, workers=0, runner=works)


@pytest.mark.parametrize("column, said", [("experiment", "experiment is a list"), ("settings", "settings is a list")])
def test_an_altered_plan_in_a_store(column: str, said: str, tmp_path: Path) -> None:
    sweep(grid(1), tmp_path, workers=0, runner=works)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as file, file:
        file.execute(f"UPDATE runs SET {column} = '[]'")
    with pytest.raises(StateformError, match=said):
        Store(tmp_path / "store.db").runs()
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as file, file:
        file.execute('UPDATE runs SET settings = \'{}\', experiment = \'{"task": {}, "model": {}, "train": {}}\'')
    with pytest.raises(StateformError, match="the task's name is nothing, not a text"):
        Store(tmp_path / "store.db").runs()


LONG, PARITY = "n" * 300, ["train", "parity(length=8)", "--model", "linear"]


@pytest.mark.parametrize(
    "command",
    [
        [*PARITY, "--out", LONG], [*PARITY, "--out", "a\0b"], [*PARITY, "--config", LONG], ["eval", LONG],
        ["sweep", LONG], ["sweep", "dsf-small", "--quick", "--out", LONG], ["results", LONG], ["results", "a\0b"],
        ["train", f"text(path={LONG!r})", *PARITY[2:]], ["train", f"listops(path={LONG!r})", *PARITY[2:]],
        ["train", f"{LONG}.py:Task", "--model", "linear"], [*PARITY[:3], f"{LONG}.py:Layer"],
        ["sweep", "dsf-small", "--quick", "--dry-run", "--html", f"{LONG}/x.html"],
        [*PARITY, "--set", "a.b=" + "[" * 9999], ["train", "parity(length=" + "(" * 9999 + ")", *PARITY[2:]],
        [*PARITY, "--set", "model.d_model=" + "9" * 40],
        [*PARITY, "--set", "model.n_layers=10000000"], [*PARITY, "--set", "model.mlp_ratio=1e308"],
        ["train", "parity(length=" + "9" * 40 + ")", "--model", "linear"],
        [*PARITY, "--batch-size", "9" * 40], [*PARITY, "--steps", "9" * 5000], [*PARITY, "--model", "linear*10000000"],
    ],
    ids=range(22),
)  # fmt: skip
def test_names_and_sizes_that_cannot_be_are_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, command)
    assert isinstance(shown.exception, StateformError) or shown.exit_code == 2, (shown.output[-300:], shown.exception)
    assert not list(tmp_path.iterdir()), "nothing is begun"
