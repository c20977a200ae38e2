"""GGUF files are opened by transformers' own reading; what that needs is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import stateform as sf
from tests.fixtures.foreign import small

transformers = pytest.importorskip("transformers")

TEXT = torch.arange(20)[None] % 60 + 1


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have these packages of the two that are needed, and the other installed."""
    given = importlib.util.find_spec
    there = given("json")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: (
        given(name, *a) if name not in ("gguf", "accelerate") else None if name in names else there))  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "said"),
    [(("gguf",), "with the package gguf: pip install gguf$"),
     (("gguf", "accelerate"), "with the packages gguf and accelerate: pip install gguf accelerate$")],
)  # fmt: skip
def test_a_missing_package_is_named(
    missing: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    without(monkeypatch, *missing)
    with pytest.raises(sf.StateformError, match=said):
        sf.open_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_transformers_is_given_the_folder_and_the_file(
    tokenizer: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reading has a stand-in here: what a folder holds beside the file."""
    net = small("llama", vocab_size=256)
    net.save_pretrained(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    without(monkeypatch)
    asked: list[tuple[str, str]] = []

    def reading(kind: Any, name: str) -> None:
        given = getattr(kind, name)

        def read(place: str, *args: Any, gguf_file: str, **options: Any) -> Any:
            asked.append((place, gguf_file))
            return given(place, *args, **options)

        monkeypatch.setattr(kind, name, read)

    reading(transformers.PreTrainedConfig, "get_config_dict")
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        reading(kind, "from_pretrained")

    def configuration(place: str, gguf_file: str, **options: Any) -> Any:
        asked.append((place, gguf_file))
        return net.config

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", configuration)
    opened = sf.open_model(tmp_path / "model.gguf", tokenizer=tokenizer)
    assert opened.name == str(tmp_path / "model.gguf")
    assert torch.equal(opened.model(TEXT).logits, net(TEXT).logits)
    assert asked == [(str(tmp_path), "model.gguf")] * (4 if tokenizer is None else 3)


@pytest.mark.parametrize(("kind", "allowed"), [(None, 1e-5), ("Q8_0", 0.2)])
def test_a_file_is_the_model(kind: str | None, allowed: float, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="an optional package, which only reading GGUF files needs")
    net, file = small("llama"), tmp_path / "llama.gguf"
    written(gguf, net, file, None if kind is None else getattr(gguf.GGMLQuantizationType, kind))
    opened = sf.open_model(file)
    with torch.no_grad():
        assert float((opened.model(TEXT).logits - net(TEXT).logits).abs().max()) < allowed
    assert all(sf.lift(opened.model, TEXT, dtype="float64").certificates())
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(sf.StateformError, match=r"cannot read the configuration of .*llama\.gguf"):
        sf.open_model(file)


def written(gguf: Any, net: Any, file: Path, kind: Any) -> None:
    """Write a Llama as llama.cpp has it: rotary pairs of neighbours."""
    c, out = net.config, gguf.GGUFWriter(file, "llama")
    for name, value in (
        ("context_length", 256), ("embedding_length", c.hidden_size), ("block_count", c.num_hidden_layers),
        ("feed_forward_length", c.intermediate_size), ("head_count", c.num_attention_heads),
        ("head_count_kv", c.num_key_value_heads), ("layer_norm_rms_eps", c.rms_norm_eps),
        ("rope_freq_base", c.rope_parameters["rope_theta"]), ("vocab_size", c.vocab_size),
    ):  # fmt: skip
        getattr(out, f"add_{name}")(value)
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, x in net.state_dict().items():
        stem = name.removesuffix(".weight")
        known = tops.get(stem) or "blk.{2}.{0}".format(parts[stem.split(".", 3)[3]], *stem.split(".", 3)[1:3])
        if stem.endswith(("q_proj", "k_proj")):
            n_heads = c.num_attention_heads if stem.endswith("q_proj") else c.num_key_value_heads
            x = x.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        values = x.float().contiguous().numpy()
        if kind is None or values.ndim == 1:
            out.add_tensor(f"{known}.weight", values)
        else:
            out.add_tensor(f"{known}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
