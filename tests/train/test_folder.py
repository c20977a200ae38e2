"""What was trained opens where layers and models do: analyze on an example of its task, compare by its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import stateform as sf
from stateform.models import open_folder
from stateform.train import Experiment, load_trained, train


def trained(folder: Path, task: str, pattern: str = "linear mamba2") -> Path:
    train(Experiment.from_dict({
        "task": task, "model": {"pattern": pattern, "d_model": 16},
        "train": {"steps": 2, "batch_size": 4, "eval_examples": 4, "test_examples": 4},
    }), folder)  # fmt: skip
    return folder


def numbers(found: Any) -> Any:
    return {row["name"]: row["answers"]["memory"]["heads"] for row in found.to_dict()["layers"]}


@pytest.mark.parametrize("task", ["parity(length=24)", "listops(length=60, shortest=10)"])
def test_a_trained_model_is_analyzed_on_an_example_of_its_task(task: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", task)
    found = sf.analyze(folder, only=["memory", "representation"])
    experiment, model = load_trained(folder)
    example = experiment.task.sample(1, split="test").inputs
    assert found.to_dict()["text"] | {"excerpt": ""} == {
        "source": f"an example of {experiment.task.spec}", "tokens": example.shape[1], "excerpt": "",
    }  # fmt: skip
    assert numbers(found) == numbers(sf.analyze(model, example, only=["memory"]))


def test_a_trained_model_of_bytes_is_analyzed_on_text(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "text(length=32)", "linear")
    found = sf.analyze(str(folder), only=["memory"], max_length=64)
    assert "Python's own documentation" in found.to_dict()["text"]["source"]


def test_a_model_of_numbers_is_analyzed_on_an_example_of_its_task(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "icl_regression(dim=4)", "linear")
    found = sf.analyze(folder, only=["memory", "representation"])
    experiment, model = load_trained(folder)
    example = experiment.task.sample(1, split="test").inputs
    assert found.to_dict()["data"] == {
        "source": f"an example of {experiment.task.spec}", "unit": "step", "steps": example.shape[1],
        "width": example.shape[2], "rate": None, "mapped": "",
    }  # fmt: skip
    assert numbers(found) == numbers(sf.analyze(model, example, only=["memory"]))
    with pytest.raises(sf.StateformError, match=r"reads numbers, .* a step, not tokens"):
        sf.analyze(folder, tmp_path / "run" / "experiment.json")


def test_trained_layers_are_compared(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "parity(length=24)")
    found = sf.compare([f"{folder}:1", str(folder), "linear"], d_model=16, max_length=32, repeats=1).to_dict()
    mixers = [block.mixer for block in open_folder(folder).blocks]
    weights = [row["parameters"] for row in found["layers"]]
    assert weights[:2] == [sum(p.numel() for p in mixer.parameters()) for mixer in (mixers[1], mixers[0])]
    assert found["layers"][0]["identity"]["transition"].startswith("scalar per head")
    with pytest.raises(sf.StateformError, match="has the layers 0 to 1; there is no 2"):
        sf.compare([f"{folder}:2"], d_model=16)
    with pytest.raises(sf.StateformError, match="d_model = 16, not 64"):
        sf.compare([str(folder)])


def test_a_folder_is_opened_as_what_it_holds(tmp_path: Path) -> None:
    sf.LanguageModel("linear", d_model=8, vocab_size=5).save_pretrained(tmp_path / "a")
    sf.Classifier("linear", d_model=8, vocab_size=5, n_classes=2).save_pretrained(tmp_path / "b")
    assert type(open_folder(tmp_path / "a")) is sf.LanguageModel
    assert type(open_folder(tmp_path / "b")) is sf.Classifier
    with pytest.raises(sf.StateformError, match="there is no folder"):
        open_folder(tmp_path / "c")
