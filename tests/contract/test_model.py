"""The contract on models of transformers: what is sound passes, and what is broken is found, by module and position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM, Mamba2Mixer
from typer.testing import CliRunner

import stateform as sf
from stateform.cli import app
from stateform.models.auto import StateformConfig, StateformForCausalLM
from tests.fixtures.foreign import small

PARTS = [
    "rows", "future", "cache", "continue", "steps", "left padding", "right padding", "padded, continued",
    "padding between", "packed",
]  # fmt: skip


def failed(model: Any) -> dict[str, str]:
    """The first failure of each part that failed."""
    report = sf.check(model)
    return {name: o.failures[0] for name, o in report.outcomes.items() if o.failures}


# -- what is sound ------------------------------------------------------------------------------------------------


def test_attention_keeps_every_part_and_says_so() -> None:
    told: list[str] = []
    model = small("llama", eos_token_id=[1, 2])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    report = sf.check(model, on_progress=told.append)
    assert report.ok and report.not_offered == ["padding between without position_ids"], str(report)
    assert told == list(report.outcomes) == PARTS
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert "contract holds" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["parts"]["steps"]["failures"] == []


def test_a_recurrent_model_keeps_all_but_packing_and_padding_between() -> None:
    """Padding goes through its states; the row without padding is right, as are both in Llama."""
    report = sf.check(small("mamba2"))
    assert report.not_offered == ["packing"] and not report.notes, str(report)
    assert [name for name, o in report.outcomes.items() if o.failures] == ["padding between"]
    found = report.outcomes["padding between"].failures
    site = (
        "attention_mask, text 0 of 2: first at backbone.layers.0.mixer (Mamba2Mixer): differs first at position 6 of 11"
    )
    assert [text.partition(", row")[0] for text in found] == [f"in one forward, {site}", f"continued, {site}"]


def test_positions_that_a_mask_does_not_give_are_passed_as_generate_does() -> None:
    report = sf.check(small("gpt2"))
    needed = [f"{part} without position_ids" for part in ("left padding", "padding between")]
    assert report.ok and report.not_offered == needed, str(report)


@pytest.mark.parametrize("pattern", ["mamba2 gated_deltanet softmax", "rwkv4"])
def test_our_own_models_keep_it(pattern: str) -> None:
    torch.manual_seed(0)
    report = sf.check(StateformForCausalLM(StateformConfig(pattern=pattern, d_model=32, vocab_size=64)))
    hole = "attention_mask has a hole in row 0; expected padding on the left or right alone"
    assert report.ok and report.not_offered == [f"padding between, in one forward ({hole})", "packing"], str(report)
    assert report.outcomes["padded, continued"].comparisons > 12
    assert report.outcomes["padding between"].comparisons == 2  # continued from the state


def test_a_folder_of_ours_is_checked_as_a_model(tmp_path: Path) -> None:
    model = sf.LanguageModel("softmax linear", d_model=16, tokenizer="bytes")
    model.save_pretrained(tmp_path / "model")
    found = CliRunner().invoke(app, ["check", str(tmp_path / "model")])
    assert found.exit_code == 0 and "StateformForCausalLM (stateform): the contract holds" in found.output
    with pytest.raises(sf.StateformError, match=r"a Classifier has one answer for a text; check its layers"):
        sf.check(sf.Classifier("linear", d_model=16, vocab_size=16, n_classes=2))


# -- what is broken on purpose ------------------------------------------------------------------------------------


class Forgetful(LlamaForCausalLM):
    """Its second layer loses the first token once it is in the cache."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.past_key_values is not None:
            layer = output.past_key_values.layers[1]
            layer.keys[:, :, 0], layer.values[:, :, 0] = 0, 0
        return output


