"""Models in single files: what they compute, beside code of their own programs' kind, and what is refused."""

from __future__ import annotations

import ast
import importlib
import io
import math
import pickle
import struct
import tarfile
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stateform as sf
from stateform import analysis
from stateform.hub.formats import RWKV, open_file, read_words
from stateform.hub.formats.format import FORMATS, reads
from tests.independent.helpers import assert_close, recorded

CLOSE = 2e-6
"""Relative, between two programs in float32."""
DIGITS = "0123456789,#"


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- llama2.c -----------------------------------------------------------------------------------------------------

D, HIDDEN, LAYERS, HEADS, KV, WORDS, POSITIONS = 16, 20, 2, 4, 2, 11, 8


def llama_arrays(shared: bool) -> dict[str, Tensor]:
    kv = D * KV // HEADS
    shapes = {
        "emb": (WORDS, D), "n1": (LAYERS, D), "q": (LAYERS, D, D), "k": (LAYERS, kv, D), "v": (LAYERS, kv, D),
        "o": (LAYERS, D, D), "n2": (LAYERS, D), "w1": (LAYERS, HIDDEN, D), "w2": (LAYERS, D, HIDDEN),
        "w3": (LAYERS, HIDDEN, D), "n3": (D,), "cos": (POSITIONS, 2), "sin": (POSITIONS, 2),
    }  # fmt: skip
    shapes |= {} if shared else {"head": (WORDS, D)}
    size = {"emb": 1.0, "n1": 1.0, "n2": 1.0, "n3": 1.0}
    return {name: drawn(*s, seed=i, size=size.get(name, D**-0.5)) for i, (name, s) in enumerate(shapes.items())}


def write_llama(path: Path, w: dict[str, Tensor], shared: bool) -> Path:
    head = struct.pack("<7i", D, HIDDEN, LAYERS, HEADS, KV, WORDS if shared else -WORDS, POSITIONS)
    path.write_bytes(head + b"".join(x.numpy().astype("<f4").tobytes() for x in w.values()))
    return path


