"""A pretrained model is timed as it is and in our forms, after both were found to be one function."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import stateform as sf
from stateform.cli import app
from stateform.hub import accelerate
from stateform.hub.accelerate import _KEY
from stateform.timing import bench_model
from tests.fixtures.foreign import small

pytest.importorskip("transformers")


def ticks() -> Any:
    """A clock on which each reading is a second later."""
    return itertools.count().__next__


def test_both_sides_of_every_mode_are_timed() -> None:
    model = small("jamba")
    found = bench_model(model, length=20, train_length=8, repeats=2, clock=ticks())
    result = found.to_dict()
    assert set(result["modes"]) == {"prefill", "decode", "training"}
    assert all(found.ratio(mode) == 1 for mode in result["modes"])
    assert list(result["replaced"].values()) == ["JambaMambaMixer", "JambaMambaMixer"]
    assert len(result["left"]) == 2
    assert result["difference"] < 1e-5
    assert "times as fast" in str(found)
    assert not any(_KEY in m.__dict__ for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_was_accelerated_stays_so() -> None:
    model = small("mamba")
    accelerate(model)
    bench_model(model, modes=["prefill"], length=5, repeats=1, clock=ticks())
    assert any(_KEY in m.__dict__ for m in model.modules())


def test_an_interruption_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = small("mamba").train()
    model.backbone.embeddings.eval()
    model(torch.arange(1, 9)[None], labels=torch.arange(1, 9)[None]).loss.backward()
    modes, grads = [m.training for m in model.modules()], [p.grad for p in model.parameters()]
    monkeypatch.setitem(bench_model.__globals__, "cache_name", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_model(model, modes=["prefill"], length=5, repeats=1)
    monkeypatch.undo()
    bench_model(model, modes=["training"], length=5, train_length=5, repeats=1, clock=ticks())
    assert not any(_KEY in m.__dict__ for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_a_wrong_form_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from stateform.hub.families.mamba import LiftedMamba

    right = LiftedMamba.output
    monkeypatch.setattr(LiftedMamba, "output", lambda self, y, *rest: right(self, 1.001 * y, *rest))
    with pytest.raises(sf.StateformError, match="off by"):
        bench_model(small("mamba"), length=9, repeats=1, clock=ticks())


def test_what_cannot_be_timed() -> None:
    model = small("mamba")
    for given, said in (
        ({"modes": ["prefil"]}, "did you mean prefill"), ({"length": 1}, "length is 1; expected 2 or more"),
        ({"repeats": 0}, "repeats is 0"), ({"seed": 2**70}, "64 bits"),
        ({"tokens": torch.tensor([[1, 2]])}, "there are 2 tokens"), ({"tokens": torch.tensor([[1, 99]])}, "vocabulary"),
    ):  # fmt: skip
        with pytest.raises(sf.StateformError, match=said):
            bench_model(model, **{"length": 4, **given})  # type: ignore[arg-type]
    with pytest.raises(sf.StateformError, match="nothing to compare"):
        bench_model(small("llama"), length=4)
    with pytest.raises(sf.StateformError, match=r"LanguageModel is no model .* one of Stateform's own, in our forms"):
        bench_model(sf.LanguageModel("linear", d_model=8, vocab_size=16), length=4)


def test_the_command(tmp_path: Path) -> None:
    small("mamba").save_pretrained(tmp_path / "model")
    path, runner = tmp_path / "found.json", CliRunner()
    asked = ["bench", "--model", str(tmp_path / "model"), "--lengths", "8", "--repeats", "1", "--json", str(path)]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "2 mixers in our forms" in result.output
    assert json.loads(path.read_text())["complete"]
    wrong = runner.invoke(app, [*asked, "--d-model", "8"])
    assert "--d-model" in str(wrong.exception)
