"""Results of sweeps: rows, means over seeds, files, the page, and the command."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stateform import StateformError
from stateform.cli import app
from stateform.report.page import render
from stateform.sweep.figures import over_length, over_settings
from stateform.sweep.figures import page as page_of
from stateform.sweep.results import Results, results
from stateform.sweep.run import sweep
from stateform.sweep.store import Store

SCORES = {"linear": 0.2, "mamba2": 0.1, "lstm": 0.4, "<b>odd</b>": 0.3}
FILE: dict[str, Any] = {
    "name": "sizes", "task": "mqar(length=16, n_pairs=2, vocab_size=32)", "model": {"d_model": 16},
    "grid": {"model.d_state": [2, 4], "train.seed": [0, 1]},
    "variants": [
        {"label": "linear", "set": {"model.pattern": "linear"}},
        {"label": "mamba2", "set": {"model.pattern": "mamba2"}},
        {"label": "lstm", "set": {"model.pattern": "lstm"}, "skip": ["model.d_state"]},
        {"label": "<b>odd</b>", "set": {"model.pattern": "deltanet"}, "skip": ["train.seed"]},
    ],
}  # fmt: skip


def trained(experiment: dict[str, Any], *_: Any) -> dict[str, Any]:
    model, seed = experiment["model"], experiment["train"]["seed"]
    if model["pattern"] == "mamba2" and model["d_state"] == 4 and seed == 1:
        raise StateformError("the loss is not finite")
    n = model.get("d_state", 3)
    score = 1 - 0.4 / n - 0.1 * seed - 0.1 * (experiment["train"]["lr"] > 1e-3)
    tests = {"16": {"accuracy": score, "whole": 0.1}, "32": {"accuracy": score / 2}, "64": {"accuracy": None}}
    metrics = {"metric": "accuracy", "valid": score - 0.01, "test": tests, "loss": 0.5, "steps": 7, "seconds": 3.0,
               "parameters": 100, "state_size": 16 * n, "stopped": "all steps done", "history": []}  # fmt: skip
    return {"experiment": experiment, "metrics": metrics}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweeps")
    sweep(FILE, path, workers=0, runner=trained)
    sweep(FILE | {"name": "other", "variants": FILE["variants"][:1]}, path, workers=0, runner=trained)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> Results:
    return results(folder / "store.db", "sizes")


def test_a_row_is_flat_and_complete(found: Results) -> None:
    assert len(found.rows) == 12 and len({tuple(row) for row in found.rows}) == 1
    row = found.rows[1]
    expected = {"sweep": "sizes", "label": "linear", "status": "done", "task": "mqar", "metric": "accuracy",
                "score": pytest.approx(0.7), "valid": pytest.approx(0.69), "test.32": pytest.approx(0.35),
                "test.64": None, "task.n_pairs": 2, "model.pattern": "linear", "model.d_state": 2, "train.seed": 1,
                "train.lr": 1e-3,
                "state_size": 32, "seconds": 3.0, "attempts": 1, "error": None}  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    (failed,) = found.failed
    assert (failed.error, found.rows[7]["error"], found.rows[7]["score"]) == (*["the loss is not finite"] * 2, None)


def test_means_are_over_seeds(found: Results) -> None:
    assert found.varied == ["model.d_state"]
    table = found.table()
    assert [(g["label"], g["model.d_state"], g["n"]) for g in table] == [
        ("linear", 2, 2), ("linear", 4, 2), ("mamba2", 2, 2), ("mamba2", 4, 1), ("lstm", None, 2),
        ("<b>odd</b>", 2, 1), ("<b>odd</b>", 4, 1),
    ]  # fmt: skip
    first = table[0]
    assert [first[n] for n in ("mean", "low", "high", "std")] == pytest.approx([0.75, 0.7, 0.8, 0.0707107])
    assert (first["state_size"], table[3]["std"]) == (32, 0.0)
    by_size = found.table(x="state_size", by="model.pattern")
    assert [(g["model.pattern"], g["state_size"]) for g in by_size[:2]] == [("linear", 32), ("linear", 64)]


def test_some_of_them(folder: Path) -> None:
    store = folder / "store.db"
    assert len(results(store).runs) == 16 and len(results(store, where={"label": "linear"}).runs) == 8
    assert len(results(store, "sizes", ["model.d_state=2", "train.seed=1"]).runs) == 2
    assert len(results(store, where={"model.d_state": 2.0, "status": "done"}).runs) == 7
    assert len(results(store, where=["status=failed"]).runs) == 1
    assert results(store, where=["label=none"]).rows == []
    for change, said in (
        ({"sweep": "size"}, "did you mean sizes"), ({"where": {"model.d_stat": 2}}, "did you mean model.d_state"),
        ({"where": ["x"]}, "expected column=value"), ({"x": "d_state"}, "no column 'd_state'.*model.d_state"),
    ):  # fmt: skip
        with pytest.raises(StateformError, match=said):
            results(store, **change)  # type: ignore[arg-type]
    with pytest.raises(StateformError, match=r"no column 'modle.d_state': did you mean model.d_state"):
        results(store).table(x="modle.d_state")


def test_files(found: Results, tmp_path: Path) -> None:
    found.save_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[0]["model.d_state"] == "2" and rows[7]["score"] == ""
    assert float(rows[0]["score"]) == found.rows[0]["score"]
    parquet = pytest.importorskip("pyarrow.parquet")
    found.save_parquet(tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == found.rows
    with pytest.raises(StateformError, match="cannot write"):
        found.save_csv(tmp_path / "none" / "a.csv")


def test_in_the_terminal(found: Results, folder: Path) -> None:
    text = str(found)
    assert "sizes: 12 runs (11 done, 1 failed)" in text
    assert re.search(r"^linear +2 +0\.750 +0\.700 +0\.800 +2 +32 +3 *$", text, re.M)
    assert "Failed: mamba2 d_state 4 seed 1: the loss is not finite" in text
    assert "no runs: 0 runs" in str(results(folder / "store.db", where=["label=none"]))


def test_the_page(found: Results, folder: Path, tmp_path: Path) -> None:
    page = found.html()
    assert "<b>odd</b>" not in page and "&lt;b&gt;odd" in page
    assert 'id="figure-over-state_size"' in page and 'id="figure-over-model-d_state"' in page
    assert 'id="figure-length"' in page and 'id="table-runs"' in page
    held = json.loads(re.search(r'id="result">(.*?)</script>', page)[1])  # type: ignore[index]
    assert len(held["rows"]) == 12
    assert "interrupted; the same command goes on" in render(page_of(found.to_dict() | {"complete": False}))
    results(folder / "store.db", where=["label=none"]).save_html(tmp_path / "empty.html")
    assert 'id="figure-' not in (tmp_path / "empty.html").read_text()


def test_what_is_drawn(found: Results) -> None:
    by_state, by_setting = over_settings(found.to_dict())
    (panel,) = by_state.views[0].panels
    lines = {trace.name: trace for trace in panel.figure.data if trace.name}
    assert list(lines["linear"].x) == [32, 64] and list(lines["linear"].y) == pytest.approx([0.75, 0.85])
    assert list(lines["linear"].error_y.array) == pytest.approx([0.05, 0.05])
    assert list(lines["lstm"].x) == [48]
    assert "lstm" not in [trace.name for trace in by_setting.views[0].panels[0].figure.data]
    assert "no such number: lstm" in by_setting.reading
    length = over_length(found.to_dict())
    assert length is not None
    lines = {trace.name: trace for trace in length.views[0].panels[0].figure.data if trace.name}
    assert list(lines["linear"].x) == [16, 32] and list(lines["linear"].y) == pytest.approx([0.85, 0.425])


def test_other_settings_are_chosen_by_the_validation_not_averaged(tmp_path: Path) -> None:
    grid = FILE["grid"] | {"train.lr": [1e-3, 3e-3]}
    found = sweep(FILE | {"grid": grid, "variants": FILE["variants"][:1]}, tmp_path, workers=0, runner=trained)
    assert [g["n"] for g in found.table()] == [2] * 4
    drawn = over_settings(found.to_dict())[0].views[0].panels[0].figure
    assert list(drawn.data[1].y) == pytest.approx([0.75, 0.85]) and len(drawn.data[0].x) == 4


def test_a_panel_for_each_task(tmp_path: Path) -> None:
    tasks = ["parity(length=16)", "mqar(length=16, n_pairs=2, vocab_size=32)"]
    values = FILE | {"grid": FILE["grid"] | {"task": tasks}, "variants": FILE["variants"][:2]}
    found = sweep(values, tmp_path, workers=0, runner=trained, overrides=["train.seed=[0]"])
    assert {row["task"] for row in found.rows} == {"parity", "mqar"}
    assert [panel.title for panel in over_settings(found.to_dict())[0].views[0].panels] == ["parity", "mqar"]
    assert found.html()


def test_what_differs_is_not_averaged(folder: Path, tmp_path: Path) -> None:
    both = results(folder / "store.db")
    assert both.varied == ["sweep", "model.d_state"]
    assert {(g["sweep"], g["n"]) for g in both.table() if g["label"] == "linear"} == {("sizes", 2), ("other", 2)}
    assert "sweep" in str(both)
    for steps in (10, 20):  # as if the file had been changed
        sweep(FILE | {"train": {"steps": steps}}, tmp_path, workers=0, runner=trained)
    changed = results(tmp_path / "store.db", where=["label=linear"])
    assert changed.varied == ["model.d_state", "train.steps"] and {g["n"] for g in changed.table()} == {2}


def test_an_easier_task_of_a_variant_is_another_task(tmp_path: Path) -> None:
    easy = "mqar(length=16, n_pairs=1, vocab_size=32)"
    variants = [FILE["variants"][0], {"label": "lstm", "set": {"model.pattern": "lstm", "task": easy}}]
    found = sweep(FILE | {"variants": variants}, tmp_path, workers=0, runner=trained)
    assert {(row["label"], row["task"]) for row in found.rows} == {
        ("linear", "mqar(n_pairs=2)"), ("lstm", "mqar(n_pairs=1)"),
    }  # fmt: skip
    assert found.varied[0] == "task" and len(over_settings(found.to_dict())[0].views[0].panels) == 2
    axis = FILE["grid"] | {"task.n_pairs": [1, 2]}
    found = sweep(FILE | {"name": "axis", "grid": axis}, tmp_path, workers=0, runner=trained)
    assert {row["task"] for row in found.rows} == {"mqar"} and "task.n_pairs" in found.varied


def test_claims_are_about_their_own_sweep(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(
        'task = "parity"\nmodel = {d_model = 16}\n[[variants]]\nlabel = "linear"\nset = {model.pattern = "linear"}\n'
        '[[claims]]\ntext = "it is low"\nstays = {label = "linear", at_most = 0.9}\n'
    )
    shown = CliRunner().invoke(app, ["results", str(folder), "--claims", str(file)])
    assert shown.exit_code == 0 and "other: 4 runs" in shown.output and "confirmed" in shown.output
    shown = CliRunner().invoke(app, ["results", str(folder), "--claims", "demo"])
    assert isinstance(shown.exception, StateformError) and "no sweep 'demo'" in str(shown.exception)


@pytest.mark.parametrize("log", [False, True], ids=["closed", "with its last changes in the log"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="rights are tried in a process of another user")
def test_a_store_is_read_where_nothing_can_be_written(log: bool, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path, which is for its user alone
        place = Path(name)
        shutil.copy(folder / "store.db", place)
        expected = len(results(place / "store.db").runs)
        opened = None
        if log:
            opened = Store(place / "store.db")
            opened.add("late", [("0" * 16, "late", {}, {"task": {"name": "parity"}, "model": {}, "train": {}})])
            shutil.copy(place / "store.db-wal", place / "kept")
            expected += 1
            opened.close()
            (place / "kept").rename(place / "store.db-wal")
            shutil.copy(folder / "store.db", place)
        for file in place.iterdir():
            file.chmod(0o444)
        place.chmod(0o555)
        before = {x.name: x.read_bytes() for x in place.iterdir()}
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if os.geteuid() == 0:
                    os.seteuid(65534)
                found = results(place / "store.db")
                code = 0 if len(found.runs) == expected else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert {x.name: x.read_bytes() for x in place.iterdir()} == before
        place.chmod(0o755)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    def command(*words: str) -> Any:
        return CliRunner().invoke(app, ["results", *words])

    files = [str(tmp_path / name) for name in ("a.csv", "a.html")]
    shown = command(str(folder), "--sweep", "sizes", "--where", "label=linear", "--x", "model.d_state",
                    "--csv", files[0], "--html", files[1])  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "sizes: 4 runs" in shown.output and shown.output.count("Written:") == 2
    assert len(Path(files[0]).read_text().splitlines()) == 5
    for words, said in (
        ((str(folder / "none.db"),), "there is no store"), ((str(folder), "--sweep", "a"), "known names: other, sizes"),
        ((str(folder), "--csv", files[0], "--html", files[0]), "--csv and --html name one file"),
    ):  # fmt: skip
        shown = command(*words)
        assert isinstance(shown.exception, StateformError) and said in str(shown.exception)