class Misplaced(LlamaForCausalLM):
    """Without position_ids, positions start at 0 after a cache too."""

    def forward(self, input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


class OneByOne(LlamaForCausalLM):
    """Refuses many tokens after a cache."""

    def forward(self, input_ids: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length() and input_ids.shape[1] > 1:
            raise ValueError("one token at a time\nplease")
        return super().forward(input_ids, past_key_values=past_key_values, **kwargs)


class Mixing(LlamaForCausalLM):
    """Each row sees the mean of all, and each token a little of the next."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.01 * output.logits.mean(0, keepdim=True)
        output.logits[:, :-1] += 0.01 * output.logits[:, 1:]
        return output


def test_a_cache_that_loses_a_token() -> None:
    model = small("llama")
    model.__class__ = Forgetful
    found = failed(model)
    assert set(found) == {"continue", "steps", "padded, continued", "padding between"}
    assert "1 then 12 tokens, text 0 of 2: first at model.layers.1.self_attn (LlamaAttention)" in found["continue"]
    assert "position 1 of 13" in found["continue"]
    assert "1 row, from an empty cache: first at model.layers.1.self_attn" in found["steps"]


def test_wrong_positions_after_a_cache() -> None:
    model = small("llama")
    model.__class__ = Misplaced
    found = failed(model)
    assert set(found) == {"continue", "steps"}  # generate passes the positions
    assert "first at model.layers.0.self_attn (LlamaAttention): differs first at position 1 of 13" in found["continue"]


def test_what_a_model_raises_is_quoted_in_one_line() -> None:
    model = small("llama")
    model.__class__ = OneByOne
    found = failed(model)
    assert set(found) == {"continue", "padded, continued", "padding between"}
    assert found["continue"] == "1 then 12 tokens: raised ValueError: one token at a time"


@pytest.mark.parametrize(
    ("kind", "settings"), [("recurrent_gemma", {"num_hidden_layers": 2}), ("bamba", {"attn_layer_indices": []})]
)
def test_a_model_that_raises_with_a_cache_is_a_finding(kind: str, settings: dict[str, Any]) -> None:
    """Without a layer of attention there is nothing to ask for the length of the cache."""
    report = sf.check(small(kind, **settings))
    found = {name: o.failures[0] for name, o in report.outcomes.items() if o.failures}
    assert {"cache", "continue", "steps", "padded, continued"} <= set(found)
    assert found["cache"].startswith(f"use_cache=True: raised ValueError at modeling_{kind}.py:")
    assert report.outcomes["rows"].failures == report.outcomes["future"].failures == []


class Single(LlamaForCausalLM):
    """Takes one row at a time."""

    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        if len(input_ids) > 1:
            raise RuntimeError("one row")
        return super().forward(input_ids, **kwargs)


def test_a_model_of_one_row_is_a_finding_and_keeps_its_weights() -> None:
    model = small("llama")
    model.__class__ = Single
    report = sf.check(model)
    assert report.outcomes["rows"].failures[0] == "3 rows of 19 tokens: raised RuntimeError: one row"
    assert report.outcomes["future"].failures == []


def test_rows_and_tokens_that_see_each_other() -> None:
    model = small("llama")
    model.__class__ = Mixing
    found = failed(model)
    assert "3 rows of 19 tokens, text 0 of 3: logits: differs first at position 0" in found["rows"]
    assert "tokens from position 1: logits: differs first at position 0 of 1" in found["future"]


class Leaking(Mamba2Mixer):
    """Takes no notice of the padding."""

    def forward(self, hidden_states: Any, cache_params: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(hidden_states, cache_params, None, **kwargs)


class Starting(Mamba2Mixer):
    """Forgets its state before many tokens."""

    def forward(self, hidden_states: Any, cache_params: Any = None, **kwargs: Any) -> Any:
        if cache_params is not None and hidden_states.shape[1] > 1:
            state = cache_params.get_recurrent_state(self.layer_idx, state_idx=0)
            if state is not None:
                state.zero_()
        return super().forward(hidden_states, cache_params, **kwargs)


def mamba2(mixer: type, layer: int) -> Mamba2ForCausalLM:
    model = small("mamba2")
    model.backbone.layers[layer].mixer.__class__ = mixer
    return model


def test_padding_that_leaks() -> None:
    found = failed(mamba2(Leaking, 1))
    assert set(found) == {"left padding", "padded, continued", "padding between"}
    assert (
        "text 1 of 3: first at backbone.layers.1.mixer (Leaking): differs first at position 0" in found["left padding"]
    )


def test_a_state_that_is_not_carried() -> None:
    found = failed(mamba2(Starting, 0))
    assert set(found) == {"continue", "padded, continued", "padding between"}
    assert "first at backbone.layers.0.mixer (Starting): differs first at position 1 of 13" in found["continue"]
    assert "text 0 of 3: first at backbone.layers.0.mixer" in found["padded, continued"]


def test_a_kind_with_errors_that_are_known() -> None:
    """One token of several rows: RWKV-4 of transformers gives a result of another shape."""
    found = failed(small("rwkv"))
    assert "gives [3, 3] for [3, 1] (rows, tokens)" in found["steps"]


def test_numbers_are_drawn_where_the_model_is() -> None:
    model = small("gpt2")
    with torch.device("meta"):
        report = sf.check(model)
    assert report == sf.check(model) and report.ok, str(report)


# -- what cannot be checked ---------------------------------------------------------------------------------------


class Memoryless(LlamaForCausalLM):
    """Takes no cache."""

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids, attention_mask, position_ids, use_cache=False)


def test_without_a_cache_some_parts_are_not_offered() -> None:
    model = small("llama")
    model.__class__ = Memoryless
    report = sf.check(model)
    assert report.ok and report.not_offered == ["a cache", "padding between without position_ids"], str(report)
    assert set(report.outcomes) == {"rows", "future", "left padding", "right padding", "padding between", "packed"}


def test_what_is_no_causal_model_is_refused() -> None:
    with pytest.raises(
        sf.StateformError, match="BertForMaskedLM is an encoder: its first output changes with its last"
    ):
        sf.check(small("bert"))
    with pytest.raises(sf.StateformError, match="LlamaModel gives no logits"):
        sf.check(small("llama").model)
    small_t5 = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    with pytest.raises(sf.StateformError, match="an encoder with a decoder"):
        sf.check(T5ForConditionalGeneration(small_t5))


def test_a_model_without_weights_or_words_is_refused() -> None:
    with pytest.raises(sf.StateformError, match=r"embed_tokens\.weight is on the device 'meta'"):
        sf.check(small("llama").to("meta"))
    with pytest.raises(sf.StateformError, match="vocabulary of LlamaForCausalLM has 1 token"):
        sf.check(small("llama", vocab_size=1))
    with pytest.raises(sf.StateformError, match="leave out d_model"):
        sf.check(small("llama"), d_model=3)


def test_a_model_that_does_not_run_is_refused() -> None:
    model = small("llama")
    model.model.layers[0].mlp = torch.nn.Linear(3, 3)
    with pytest.raises(sf.StateformError, match="LlamaForCausalLM does not run on a text alone: RuntimeError"):
        sf.check(model)