def llama_logits(w: dict[str, Tensor], tokens: list[int], shared: bool) -> Tensor:
    """As run.c does it: one token after the other, neighbours turned by the position."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean() + 1e-5).sqrt()

    def turned(x: Tensor, at: int) -> Tensor:
        x = x.clone()
        n = D // HEADS
        for i in range(0, len(x), 2):
            angle = at / 10000.0 ** ((i % n) / n)
            a, b = x[i].clone(), x[i + 1].clone()
            x[i], x[i + 1] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
        return x

    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(LAYERS)]
    n, out = D // HEADS, []
    for at, token in enumerate(tokens):
        x = w["emb"][token]
        for i in range(LAYERS):
            u = norm(x, w["n1"][i])
            q = turned(w["q"][i] @ u, at)
            kept[i].append((turned(w["k"][i] @ u, at), w["v"][i] @ u))
            y = []
            for h in range(HEADS):
                part = slice(h // (HEADS // KV) * n, h // (HEADS // KV) * n + n)
                keys, values = (torch.stack([pair[j][part] for pair in kept[i]]) for j in (0, 1))
                y.append(torch.softmax(keys @ q[h * n : h * n + n] / n**0.5, 0) @ values)
            x = x + w["o"][i] @ torch.cat(y)
            u = norm(x, w["n2"][i])
            x = x + w["w2"][i] @ (F.silu(w["w1"][i] @ u) * (w["w3"][i] @ u))
        out.append(w["emb" if shared else "head"] @ norm(x, w["n3"]))
    return torch.stack(out)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_llama2c_is_what_its_program_computes(tmp_path: Path, shared: bool) -> None:
    w = llama_arrays(shared)
    model = open_file(write_llama(tmp_path / "model.bin", w, shared))
    tokens = [3, 1, 10, 0, 7, 7, 2]
    want = llama_logits(w, tokens, shared)
    assert_close(model(torch.tensor([tokens])).logits[0], want, "logits", CLOSE)
    w["w1"], w["w3"] = w["w3"], w["w1"]  # the test sees a swap
    assert float((llama_logits(w, tokens, shared) - want).abs().max()) > 0.01
    assert len(analysis.systems_of(model, torch.tensor([tokens]))) == LAYERS
    model.save_pretrained(tmp_path / "folder")
    again = sf.LanguageModel.from_pretrained(tmp_path / "folder")
    assert_close(again(torch.tensor([tokens])).logits[0], want, "logits, saved and loaded", CLOSE)


@torch.no_grad()
def test_stories_are_told_again() -> None:
    place = recorded("stories260k")
    model, words = open_file(place / "stories260K.bin"), read_words(place / "tok512.bin")
    expected = ast.literal_eval((place / "expected_stdout.txt").read_text().partition("=")[2].strip()).decode()
    told = model.generate(torch.tensor([[1]]), max_new_tokens=200)
    assert words.decode(told[0]) == expected
    assert words.encode(expected).tolist() == told.tolist()


def test_a_lifted_llama_tells_them_too() -> None:
    """transformers' Llama with these weights, its attention computed from Systems, token by token from its cache."""
    hf = pytest.importorskip("transformers")
    from stateform.hub.families.softmax import NAME, register

    place = recorded("stories260k")
    words, w = read_words(place / "tok512.bin"), open_file(place / "stories260K.bin").state_dict()
    config = hf.LlamaConfig(
        hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=512, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    given = {"model.embed_tokens.weight": w["embedding.weight"], "lm_head.weight": w["embedding.weight"]}
    given["model.norm.weight"] = w["norm.weight"]
    maps = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    for i in range(5):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        given |= {f"{theirs}self_attn.{b}.weight": w[f"{ours}mixer.{a}.weight"] for a, b in maps.items()}
        given[f"{theirs}input_layernorm.weight"] = w[f"{ours}mixer_norm.weight"]
        given[f"{theirs}post_attention_layernorm.weight"] = w[f"{ours}mlp_norm.weight"]
        gate, up = w[f"{ours}mlp.in_proj.weight"].chunk(2)
        parts = {"gate": gate[:172], "up": up[:172], "down": w[f"{ours}mlp.out_proj.weight"][:, :172]}
        given |= {f"{theirs}mlp.{name}_proj.weight": x for name, x in parts.items()}
    model = hf.LlamaForCausalLM(config).eval()
    model.load_state_dict(given)
    register()
    model.set_attn_implementation(NAME)
    told = model.generate(torch.tensor([[1]]), max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert (
        words.decode(told[0])
        == ast.literal_eval((place / "expected_stdout.txt").read_text().partition("=")[2].strip()).decode()
    )
    assert all(sf.lift(model, told[:, :100], dtype="float64").certificates())


def test_a_damaged_llama2c_file_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "model.bin", llama_arrays(True), True)
    data = path.read_bytes()
    for wrong, message in ((data[:-4], "cut short"), (data + b"\0\0\0\0", "another program"), (data[:20], "no kind")):
        path.write_bytes(wrong)
        with pytest.raises(sf.StateformError, match=message):
            open_file(path)
    path.write_bytes(struct.pack("<7i", 1 << 20, 1 << 20, 1 << 10, 4, 4, 1 << 20, 1) + bytes(100))
    with pytest.raises(
        sf.StateformError, match=r"has 128 bytes; its header says [\d,]{15,}"
    ):  # and nothing is allocated
        open_file(path)


def test_words_of_a_tokenizer(tmp_path: Path) -> None:
    pieces = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    pieces += [b" ", b"a", b"b", b"ab", b" a", b"bab", b" abab"]
    scores = [0.0] * 262 + [-1.0, -3.0, -2.0, -1.5]
    data = struct.pack("<i", 6) + b"".join(
        struct.pack("<fi", s, len(p)) + p for p, s in zip(pieces, scores, strict=True)
    )
    path = tmp_path / "tok.bin"
    path.write_bytes(data)
    words = read_words(path)
    assert words.encode("abé").tolist() == [[1, 259, 262, 0xC3 + 3, 0xA9 + 3]]
    for text in ("abab ba", "é\n\U0001f600", "", " a"):
        assert words.decode(words.encode(text)) == text
    for wrong, message in ((data[:-1], "cut short"), (b"\0" * 8, "no tokenizer"), (b"", "0 bytes")):
        path.write_bytes(wrong)
        with pytest.raises(sf.StateformError, match=message):
            read_words(path)


# -- rwkv.cpp -----------------------------------------------------------------------------------------------------


def write_ggmf(path: Path, w: dict[str, Tensor], layers: int, kind: int = 0, edition: int = 101) -> Path:
    """The container; matrices in float16 where `kind` is 1, as the converter does it."""
    vocabulary, width = w["emb.weight"].shape
    parts = [struct.pack("<6i", 0x67676D66, edition, vocabulary, width, layers, kind)]
    for name, x in w.items():
        half = kind == 1 and x.ndim == 2
        raw = x.detach().numpy().astype("<f2" if half else "<f4").tobytes()
        parts.append(struct.pack("<3i", x.ndim, len(name), int(half)) + struct.pack(f"<{x.ndim}i", *x.shape[::-1]))
        parts.append(name.encode() + raw)
    path.write_bytes(b"".join(parts))
    return path


def published4() -> tuple[Any, dict[str, Tensor]]:
    """A small RWKV-4 of the package transformers, and its weights as rwkv.cpp has them."""
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model = small("rwkv", rescale_every=0)
    names = {"rwkv.embeddings.": "emb.", "rwkv.": "", ".attention.": ".att.", ".feed_forward.": ".ffn."}
    names |= {"pre_ln": "ln0", "mix_key": "mix_k", "mix_value": "mix_v", "mix_receptance": "mix_r"}
    w = {}
    for name, x in model.state_dict().items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        w[name] = -x.exp() if name.endswith("time_decay") else x.squeeze()
    return model, w


@torch.no_grad()
def test_rwkv_cpp_of_version_4_is_transformers_model(tmp_path: Path) -> None:
    theirs, w = published4()
    tokens = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(0))
    want = theirs(tokens, use_cache=False).logits
    model = open_file(write_ggmf(tmp_path / "model.bin", w, 2))
    assert_close(model(tokens).logits, want, "logits", CLOSE)
    halves = open_file(write_ggmf(tmp_path / "half.bin", w, 2, kind=1))
    assert_close(halves(tokens).logits, want, "logits, matrices in float16", 5e-3)
    a, b = (f"blocks.0.att.{x}.weight" for x in ("key", "value"))
    w[a], w[b] = w[b], w[a]
    swapped = open_file(write_ggmf(tmp_path / "swapped.bin", w, 2))
    assert float((swapped(tokens).logits - want).abs().max()) > 0.01


