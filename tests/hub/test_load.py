"""Pretrained models are opened from folders; what is wrong with one is said before it is loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import stateform as sf
from stateform.hub import open_model
from tests.fixtures.foreign import WITH_IMAGES, small, with_images

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mamba")
    small("mamba").save_pretrained(folder)
    return folder


def changed(saved: Path, folder: Path, **config: Any) -> Path:
    """A copy of a saved model, its configuration with these values."""
    folder.mkdir(exist_ok=True)
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


@pytest.mark.parametrize("kind", ["mamba", "llama", "bert", "qwen3_next"])
def test_a_model_opens_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert type(opened.model) is type(model)
    assert opened.tokenizer is None
    assert not opened.model.training
    kept = dict(opened.model.state_dict())
    assert all(torch.equal(kept[name], x) for name, x in model.state_dict().items())
    assert open_model(tmp_path, dtype="float64").model.dtype == torch.float64


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_a_model_of_several_parts_opens_whole(kind: str, tmp_path: Path) -> None:
    model = with_images(kind)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path).model
    assert type(opened) is type(model)
    text = torch.arange(1, 20)
    with torch.no_grad():
        assert torch.equal(opened(text[None]).logits, model(text[None]).logits)
    assert all(sf.lift(opened, text, dtype="float64").certificates())


def test_a_language_model_without_an_adapter_is_named(tmp_path: Path) -> None:
    with_images("llava").save_pretrained(tmp_path / "llava")
    folder = changed(tmp_path / "llava", tmp_path / "other", text_config={"model_type": "reformer"})
    with pytest.raises(sf.StateformError, match="'llava' have no adapter for their language model, of type 'reformer'"):
        open_model(folder)


def test_what_is_no_model(tmp_path: Path) -> None:
    for name, said in (
        (tmp_path, "has no config.json"), (tmp_path / "none", "there is no folder"), ("", "is empty"),
        ("./nothing", "there is no folder"),
    ):  # fmt: skip
        with pytest.raises(sf.StateformError, match=said):
            open_model(name)
    (tmp_path / "config.json").write_text("{ no json")
    with pytest.raises(sf.StateformError, match="is no JSON"):
        open_model(tmp_path)


def test_a_type_without_adapter_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(sf.StateformError, match=r"type 'mambo' have no adapter: did you mean .*mamba"):
        open_model(changed(saved, tmp_path / "a", model_type="mambo"))


def test_remote_code_is_refused_unless_named(saved: Path, tmp_path: Path) -> None:
    code = {"AutoConfig": "config.Mine", "AutoModelForCausalLM": "model.Mine"}
    folder = changed(saved, tmp_path / "a", model_type="mine", auto_map=code)
    (folder / "config.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(sf.StateformError, match="code of its own, which is not run unless you ask"):
        open_model(folder)


def test_pickles_are_refused_and_not_read(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(sf.StateformError, match="has no weights"):
        open_model(folder)

    class Trap:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "sprung").write_text, ("x",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(sf.StateformError, match=r"a pickle, which could run any code: .*save_file"):
        open_model(folder)
    assert not (tmp_path / "sprung").exists()


def test_weights_that_are_cut_off_or_missing(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 5, 100, len(whole) - 10):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(sf.StateformError, match="not a whole safetensors file"):
            open_model(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    with pytest.raises(sf.StateformError, match=r"lacks 1.safetensors of its 1 weight files"):
        open_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(sf.StateformError, match="cannot read"):
        open_model(folder)


CONFIGS: dict[str, tuple[Any, str]] = {
    "nested": ("[" * 10**5, "nested too deeply"),
    "a list": ("[1, 2]", "holds a list; expected a table"),
    "a number of 40 digits": ('{"model_type": "mamba", "hidden_size": ' + "9" * 40 + "}", "whole number of 133 bits"),
    "a type that is a list": ('{"model_type": ["mamba"]}', r"model_type is .'mamba'. in .*expected the name"),
    "endless depth": ({"num_hidden_layers": 10**7, "layer_types": None}, "num_hidden_layers is 10000000 .*10,000 lay"),
    "endless width": ({"hidden_size": 2**62}, "."),
    "a width below zero": ({"hidden_size": -64}, "."),
    "a width that is a word": ({"hidden_size": "wide"}, "."),
    "a table for a number": ({"num_hidden_layers": {"a": 1}, "layer_types": None}, "."),
    "a number too large for floats": ({"layer_norm_epsilon": "1e999"}, "."),
    "classes that are a number": ({"architectures": 3}, "."),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_was_written_to_do_harm(name: str, saved: Path, tmp_path: Path) -> None:
    change, said = CONFIGS[name]
    folder = changed(saved, tmp_path / "a", **(change if isinstance(change, dict) else {}))
    if isinstance(change, str):
        (folder / "config.json").write_text(change)
    with pytest.raises(sf.StateformError, match=said) as found:
        open_model(folder)
    assert "\n" not in str(found.value)


HEADERS: dict[str, bytes] = {
    "nested": b'{"a": ' + b"[" * 10**5,
    "a shape of huge numbers": b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 0]}}',
    "a shape below zero": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    "a number of 40 digits": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 40 + b'], "data_offsets": [0, 4]}}',
    "a list": b"[1, 2, 3]",
    "a word for a table": b'{"a": "b"}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_was_written_to_do_harm(name: str, saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    file = folder / "model.safetensors"
    for size in (len(HEADERS[name]), 2**62):
        file.write_bytes(size.to_bytes(8, "little") + HEADERS[name])
        with pytest.raises(sf.StateformError, match="not a whole safetensors file"):
            open_model(folder)


INDICES: dict[str, tuple[str, str]] = {
    "no metadata": ('{"weight_map": {"a": "model.safetensors"}}', 'has no metadata.*"metadata": {}'),
    "metadata that are a list": ('{"metadata": [], "weight_map": {"a": "model.safetensors"}}', "has no metadata"),
    "nested": ('{"weight_map": ' + "[" * 10**5, "nested too deeply"),
    "a list": ("[1]", "expected a table weight_map"),
    "names of files that are numbers": ('{"metadata": {}, "weight_map": {"a": 3}}', "expected a table weight_map"),
    "names of files that are lists": ('{"metadata": {}, "weight_map": {"a": []}}', "expected a table weight_map"),
    "nothing": ('{"metadata": {}, "weight_map": {}}', "expected a table weight_map"),
    "another folder": ('{"metadata": {}, "weight_map": {"a": "../x"}}', "expected files that lie beside it"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_cannot_be_used(name: str, saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    (folder / "model.safetensors.index.json").write_text(INDICES[name][0])
    with pytest.raises(sf.StateformError, match=INDICES[name][1]) as found:
        open_model(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["{ no json", "[" * 10**4, "[]", '{"model": {"type": "Nothing"}}'])
def test_a_broken_tokenizer_is_no_missing_one(text: str, saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "a")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(sf.StateformError, match=r"cannot load the tokenizer of .*give tokenizer='bytes'") as found:
        open_model(folder)
    assert "\n" not in str(found.value) and "no tokenizer" not in str(found.value)
    assert open_model(folder, tokenizer="bytes").tokenizer == "bytes"  # the model itself is sound


def test_weights_of_another_model(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(sf.StateformError, match=r"lack backbone\.layers\.2"):
        open_model(changed(saved, tmp_path / "a", num_hidden_layers=3, layer_types=None))


def test_a_model_larger_than_memory_is_refused_before_it_is_made(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(sf.StateformError, match=r"weights, .* GB in float32; .* may be used"):
        open_model(saved, memory_limit_gb=1e-6)
    huge = changed(saved, tmp_path / "a", hidden_size=2**16, intermediate_size=2**17, num_hidden_layers=64,
                   layer_types=None)  # fmt: skip
    with pytest.raises(sf.StateformError, match="GB in float32"):
        open_model(huge)


def test_a_missing_tokenizer_offers_bytes(saved: Path, tmp_path: Path) -> None:
    opened = open_model(saved)
    with pytest.raises(sf.StateformError, match="tokenizer='bytes'"):
        opened.tokens(b"text")
    with pytest.raises(sf.StateformError, match="has 64 entries; bytes need 256"):
        open_model(saved, tokenizer="bytes").tokens(b"text")
    with pytest.raises(sf.StateformError, match="cannot load the tokenizer"):
        open_model(saved, tokenizer=str(tmp_path))
    small("mamba", vocab_size=256).save_pretrained(tmp_path / "b")
    opened = open_model(tmp_path / "b", tokenizer="bytes")
    assert opened.tokens(b"text", 3).tolist() == [[116, 101, 120]]
    assert opened.decode(torch.tensor([[116, 200]])) == ["t", "200"]
    with pytest.raises(sf.StateformError, match="no token"):
        opened.tokens(b"")


def test_settings_are_checked(saved: Path) -> None:
    with pytest.raises(sf.StateformError, match="dtype is 'int8'"):
        open_model(saved, dtype="int8")


def test_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    with pytest.raises(sf.StateformError, match="the name of the model is None"):
        open_model(nothing)
    small("gemma2", vocab_size=256).save_pretrained(tmp_path / "gemma2")
    monkeypatch.setenv("HOME", str(tmp_path))
    opened = open_model("~/gemma2", tokenizer="bytes")
    assert torch.equal(opened.tokens("text"), opened.tokens(b"text"))
    with pytest.raises(sf.StateformError, match=r"GB in float32; 1e-09 GB may be used"):
        open_model("~/gemma2", memory_limit_gb=1e-9)


def test_a_type_with_an_adapter_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stateform.hub.families.softmax import LiftedAttention
    from stateform.hub.lifted import ADAPTERS, FAMILIES

    small("qwen3_moe").save_pretrained(tmp_path)
    monkeypatch.delitem(ADAPTERS, "Qwen3MoeAttention")
    monkeypatch.delitem(FAMILIES, "qwen3_moe")
    with pytest.raises(sf.StateformError, match="'qwen3_moe' have no adapter"):
        open_model(tmp_path)
    monkeypatch.setitem(ADAPTERS, "Qwen3MoeAttention", LiftedAttention)
    opened = open_model(tmp_path)
    assert all(sf.lift(opened.model, torch.arange(1, 9), dtype="float64").certificates())


def test_the_commands_check_their_settings_first() -> None:
    from typer.testing import CliRunner

    from stateform.cli import app

    for given, said in (
        (["open", "nowhere", "--only", "x"], "unknown question"), (["open", "nowhere", "--dtype", "x"], "dtype is"),
        (["open", "nowhere", "--max-length", "1"], "max_length is"), (["reduce", "nowhere", "--tol", "2"], "tol is"),
        (["reduce", "nowhere", "--max-length", "1"], "max_length is"),
    ):  # fmt: skip
        assert said in str(CliRunner().invoke(app, given).exception)
