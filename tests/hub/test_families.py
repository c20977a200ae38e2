"""Every small model is built and runs, the same each time."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch

from stateform import StateformError
from stateform.hub.families import families, small


@pytest.mark.parametrize("model_type", families())
def test_a_small_model_of_every_family_runs(model_type: str) -> None:
    tokens = torch.arange(2 * 12).reshape(2, 12) % 60 + 1
    with torch.no_grad():
        one, two = (small(model_type)(tokens).logits for _ in range(2))
    assert one.shape[:2] == (2, 12)
    assert bool(torch.isfinite(one).all()) and float(one.std()) > 0.1
    assert torch.equal(one, two)


def test_either_name_of_a_text_model_and_a_setting() -> None:
    assert small("qwen3_5").config.model_type == "qwen3_5_text"
    assert small("llama", num_hidden_layers=3).config.num_hidden_layers == 3


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(StateformError, match="did you mean mamba"):
        small("manba")