@pytest.mark.parametrize("version", ["4v0-660K", "5v1-730K", "5v2-730K", "7v0-834K"])
@torch.no_grad()
def test_rwkv_cpp_gives_its_recorded_logits(version: str) -> None:
    place = recorded("rwkv-tiny")
    model = open_file(place / f"tiny-rwkv-{version}-FP32.bin")
    want = torch.from_numpy(np.fromfile(place / f"expected-logits-{version}.bin", "<f4"))
    tokens = torch.tensor([list(b'"in')])
    assert float((model(tokens).logits[0, -1] - want).abs().max()) < 1e-5
    assert model.config.tokenizer == "bytes"
    first, second = model.blocks[0].mixer, model.blocks[1].mixer
    for name in {"4": ("v_proj", "r_proj"), "5": ("k_proj", "v_proj"), "7": ("k_proj", "v_proj")}[version[0]]:
        a, b = (getattr(layer, name).weight for layer in (first, second))
        both = a.clone(), b.clone()
        a.copy_(both[1])
        b.copy_(both[0])
        assert float((model(tokens).logits[0, -1] - want).abs().max()) > 1e-3, f"{name} swapped, and nothing changes"
        a.copy_(both[0])
        b.copy_(both[1])


@torch.no_grad()
def test_an_opened_rwkv_keeps_the_contract(tmp_path: Path) -> None:
    """In pieces, token by token, padded and packed: with the state of the channel mixing too."""
    for model in (open_file(write_ggmf(tmp_path / "4.bin", published4()[1], 2)), open_file(write_pth7(tmp_path))):
        tokens = torch.randint(12, (2, 17), generator=torch.Generator().manual_seed(1))
        want = model(tokens).logits
        for width in (1, 5):
            state, got = model.init_state(2), []
            for piece in tokens.split(width, 1):
                out = model(piece, initial_state=state, return_state=True)
                state = out.state
                got.append(out.logits)
            assert_close(torch.cat(got, 1), want, f"pieces of {width}", 1e-5)
        mask = torch.ones(2, 17, dtype=torch.long)
        mask[0, :6] = 0
        assert_close(model(tokens, mask).logits[:1, 6:], model(tokens[:1, 6:]).logits, "padded on the left", 1e-5)
        packed = model(tokens.reshape(1, -1), cu_seqlens=torch.tensor([0, 17, 34])).logits
        assert_close(packed[0], want.flatten(0, 1), "packed", 1e-5)
        assert model.generate(tokens, max_new_tokens=9).tolist() == (
            model.generate(tokens, max_new_tokens=9, use_cache=False).tolist()
        )
        with pytest.raises(sf.StateformError, match="single file"):
            model.save_pretrained(tmp_path / "folder")


