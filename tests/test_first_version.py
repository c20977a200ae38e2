"""What the first version wrote opens, gives the numbers that it gave, and is gone on with (fixtures/first/write.py)."""

from __future__ import annotations

import runpy
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stateform.experiments import Experiment, Machine, evaluate, load_trained, train
from stateform.experiments.results import results
from torch import Tensor
from typer.testing import CliRunner

import stateform as sf
from stateform.cli import app
from stateform.system.precision import GRADIENT, tolerance

FIRST = Path(__file__).parent / "fixtures" / "first"
WRITE = runpy.run_path(str(FIRST / "write.py"))
CPU = Machine("cpu", threads=1, loggers=())


def numbers(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was written beside it: the weights, and the rest."""
    found = load_file(FIRST / f"{name}.numbers.safetensors")
    weights = {k.removeprefix("weights."): x for k, x in found.items() if k.startswith("weights.")}
    return weights, {k: x for k, x in found.items() if not k.startswith("weights.")}


def close(got: Tensor, want: Tensor, *, trained: bool = False) -> None:
    """Assert that they agree to rounding; what was trained passed many gradients."""
    allowed = tolerance(want.dtype, 12) * (GRADIENT if trained else 1)
    torch.testing.assert_close(got, want, rtol=allowed, atol=allowed * float(want.abs().max()))


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in FIRST.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(sizes) > 30 and sum(sizes) < 200_000


# -- states and models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITE["LAYERS"])
def test_a_state(name: str, tmp_path: Path) -> None:
    weights, want = numbers(f"layers/{name}")
    x, y = want["x"], want["y"]
    layer = sf.build(WRITE["LAYERS"][name], d_model=WRITE["SIZE"]).to(x.dtype)
    layer.load_state_dict(weights)
    close(layer(x), y)
    state = sf.State.load(FIRST / "layers" / f"{name}.state")
    rest, last = layer(x[:, 6:], initial_state=state, return_state=True)
    close(rest, y[:, 6:])
    close(layer.step(x[:, 6], state)[0], y[:, 6])
    assert set(last) == set(state) and state.rows == 2
    state.save(tmp_path / "again")
    again = sf.State.load(tmp_path / "again")
    assert again.fingerprint == state.fingerprint
    for key, tensor in state.tensors.items():
        assert torch.equal(again[key], tensor)


def test_a_language_model() -> None:
    _, want = numbers("language")
    model = sf.LanguageModel.from_pretrained(FIRST / "language").eval()
    ids, logits = want["ids"], want["logits"]
    close(model(ids).logits[..., ::8], logits)
    state = sf.State.load(FIRST / "language.state")
    close(model(ids[:, 6:], initial_state=state).logits[..., ::8], logits[:, 6:])
    assert torch.equal(model.generate(ids, max_new_tokens=4), want["longer"])


def test_a_language_model_in_transformers() -> None:
    import transformers

    import stateform.models.auto  # noqa: F401

    _, want = numbers("language")
    model = transformers.AutoModelForCausalLM.from_pretrained(FIRST / "language").eval()
    close(model(want["ids"]).logits[..., ::8], want["logits"])
    words = transformers.AutoTokenizer.from_pretrained(FIRST / "language")
    assert words("To be")["input_ids"] == list(b"To be") and words.decode(list(b"To be")) == "To be"


def test_a_classifier() -> None:
    _, want = numbers("classifier")
    model = sf.Classifier.from_pretrained(FIRST / "classifier").eval()
    close(model(want["x"]).logits, want["logits"])
    close(model(want["x"][:, :6]).logits, want["first"])
    state = sf.State.load(FIRST / "classifier.state")
    close(model(want["x"][:, 6:], initial_state=state).logits, want["logits"])


# -- trainings and sweeps -----------------------------------------------------------------------------------------


def same(metrics: dict[str, Any], want: dict[str, Tensor]) -> None:
    for name, x in WRITE["numbers"](metrics).items():
        close(x, want[name], trained=True)


def test_a_finished_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, want = numbers("finished")
    folder = shutil.copytree(FIRST / "finished", tmp_path / "run")
    outcome = train(Experiment.from_dict(WRITE["EXPERIMENT"]), folder, machine=CPU)
    same(outcome.metrics, want)
    experiment, model = load_trained(folder)
    assert experiment.key == Experiment.from_dict(WRITE["EXPERIMENT"]).key
    for name, x in model.state_dict().items():
        assert torch.equal(x, weights[name])
    tested = [[float(length), found["accuracy"]] for length, found in evaluate(folder).items()]
    close(torch.tensor(tested, dtype=torch.float64), want["test"])
    assert not capsys.readouterr().err


def test_an_interrupted_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, want = numbers("finished")
    folder = shutil.copytree(FIRST / "interrupted", tmp_path / "run")
    steps: list[int] = []
    experiment = Experiment.from_dict(WRITE["EXPERIMENT"])
    outcome = train(experiment, folder, machine=CPU, on_progress=lambda _, done, __: steps.append(done))
    assert min(steps) >= 4 and max(steps) == 8, "it has begun anew"
    same(outcome.metrics, want)
    for name, x in load_trained(folder)[1].state_dict().items():
        close(x, weights[name], trained=True)
    assert not capsys.readouterr().err


def test_a_sweep_goes_on(tmp_path: Path) -> None:
    _, want = numbers("sweeps")
    folder = shutil.copytree(FIRST / "sweeps", tmp_path / "sweeps")
    before = results(folder / "store.db", "first").runs
    assert [run.status for run in before] == ["done", "done", "waiting", "waiting"]
    shown = CliRunner().invoke(app, ["sweep", str(FIRST / "sweep.toml"), "--out", str(folder), "--workers", "0"])
    assert shown.exit_code == 0 and "stateform:" not in shown.stderr, (shown.output, shown.exception)
    assert [line[:3] for line in shown.stderr.splitlines()] == ["3/4", "4/4"]
    found = results(folder / "store.db", "first")
    assert [run.status for run in found.runs] == ["done"] * 4
    assert [run.attempts for run in found.runs] == [1, 1, 2, 1]
    assert [run.finished for run in found.runs[:2]] == [run.finished for run in before[:2]]
    for run in found.runs:
        assert run.outcome is not None
        same(run.outcome["metrics"], {name: want[f"{run.key}.{name}"] for name in ("history", "test")})
    log = folder / "runs" / found.runs[2].key / "log"
    assert {path.name for path in log.iterdir()} == {"version_0", "version_1"}, "it has gone on from its checkpoint"
    with sqlite3.connect(folder / "store.db") as connection:
        assert dict(connection.execute("SELECT name, value FROM meta"))["format"] == "1"


# -- code ---------------------------------------------------------------------------------------------------------


def test_a_script_written_against_the_first_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stateform"])
    torch.manual_seed(0)
    runpy.run_path(str(FIRST / "readme.py"), run_name="readme_of_the_first")
