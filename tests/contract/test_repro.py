"""What the scripts of results/check/repro show of a model, `sf.check` finds, and no more than they show."""

from __future__ import annotations

import ast
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers

import stateform as sf
from stateform.contract import model as of_models
from stateform.contract.parts import MODEL

SCRIPTS = Path(__file__).parents[2] / "results" / "check" / "repro"
WRONG = {
    "bamba_positions": ("steps", "1 row, from an empty cache: first at model.layers.1.self_attn (BambaAttention)"),
    "bart_left_padding": ("left padding", "text 1 of 3: first at model.decoder.layers.0.self_attn (BartAttention)"),
    "gpt_oss_packed": ("packed", "text 1 of 3: first at model.layers.0.self_attn (GptOssAttention)"),
    "inkling_packed": ("packed", "text 1 of 3: first at model.layers.0.self_attn (InklingAttention)"),
    "mamba_many_tokens": ("continue", r"1 then 12 tokens, text 0 of 2: first at (back)?[a-z.]+0\.(mixer|mamba) \("),
    "minimax_padding": ("padded, continued", "generate, 6 tokens, text 1 of 3: first at model.embed_tokens (Embed"),
    "minimax_positions": ("continue", "1 then 12 tokens, text 0 of 2: first at model.layers.1.self_attn"),
    "moshi_window": ("steps", "first at model.layers.0.self_attn (MoshiAttention): differs first at position 8 of 24"),
    "opt_packed": ("packed", r"position_ids, text 1 of 3: first at [a-z.]+0\.self_att\w+ \("),
    "padding_between": ("padding between", r"first at backbone\.layers\.0\.mixer \(\w+\): differs first at position 6"),
    "padding_window": ("padding between", "in one forward, attention_mask, text 0 of 2: first at model.layers.0.self"),
    "recurrent_gemma_left_padding": ("left padding", "text 1 of 3: first at model.layers.0.temporal_block"),
    "recurrent_gemma_many_tokens": ("continue", "1 then 12 tokens, text 0 of 2: first at model.layers.0.temporal_bl"),
    "roberta_generate": ("padded, continued", "tokens, text 0 of 3: first at roberta.encoder.layer.0.attention (Ro"),
    "rwkv_left_padding": ("left padding", "text 1 of 3: first at rwkv.blocks.0.attention (RwkvSelfAttention)"),
    "rwkv_rows": ("steps", "gives [3, 3] for [3, 1] (rows, tokens)"),
}
"""The part of the contract that a script is about, and what is said there of a model that is wrong (a pattern if it
holds a backslash): the families differ in names alone."""
ACROSS = {"minimax_padding", "rwkv_rows"}
"""Those that print what should be equal in two lines; the others print it side by side."""


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[list[Any], list[bool]]:
    """The models that a script makes, and of each whether the lists it prints are equal."""
    made: list[Any] = []
    plain = transformers.PreTrainedModel.eval
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "eval", lambda self: made.append(self) or plain(self))
        runpy.run_path(str(SCRIPTS / f"{name}.py"))
    lines = [re.findall(r"\[(?:[^\[\]]|\[[^\]]*\])*\]", line) for line in capsys.readouterr().out.splitlines()]
    found = [[ast.literal_eval(text) for text in line] for line in lines if line]
    if name in ACROSS:
        found = [[line[0] for line in found]]
    equal = [close(one, two) for one, two in found]
    return made, equal if len(made) > 1 else [all(equal)]


def close(one: Any, two: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(two) and all(map(close, one, two))
    return math.isclose(one, two, rel_tol=1e-4, abs_tol=1e-5)


def part_of_check(part: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> sf.Report:
    """`sf.check`, of this part alone and in float32 alone, as large models are checked."""
    with monkeypatch.context() as patch:
        patch.setattr(of_models, "LARGE", 0)
        for other in {*MODEL} - {part}:
            patch.delitem(MODEL, other)
        return sf.check(model)


@pytest.mark.parametrize("name", WRONG)
def test_check_finds_what_a_script_shows(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part, text = WRONG[name]
    models, equal = run(name, monkeypatch, capsys)
    for model, sound in zip(models, equal, strict=True):
        failures = part_of_check(part, model, monkeypatch).failures
        assert bool(failures) != sound, (type(model).__name__, failures)
        if not sound:
            found = [re.search(text if "\\" in text else re.escape(text), failure) for failure in failures]
            assert any(found), failures


def test_check_does_not_offer_packing_of_which_a_hybrid_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its recurrent layers do not see position_ids, and refuse what they would need."""
    (model,), (sound,) = run("packed_positions", monkeypatch, capsys)
    report = part_of_check("packed", model, monkeypatch)
    assert not sound and report.ok and report.not_offered[0].startswith("packing (`causal_conv1d_fn` can't keep packed")


def test_every_script_is_a_test() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == {*WRONG, "packed_positions"}