def test_a_damaged_rwkv_cpp_file_is_refused(tmp_path: Path) -> None:
    w = {k: x for k, x in published7().items() if "ffn" not in k}
    path = write_ggmf(tmp_path / "model.bin", w, 2)
    with pytest.raises(sf.StateformError, match=r"no weight '.*ffn"):
        open_file(path)
    data = path.read_bytes()

    def header(**new: int) -> bytes:
        values = {"magic": 0x67676D66, "edition": 101, "vocabulary": 12, "width": 16, "layers": 2, "kind": 0} | new
        return struct.pack("<6i", *values.values()) + data[24:]

    part = struct.pack("<3i", 2, 1, 0)
    cases = {
        "cut short after": data[:-5], "cut short within its header": data[:20],
        "version 99 of rwkv.cpp": header(edition=99), r"quantised \(Q5_1\)": header(kind=8),
        "weights are of another model": header(width=32), "damaged": header(layers=0),
        r"takes [\d,]{20,} bytes": data[:24] + part + struct.pack("<2i", (1 << 31) - 1, (1 << 31) - 1) + b"a",
        r"shape \[5, -1\]": data[:24] + part + struct.pack("<2i", -1, 5) + b"a",
        r"a of .* is quantised \(Q4_0\)": data[:24] + struct.pack("<3i", 1, 1, 2) + struct.pack("<i", 32) + b"a",
        "name that is no text": data[:24] + struct.pack("<3ii", 1, 1, 0, 1) + b"\xff",
    }  # fmt: skip
    for message, wrong in cases.items():
        path.write_bytes(wrong)
        with pytest.raises(sf.StateformError, match=message):
            open_file(path)
    twice = data + data[24 : data.index(b"blocks") - 16]
    path.write_bytes(twice)
    with pytest.raises(sf.StateformError, match="twice"):
        open_file(path)


# -- RWKV-7 in PyTorch's files -------------------------------------------------------------------------------------


def published7(vocabulary: int = 12, d: int = 16, heads: int = 2, layers: int = 2) -> dict[str, Tensor]:
    """Random weights under the published names."""
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (vocabulary, d)}
    for i in range(layers):
        att = {f"x_{x}": (1, 1, d) for x in "rwkvag"} | {f"{x}0": (1, 1, d) for x in "wav"}
        att |= {f"{x}1": (d, 4) for x in "wavg"} | {f"{x}2": (4, d) for x in "wavg"}
        att |= {"k_k": (1, 1, d), "k_a": (1, 1, d), "r_k": (heads, d // heads)}
        att |= {f"{x}.weight": (d, d) for x in ("receptance", "key", "value", "output")}
        att |= {"ln_x.weight": (d,), "ln_x.bias": (d,)}
        norms = ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2")
        shapes |= {f"blocks.{i}.{n}.{part}": (d,) for n in norms for part in ("weight", "bias")}
        shapes |= {f"blocks.{i}.att.{n}": s for n, s in att.items() if i or n[0] != "v" or n.startswith("value")}
        ffn = {"x_k": (1, 1, d), "key.weight": (40, d), "value.weight": (d, 40)}
        shapes |= {f"blocks.{i}.ffn.{n}": s for n, s in ffn.items()}
    shapes |= {"ln_out.weight": (d,), "ln_out.bias": (d,), "head.weight": (vocabulary, d)}
    return {name: drawn(*s, seed=i, size=0.5) for i, (name, s) in enumerate(shapes.items())}


def write_pth7(folder: Path) -> Path:
    torch.save(published7(), folder / "seven.pth")
    return folder / "seven.pth"


def rwkv7_logits(w: dict[str, Tensor], tokens: list[int], heads: int = 2, layers: int = 2) -> Tensor:
    """The published recurrence, one token after the other."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape, w[f"{name}.weight"], w[f"{name}.bias"])

    d = w["emb.weight"].shape[1]
    n = d // heads
    before = {f"{part}{i}": torch.zeros(d) for part in ("att", "ffn") for i in range(layers)}
    S, out = [torch.zeros(heads, n, n) for _ in range(layers)], []
    for token in tokens:
        x, first = norm(w["emb.weight"][token], "blocks.0.ln0"), None
        for i in range(layers):
            a = {k.removeprefix(f"blocks.{i}.att."): z.squeeze() for k, z in w.items() if f"blocks.{i}.att." in k}
            u = norm(x, f"blocks.{i}.ln1")
            at = {k: u + (before[f"att{i}"] - u) * a[f"x_{k}"] for k in "rwkvag"}
            before[f"att{i}"] = u
            r, k, v = (a[f"{name}.weight"] @ at[name[0]] for name in ("receptance", "key", "value"))
            decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(a["w0"] + torch.tanh(at["w"] @ a["w1"]) @ a["w2"]))
            rate = torch.sigmoid(a["a0"] + at["a"] @ a["a1"] @ a["a2"])
            if first is None:
                first = v
            else:
                v = v + (first - v) * torch.sigmoid(a["v0"] + at["v"] @ a["v1"] @ a["v2"])
            kk = F.normalize((k * a["k_k"]).view(heads, n), dim=-1)
            k = k * (1 + (rate - 1) * a["k_a"])
            r, k, v, decay, rate = (z.view(heads, n) for z in (r, k, v, decay, rate))
            S[i] = S[i] * decay[:, None] - (S[i] @ kk[..., None]) * (kk * rate)[:, None] + v[..., None] * k[:, None]
            y = (S[i] @ r[..., None]).view(1, d)
            y = F.group_norm(y, heads, a["ln_x.weight"], a["ln_x.bias"], 64e-5).view(heads, n)
            y = (y + (r * k * a["r_k"]).sum(-1, keepdim=True) * v).flatten()
            x = x + a["output.weight"] @ (y * (torch.sigmoid(at["g"] @ a["g1"]) @ a["g2"]))
            u, f = norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.ffn"
            at_k = u + (before[f"ffn{i}"] - u) * w[f"{f}.x_k"].squeeze()
            before[f"ffn{i}"] = u
            x = x + w[f"{f}.value.weight"] @ torch.relu(w[f"{f}.key.weight"] @ at_k).square()
        out.append(w["head.weight"] @ norm(x, "ln_out"))
    return torch.stack(out)


@torch.no_grad()
def test_rwkv7_is_the_published_recurrence(tmp_path: Path) -> None:
    """As a file of PyTorch, and as rwkv.cpp keeps the same weights: shares stacked, low-rank maps transposed."""
    w, tokens = published7(), [3, 1, 4, 1, 5, 9, 2, 6, 11]
    want = rwkv7_logits(w, tokens)
    model = open_file(write_pth7(tmp_path))
    assert isinstance(model, RWKV)
    assert_close(model(torch.tensor([tokens])).logits[0], want, "logits", CLOSE)
    other = {}
    for name, x in w.items():
        if name.rpartition(".")[2] in {f"{a}{b}" for a in "wavg" for b in "12"}:
            x = x.T.contiguous()
        if name.endswith(".x_r"):
            stem = name.removesuffix("r")
            other[f"{stem}rwkvag"] = torch.stack([w[f"{stem}{c}"][0] for c in "rwkvag"])
        elif ".att.x_" not in name:
            other[name] = x
    model = open_file(write_ggmf(tmp_path / "seven.bin", other, 2))
    assert_close(model(torch.tensor([tokens])).logits[0], want, "logits, from rwkv.cpp's file", CLOSE)
    w["blocks.1.att.w0"], w["blocks.1.att.a0"] = w["blocks.1.att.a0"], w["blocks.1.att.w0"]
    torch.save(w, tmp_path / "swapped.pth")
    assert float((open_file(tmp_path / "swapped.pth")(torch.tensor([tokens])).logits[0] - want).abs().max()) > 1e-3


@torch.no_grad()
def test_a_trained_model_reverses_sixty_digits() -> None:
    (path,) = recorded("rwkv7-reverse").glob("*.pth")
    model = open_file(path)
    digits = torch.randint(10, (32, 60), generator=torch.Generator().manual_seed(0))
    digits[:, 0].clamp_(min=1)
    prompt = torch.cat([digits, torch.full((32, 1), DIGITS.index(","))], 1)
    answers = model.generate(prompt, max_new_tokens=61)[:, 61:]
    assert bool((answers[:, :60] == digits.flip(1)).all())
    assert bool((answers[:, 60] == DIGITS.index("#")).all())
    a, b = model.blocks[0].mixer.rate, model.blocks[1].mixer.rate
    a.data, b.data = b.data, a.data
    answers = model.generate(prompt, max_new_tokens=60)[:, 61:]
    assert not bool((answers == digits.flip(1)).all()), "rates of two layers swapped, and nothing changes"


class Malicious:
    """What it would do on loading is to raise."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code of a file was run')",)


def test_a_pickle_of_more_than_weights_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for old in (False, True):
        torch.save({**published7(), "extra": Malicious()}, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(sf.StateformError, match=r"nothing of it was run.*safetensors"):
            open_file(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(sf.StateformError, match=r"nothing of it was run|damaged"):
        open_file(path)


def test_other_files_of_pytorch_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    w = published7()
    four = {"emb.weight": w["emb.weight"], "blocks.0.ln1.weight": w["ln_out.weight"]}
    off = {"e.weight": w["emb.weight"], "rwkv1.r_k": w["ln_out.bias"], "rosa1.rosa_qkv.emb": torch.ones(1, 1, 16)}
    vast = {**w, "emb.weight": torch.zeros(1).expand(1 << 30, 1 << 20)}
    odd = {**w, "blocks.1.att.key.weight": torch.zeros(16, 15)}
    for held, message in (
        ({"model": w}, "whose 'model' is no tensor"),
        (nn.Linear(2, 2).state_dict(), "other weights than those of RWKV"),
        (four, "holds RWKV-4"), (off, "branch rosa1 that is on"), (vast, "say that they have"),
        (odd, r"do not fit together: .*k_proj.* is \[16, 15\]"), ([torch.zeros(3)], "holds a list"),
        ({k: x for k, x in w.items() if "blocks.1.ln2" not in k}, r"no weight .blocks.1.ln2.weight."),
    ):  # fmt: skip
        torch.save(held, path)
        with pytest.raises(sf.StateformError, match=message):
            open_file(path)
    data = write_pth7(tmp_path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(sf.StateformError, match="cut short"):
        open_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(sf.StateformError, match="compressed"):
        open_file(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(sf.StateformError, match=r"cannot read .*model: No such file"):
        open_file(path)
    with pytest.raises(sf.StateformError, match="is a folder"):
        open_file(tmp_path)
    for data, message in (
        (b"", "is empty"), (b"GGUF\3\0\0\0", "GGUF file of llama.cpp"), (b"24ka" + bytes(100), "version 1 or 2"),
        (struct.pack("<Q", 80) + b'{"a":{}}', "safetensors"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "no kind that is known"),
        (b"a", "no kind that is known"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(sf.StateformError, match=message):
            open_file(path)


# -- a trained LSTM over speech ------------------------------------------------------------------------------------


def speech(count: int) -> np.ndarray:
    """Recordings of spoken digits one after the other, from 8 to 16 kHz."""
    folder, pieces = recorded("spoken-digits"), []
    with tarfile.open(folder / "recordings.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".wav") and len(pieces) < count:
                file = archive.extractfile(member)
                assert file is not None
                with wave.open(io.BytesIO(file.read())) as sound:
                    pieces.append(np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768)
    x = np.concatenate(pieces)
    return np.interp(np.arange(2 * len(x)) / 2, np.arange(len(x)), x).astype(np.float32)


@torch.no_grad()
def test_a_voice_detector_hears_speech_as_onnxruntime_does() -> None:
    """Its LSTM as our layer, fed by its own encoder; without onnxruntime, beside the kernel of torch."""
    onnx = pytest.importorskip("onnx")
    path = recorded("silero-vad-lstm") / "silero_vad_16k_op15.onnx"
    w = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in onnx.load(str(path)).graph.initializer}
    x = torch.from_numpy(speech(12))
    x = F.pad(x[: len(x) // 512 * 512], (64, 0))
    windows = x.unfold(0, 576, 512)
    u = F.conv1d(F.pad(windows[:, None], (0, 64), "reflect"), w["model.stft.forward_basis_buffer"], stride=128)
    u = (u[:, :129].square() + u[:, 129:].square()).sqrt()
    for i, stride in enumerate((1, 2, 2, 1)):
        name = f"model.encoder.{i}.reparam_conv"
        u = F.relu(F.conv1d(u, w[f"{name}.weight"], w[f"{name}.bias"], stride, 1))
    u = u.squeeze(-1)[None]
    gates = {x: w[f"model.decoder.rnn.{x}"] for x in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    layer = sf.build("lstm", d_model=128)
    for ours, theirs in zip(("x_proj", "h_proj"), ("ih", "hh"), strict=True):
        layer.get_parameter(f"{ours}.weight").copy_(gates[f"weight_{theirs}"])
        layer.get_parameter(f"{ours}.bias").copy_(gates[f"bias_{theirs}"])
    layer.out_proj.weight.copy_(torch.eye(128))
    want, probabilities = silero(path, windows, u, gates)
    assert u.shape[1] > 100
    state, got = layer.init_state(1), []
    for t in range(u.shape[1]):
        y, state = layer.step(u[:, t], state)
        got.append(y)
    for how, y in (("step by step", torch.stack(got, 1)), ("at once", layer(u))):
        assert float((y[0] - want).abs().max()) < 2e-5, how
        logit = F.conv1d(F.relu(y.mT), w["model.decoder.decoder.2.weight"], w["model.decoder.decoder.2.bias"])
        if probabilities is not None:
            assert float((torch.sigmoid(logit).flatten() - probabilities).abs().max()) < 2e-5, how
        assert float(torch.sigmoid(logit).max()) > 0.9, "it hears nobody"


def silero(path: Path, windows: Tensor, features: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """h of each window, and the probability of speech: the file in onnxruntime, or torch's own LSTM alone."""
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError:
        lstm = nn.LSTM(128, 128, batch_first=True)
        lstm.load_state_dict({f"{name}_l0": x for name, x in gates.items()})
        return lstm(features)[0][0], None
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state, h, found = np.zeros((2, 1, 128), np.float32), [], []
    for window in windows.numpy():
        feed = {"input": window[None], "state": state, "sr": np.array(16000, np.int64)}
        p, state = session.run(None, feed)
        h.append(torch.from_numpy(state[0, 0].copy()))
        found.append(float(p.squeeze()))
    return torch.stack(h), torch.tensor(found)


# -- the formats --------------------------------------------------------------------------------------------------


def test_a_format_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins as it says is given to it before anything else is asked; what no format takes names them all."""
    assert list(FORMATS) == ["llama2.c", "rwkv.cpp", "RWKV-7 .pth"]
    (tmp_path / "new").write_bytes(b"NEW!" + bytes(40))
    with pytest.raises(sf.StateformError, match=r"expected a llama2\.c, rwkv\.cpp or RWKV-7 \.pth file"):
        open_file(tmp_path / "new")
    monkeypatch.setitem(FORMATS, "new", FORMATS["llama2.c"])  # and so it is gone afterwards
    model = sf.LanguageModel("linear", d_model=8, vocab_size=16)
    reads("new", begins=lambda head: head[:4] == b"NEW!")(lambda file: model)
    assert open_file(tmp_path / "new") is model


def test_the_names_of_the_first_version() -> None:
    from stateform.hub.plain import open_file as former

    assert former is open_file is sf.hub.plain.open_file
    assert sf.hub.adapters.attention is importlib.import_module("stateform.hub.families.softmax")
    assert sf.hub.Score is sf.hub.TextScore
    with pytest.raises(AttributeError, match="has no attribute 'plane'"):
        _ = sf.hub.plane
