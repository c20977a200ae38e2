"""Models around any layer: patterns, continuing, packing, generation, weights in a folder, the command, the example."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import stateform as sf
from stateform.architectures import REGISTRY, accepted
from stateform.layer import Convolved
from stateform.models import continue_text, decode, encode, expand
from stateform.models.generation import Sampler
from tests.program import program

ROOT = Path(__file__).parents[2]
V, D = 29, 16
HYBRID = "gated_deltanet*2 mamba2 softmax"
CLOSE = 1e-12
SAVED = {"config.json", "model.safetensors", "modeling_stateform.py"}


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """A StateformError of one line that holds all the words."""
    with pytest.raises(sf.StateformError) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def small(name: str) -> dict[str, int]:
    """Options that keep a layer small."""
    known = accepted(REGISTRY[name].cls)
    return {k: v for k, v in {"n_heads": 2, "d_state": 8}.items() if k in known}


def model(pattern: str = HYBRID, seed: int = 0, **settings: Any) -> Any:
    """A small language model in float64, its outputs far from equal."""
    torch.manual_seed(seed)
    made = sf.LanguageModel(pattern, **{"d_model": D, "vocab_size": V, **settings}).double().eval()
    with torch.no_grad():
        made.embedding.weight.mul_(30)
    return made


def ids(*shape: int, seed: int = 1, below: int = V) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, scale: float = CLOSE) -> bool:
    a, b = (x.detach().clamp_min(torch.finfo(x.dtype).min) if x.is_floating_point() else x for x in (a, b))  # -inf
    return a.shape == b.shape and bool((a - b).abs().max() <= scale * max(1.0, float(b.abs().max())))


# -- patterns and configurations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "n_layers", "layers"),
    [
        ("mamba2*3 softmax", None, ["mamba2"] * 3 + ["softmax"]),
        ("mamba2*3 softmax", 6, ["mamba2"] * 3 + ["softmax"] + ["mamba2"] * 2),
        (" softmax ", 2, ["softmax", "softmax"]),
        ("lru * 2  s5", 1, ["lru"]),
        ("mamba2(d_state=32, expand=1)*2 lru", None, ["mamba2(d_state=32, expand=1)"] * 2 + ["lru"]),
        ("softmax(positions='none') lru", None, ["softmax(positions='none')", "lru"]),
    ],
)
def test_a_pattern_is_cycled(pattern: str, n_layers: int | None, layers: list[str]) -> None:
    assert expand(pattern, n_layers) == layers


PATTERNS: dict[str, tuple[str, ...]] = {
    "": ("the pattern is empty", "mamba2(d_state=32)*3 softmax"),
    "mamba2 sotfmax": ("unknown layer 'sotfmax'", "did you mean", "softmax"),
    "mamba2*0 softmax": ("mamba2*0", "1 or more"),
    "mamba2*x": ("mamba2*x", "1 or more"),
    "mamba2*-1": ("mamba2*-1", "1 or more"),
    "mamba2*1.5": ("mamba2*1.5", "1 or more"),
    "mamba2*": ("cannot read 'mamba2*'",),
    "*3": ("cannot read '*3'",),
    "mamba2(d_state=32": ("cannot read 'mamba2(d_state=32'",),
    "mamba2(d_state=32)softmax": ("cannot read",),
    "mamba2(d_state=yes)": ("cannot read 'mamba2(d_state=yes)'",),
    "mamba2(d_stat=32)": ("mamba2(d_stat=32)", "no option 'd_stat'", "did you mean d_state"),
    "mamba2(d_state=0)": ("mamba2(d_state=0)", "d_state is 0"),
    "softmax(n_heads=5)": ("softmax(n_heads=5)", "not divisible by n_heads = 5"),
    "lru*10001": ("lru*10001", "10,000 layers at most"),
    "lru*9999 softmax*2": ("softmax*2", "10,000 layers at most"),
    "lru*" + "9" * 5000: ("lru*999", "10,000 layers at most"),
    "lru(x=" + "[" * 3000 + ")": ("cannot read",),
    "mamba2(d_state=" + "1" * 40 + ")": ("d_state is 111", "at most"),
    "layers.py:Mine": ("names 'layers.py:Mine'", "registered layer", "@sf.register"),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with refused(*PATTERNS[pattern]):
        sf.ModelConfig(pattern, d_model=D)


def test_a_pattern_is_refused_before_anything_large_is_made() -> None:
    with refused("n_heads = 7"):
        sf.LanguageModel("softmax softmax(n_heads=7)", d_model=2**20, vocab_size=2**40)  # tens of terabytes


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "width": ({"d_model": 0}, ("d_model is 0", "1 or more")),
    "depth": ({"n_layers": 0}, ("n_layers is 0", "1 or more")),
    "half a layer": ({"n_layers": 1.5}, ("n_layers is 1.5", "a whole number")),
    "vocabulary": ({"vocab_size": -1}, ("vocab_size is -1",)),
    "bytes": ({"vocab_size": 100, "tokenizer": "bytes"}, ("vocab_size is 100", "needs 256")),
    "tokenizer": ({"tokenizer": "words"}, ("tokenizer is 'words'", "'bytes'")),
    "dropout": ({"dropout": 1.0}, ("dropout is 1.0", "below 1")),
    "dropout in words": ({"dropout": "much"}, ("dropout is 'much'", "a number")),
    "mlp": ({"mlp_ratio": 0}, ("mlp_ratio is 0", "above 0")),
    "lambda": ({"lambda_skip": math.inf}, ("lambda_skip is inf", "finite")),
    "positions": ({"max_positions": 0}, ("max_positions is 0",)),
    "setting": ({"n_layer": 3}, ("no setting 'n_layer'", "did you mean n_layers")),
    "option": ({"options": {"nheads": 3}}, ("has an option 'nheads'", "n_heads")),
    "option of another kind": ({"options": {"n_heads": [3]}}, ("the option n_heads is a list",)),
    "options": ({"options": 3}, ("options is 3", "a dict")),
    "option that does not fit": ({"n_heads": 5}, ("the layer gated_deltanet of the pattern", "n_heads = 5")),
    "classes": ({"n_classes": 3}, ("n_classes is a setting of classifiers",)),
    "forty digits": ({"d_model": 10**39}, ("d_model is 1000", "9e+15 at most")),
    "forty digits below zero": ({"n_classes": -(10**39)}, ("n_classes is -1000",)),
    "ten million layers": ({"n_layers": 10**7}, ("n_layers is 10000000", "10,000 at most")),
    "an endless MLP": ({"mlp_ratio": 1e308}, ("mlp_ratio is 1e+308", "too large")),
    "a wide MLP": ({"mlp_ratio": 1e9}, ("3.07e+12 weights", "1e+12 at most", "mlp_ratio")),
    "a wide model": ({"d_model": 2**22}, ("weights", "1e+12 at most", "d_model")),
    "a model too wide to count": ({"d_model": 2**30}, ("the layer", "too large")),
    "a large vocabulary": ({"vocab_size": 2**50}, ("weights", "1e+12 at most", "vocab_size")),
    "many positions": ({"max_positions": 2**50}, ("weights", "1e+12 at most", "max_positions")),
    "more than there is memory": ({"vocab_size": 2**35}, ("GB may be used", "make it smaller")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_used_is_refused(name: str) -> None:
    settings, words = CONFIGS[name]
    with refused(*words):
        sf.LanguageModel(HYBRID, **{"d_model": D, "vocab_size": V, **settings})


def test_a_vocabulary_and_classes_are_needed() -> None:
    with refused("needs vocab_size"):
        sf.LanguageModel("lru")
    with refused("needs n_classes"):
        sf.Classifier("lru", vocab_size=3)
    for both in ({}, {"vocab_size": 3, "d_input": 2}):
        with refused("vocab_size", "d_input", "one of them"):
            sf.Classifier("lru", n_classes=2, **both)


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": V},
        {"vocab_size": V, "tie_embeddings": False, "mlp_ratio": None},
        {"vocab_size": V, "max_positions": 9, "lambda_skip": 0.5, "conv": 4, "n_layers": 6, "n_heads": 2},
        {"d_input": 3, "n_classes": 5, "mlp_ratio": 0.7},
        {"vocab_size": V, "n_classes": 5, "pooling": "last"},
    ],
)
def test_the_number_of_weights_is_known_before_they_are_made(settings: dict[str, Any]) -> None:
    kind = sf.Classifier if "n_classes" in settings else sf.LanguageModel
    made = kind(HYBRID, d_model=D, **settings)
    assert made.config.n_parameters == sum(p.numel() for p in made.parameters())


def test_options_go_to_the_layers_that_take_them() -> None:
    made = sf.LanguageModel("softmax lru softmax(n_heads=8)", d_model=D, vocab_size=V, n_heads=2)
    assert [b.mixer.config.get("n_heads") for b in made.blocks] == [2, None, 8]
    assert made.config.options == {"n_heads": 2}


def test_a_configuration_is_written_and_read() -> None:
    config = sf.ModelConfig(HYBRID, d_model=D, n_layers=5, tokenizer="bytes", lambda_skip=0.5, options={"n_heads": 2})
    assert config.vocab_size == 256
    assert sf.ModelConfig.from_json(config.to_json()) == config
    assert sf.ModelConfig.from_dict(config.to_dict()) == config
    for change, words in [
        ({"d_modle": 3}, ("no setting 'd_modle'", "did you mean d_model")),
        ({"model_type": "llama"}, ("model_type is 'llama'", "'stateform'")),
        ({"format": 2}, ("format is 2", "reads 1")),
        ({"d_model": "x"}, ("d_model is 'x'",)),
    ]:
        with refused(*words):
            sf.ModelConfig.from_dict({**config.to_dict(), **change})
    with refused("no pattern"):
        sf.ModelConfig.from_dict({"d_model": 3})
    with refused("no JSON"):
        sf.ModelConfig.from_json("{")


# -- one function, however it is computed -------------------------------------------------------------------------


def by_hand(m: Any, tokens: Tensor) -> Tensor:
    """The logits from the model's parameters and its layers, written out."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + m.config.norm_eps).sqrt() * weight

    p = dict(m.named_parameters())
    x = p["embedding.weight"][tokens] + p["positions.weight"][: tokens.shape[1]]
    for i, block in enumerate(m.blocks):
        name = f"blocks.{i}."
        x = p[name + "lambda_skip"] * x + block.mixer(rms(x, p[name + "mixer_norm.weight"]))
        gate, z = (rms(x, p[name + "mlp_norm.weight"]) @ p[name + "mlp.in_proj.weight"].T).chunk(2, -1)
        x = x + (gate / (1 + (-gate).exp()) * z) @ p[name + "mlp.out_proj.weight"].T
    return rms(x, p["norm.weight"]) @ (p["embedding.weight"] if m.head is None else p["head.weight"]).T


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_what_it_says(tied: bool) -> None:
    m = model(lambda_skip=0.7, max_positions=20, tie_embeddings=tied)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert close(m(ids(2, 11)).logits, by_hand(m, ids(2, 11)))


def test_the_loss_is_that_of_the_next_token() -> None:
    m, x = model(), ids(2, 9)
    out = m(x, labels=x)
    want = torch.stack([-F.log_softmax(out.logits, -1)[b, t, x[b, t + 1]] for b in range(2) for t in range(8)]).mean()
    assert close(out.loss, want)
    labels = x.clone()
    labels[0, 3:] = -100
    first = [(0, 0), (0, 1), *((1, t) for t in range(8))]
    want = torch.stack([-F.log_softmax(out.logits, -1)[b, t, x[b, t + 1]] for b, t in first]).mean()
    assert close(m(x, labels=labels).loss, want)
    assert m(x, labels=torch.full_like(x, -100)).loss == 0
    alone = [m(x[:1, :4], labels=x[:1, :4]).loss * 3, m(x[:1, 4:], labels=x[:1, 4:]).loss * 4]
    packed = m(x[:1], labels=x[:1], cu_seqlens=torch.tensor([0, 0, 4, 9, 9])).loss
    assert close(packed, sum(alone) / 7)
    mask = torch.ones(2, 9)
    mask[1, :5] = 0
    alone = [m(x[:1], labels=x[:1]).loss * 8, m(x[1:, 5:], labels=x[1:, 5:]).loss * 3]
    assert close(m(x, mask, labels=x).loss, sum(alone) / 11)


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.drawn(0.4)
def test_pieces_are_the_whole_for_every_layer(name: str) -> None:
    m, x = model(f"{name} lru {name}", max_positions=30, **small(name)), ids(3, 17)
    with torch.no_grad():
        whole = m(x, return_state=True)
        state, parts = None, []
        for low, high in [(0, 1), (1, 9), (9, 9), (9, 10), (10, 17)]:
            out = m(x[:, low:high], initial_state=state, return_state=True)
            parts.append(out.logits)
            state = out.state
        assert close(torch.cat(parts, 1), whole.logits, 1e-9)
        assert set(state) == set(whole.state) == set(m.init_state(3))
        for key in state:
            assert close(state[key], whole.state[key], 1e-9), key
        begun = m(x, initial_state=m.init_state(3)).logits
        assert close(begun, whole.logits, 1e-9)
        packed = m(x[:2].reshape(1, -1), cu_seqlens=torch.tensor([0, 17, 20, 34])).logits[0]
        assert close(packed[:17], whole.logits[0], 1e-9)
        assert close(packed[20:], m(x[1:2, 3:]).logits[0], 1e-9)
        mask = torch.ones(3, 17)
        mask[0, :6], mask[1, 8:] = 0, 0
        padded = m(torch.where(mask.bool(), x, -7), mask).logits
        assert close(padded[0, 6:], m(x[:1, 6:]).logits[0], 1e-9)
        assert close(padded[1, :8], whole.logits[1, :8], 1e-9)


def test_forms_agree() -> None:
    m, x = model("gla deltanet"), ids(2, 70)
    want = m(x, form="recurrent").logits
    for form in ("chunkwise", "matrix", "auto"):
        assert close(m(x, form=form).logits, want, 1e-10), form
    with refused("'convolution' does not exist"):
        m(x, form="convolution")
    with refused("unknown form 'chunk'"):
        m(x, form="chunk")


def test_a_state_is_selected_repeated_saved_and_cast(tmp_path: Path) -> None:
    m, x = model(max_positions=30), ids(3, 8)
    state = m(x, return_state=True).state
    more = ids(4, 3)
    rows = [2, 0, 1, 2]
    whole = m(torch.cat([x[rows], more], 1)).logits[:, 8:]
    assert close(m(more, initial_state=state.select(rows)).logits, whole)
    twice = m(more[:2], initial_state=state.select([1]).repeat(2)).logits
    assert close(twice, m(torch.cat([x[[1, 1]], more[:2]], 1)).logits[:, 8:])
    state.detach().save(tmp_path / "state.safetensors")
    again = sf.State.load(tmp_path / "state.safetensors")
    assert torch.equal(m(more[:3], initial_state=again).logits, m(more[:3], initial_state=state).logits)
    assert state.nbytes == sum(t.numel() * t.element_size() for t in state.tensors.values())
    half = state.to(torch.bfloat16)
    assert half["0.S"].dtype == torch.float32
    assert half["3.keys"].dtype == torch.bfloat16
    with refused("belongs to LanguageModel-", "this model is LanguageModel-"):
        model("lru")(x, initial_state=state)
    with refused("3 rows, the input 2"):
        m(x[:2], initial_state=state)
    with refused("a dict; expected the State of this model"):
        m(x, initial_state={})


def test_gradients_reach_every_parameter() -> None:
    for pattern in (HYBRID, "rwkv7*2"):
        m, x = model(pattern, lambda_skip=1.0, max_positions=12, tie_embeddings=False).train(), ids(2, 12)
        with torch.no_grad():  # none is 0, as factors of a product may be at first
            for p in m.parameters():
                p.add_(0.1 * torch.randn_like(p))
        m(x, labels=x).loss.backward()
        still = [n for n, p in m.named_parameters() if p.grad is None or not bool(p.grad.any())]
        # RWKV-7's first layer hands its values on; how much of them is mixed in is for the layers after it to say.
        assert [n for n in still if not n.startswith("blocks.0.mixer.residual")] == []


def test_truncated_backpropagation_goes_on_from_a_detached_state() -> None:
    m, x = model(), ids(2, 12)
    state = m(x[:, :6], return_state=True).state
    m(x[:, 6:], labels=x[:, 6:], initial_state=state.detach()).loss.backward()
    whole = {n: p.grad.clone() for n, p in m.named_parameters()}
    m.zero_grad()
    m(x[:, 6:], labels=x[:, 6:], initial_state=state).loss.backward()
    assert any(not close(p.grad, whole[n], 1e-6) for n, p in m.named_parameters())


# -- activation checkpointing ---------------------------------------------------------------------------------------


def gradients(m: Any, run: Callable[[Any], Tensor], on: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """The loss and the gradients of a run, and how many numbers are kept for the backward pass."""
    (m.gradient_checkpointing_enable if on else m.gradient_checkpointing_disable)()
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    m.zero_grad()
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = run(m)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}, sum(kept)


def going_on(m: Any) -> Tensor:
    """A loss whose gradient goes through the states between two stretches, one of them padded."""
    mask = torch.ones(2, 9)
    mask[1, 5:] = 0
    first = m(ids(2, 9), mask, return_state=True)
    second = m(ids(2, 7), initial_state=first.state, return_state=True)
    states = [s.abs().square().mean() for s in second.state.tensors.values() if s.requires_grad]
    return first.logits.square().mean() + second.logits.square().mean() + torch.stack(states).sum()


CHECKPOINTED: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "trained": (HYBRID, lambda m: m(ids(2, 40), labels=ids(2, 40)).loss),
    "states": (HYBRID, going_on),
    "packed": ("mlstm softmax", lambda m: m(ids(1, 20), labels=ids(1, 20), cu_seqlens=torch.tensor([0, 7, 20])).loss),
    "handed on": ("rwkv7*3", going_on),
    "nonlinear": ("lstm slstm", going_on),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    pattern, run = CHECKPOINTED[name]
    m = model(pattern, dropout=0.2, lambda_skip=1.0).train()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.1 * torch.randn_like(p))
    loss, want, size = gradients(m, run, on=False)
    again, got, less = gradients(m, run, on=True)
    assert torch.equal(again, loss)
    assert want.keys() == got.keys()
    for n, g in want.items():
        assert close(got[n], g), n
    assert less < size / 2
    assert gradients(m, run, on=False)[2] == size


def test_a_checkpointed_classifier_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    m = sf.Classifier("mamba2 softmax", d_model=D, d_input=3, n_classes=4).double()
    x = torch.randn(2, 30, 3, dtype=torch.float64)

    def run(m: Any) -> Tensor:
        loss: Tensor = m(x, labels=torch.tensor([1, 3])).loss
        return loss

    loss, want, size = gradients(m, run, on=False)
    again, got, less = gradients(m, run, on=True)
    assert torch.equal(again, loss) and less < size / 2
    assert all(close(got[n], g) for n, g in want.items())


def test_checkpointing_does_nothing_where_there_are_no_gradients() -> None:
    m, x = model(), ids(2, 9)
    want = m.generate(x, max_new_tokens=4)
    m.gradient_checkpointing_enable({"preserve_rng_state": False})

    def called(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be kept")

    for block in m.blocks:
        block._gradient_checkpointing_func = called
    assert torch.equal(m.generate(x, max_new_tokens=4), want)
    with refused("use_reentrant is True", "through states"):
        m.gradient_checkpointing_enable({"use_reentrant": True})


def test_parameter_groups_hold_every_parameter_once() -> None:
    m = model(lambda_skip=1.0, max_positions=9, tie_embeddings=False)
    decayed, plain = m.parameter_groups(0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(p): n for n, p in m.named_parameters()}
    assert sorted(names[id(p)] for g in (decayed, plain) for p in g["params"]) == sorted(names.values())
    without = {names[id(p)] for p in plain["params"]}
    for word in ("embedding.weight", "positions.weight", "norm.weight", "lambda_skip"):
        assert any(word in n for n in without), word
    for word in ("A_log", "dt_bias", ".D", "conv"):
        assert all(n in without for n in names.values() if word in n), word
    assert all(names[id(p)].endswith(".weight") and p.ndim == 2 for p in decayed["params"])
    torch.optim.AdamW(m.parameter_groups())


def test_initial_values_are_those_of_the_layers_but_for_the_outputs() -> None:
    torch.manual_seed(3)
    made = sf.LanguageModel("mamba2 gla", d_model=64, vocab_size=1000, n_layers=8)
    torch.manual_seed(3)
    alone = sf.build("mamba2", d_model=64)
    scaled = ("out_proj.weight",)
    assert abs(float(made.embedding.weight.detach().std()) - 0.02) < 1e-3
    for name, p in made.blocks[0].mixer.named_parameters():
        other = dict(alone.named_parameters())[name]
        assert p.shape == other.shape
        if name in scaled:
            assert float(p.detach().std() / other.detach().std()) == pytest.approx(1 / 4, rel=0.05)  # 1 / sqrt(2 * 8)
        elif p.ndim == 1 and not bool(other.eq(other[0]).all()):
            assert float(p.detach().mean()) == pytest.approx(float(other.detach().mean()), rel=0.5), name
    logits = made(ids(4, 50, below=1000)).logits
    assert float(logits.detach().std()) < 0.5


def test_half_precision_copies_and_compiles() -> None:
    m, x = model().float(), ids(2, 20)
    want = m(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        out = m(x, labels=x, return_state=True)
    assert out.state["0.S"].dtype == torch.float32
    assert out.loss.dtype == torch.float32
    assert close(out.logits.float(), want, 0.1)
    out.loss.backward()
    other = copy.deepcopy(m)
    assert torch.equal(other(x).logits, want)
    assert torch.equal(other(x[:, 5:], initial_state=m(x[:, :5], return_state=True).state).logits,
                       m(x[:, 5:], initial_state=m(x[:, :5], return_state=True).state).logits)  # fmt: skip
    half = copy.deepcopy(m).bfloat16()
    assert half(x, return_state=True).state["0.S"].dtype == torch.float32
    assert half.generate(x, max_new_tokens=3).shape == (2, 23)
    compiled = torch.compile(m, backend="eager")
    with torch.no_grad():
        assert close(compiled(x).logits, want, 1e-5)


def test_rows_that_are_not_there() -> None:
    m = model()
    assert m(ids(0, 5)).logits.shape == (0, 5, V)
    out = m(ids(2, 0), labels=ids(2, 0), return_state=True)
    assert out.logits.shape == (2, 0, V)
    assert out.loss == 0


CALLS: dict[str, tuple[Callable[[Any], object], tuple[str, ...]]] = {
    "floats": (lambda m: m(torch.rand(2, 3)), ("torch.float32", "token ids [B,T]")),
    "no time": (lambda m: m(ids(3)), ("of shape [3]", "[B,T]")),
    "a list": (lambda m: m([[1, 2]]), ("is a list", "token ids")),
    "beyond": (lambda m: m(torch.tensor([[1, V]])), (f"holds the id {V}", f"0..{V - 1}")),
    "below": (lambda m: m(torch.tensor([[1, -1]])), ("holds the id -1",)),
    "mask": (lambda m: m(ids(2, 3), torch.ones(2, 4)), ("attention_mask is of shape [2, 4]", "[2, 3]")),
    "hole": (lambda m: m(ids(1, 3), torch.tensor([[1, 0, 1]])), ("a hole in row 0",)),
    "both": (
        lambda m: m(ids(1, 3), torch.ones(1, 3), cu_seqlens=torch.tensor([0, 3])),
        ("attention_mask or cu_seqlens",),
    ),
    "ends": (lambda m: m(ids(1, 3), cu_seqlens=torch.tensor([0, 2])), ("cu_seqlens ends at 2",)),
    "labels of another shape": (lambda m: m(ids(1, 3), labels=ids(1, 2)), ("labels is of shape [1, 2]", "shifts")),
    "labels beyond": (lambda m: m(ids(1, 3), labels=ids(1, 3) + V), ("labels holds the id",)),
    "labels in floats": (lambda m: m(ids(1, 3), labels=torch.rand(1, 3)), ("labels is torch.float32", "int64")),
    "too long": (lambda m: m(ids(1, 13)), ("reaches position 12", "max_positions = 12")),
    "too long, going on": (
        lambda m: m(ids(1, 8), initial_state=m(ids(1, 5), return_state=True).state),
        ("reaches position 12",),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_input_that_cannot_be_used_is_refused(name: str) -> None:
    call, words = CALLS[name]
    with refused(*words):
        call(model(max_positions=12))


class Plain(nn.Module):
    """A third-party layer that knows nothing of states."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


class Summing(Plain):
    """And one that has a state, and nothing else."""

    def forward(self, x: Tensor, initial_state: sf.State | None = None, return_state: bool = False) -> Any:
        h = x.cumsum(1) if initial_state is None else initial_state["h"][:, None] + x.cumsum(1)
        y = self.proj(h) / 9
        return (y, sf.State({"h": h[:, -1]})) if return_state else y


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateform.architectures.registry.REGISTRY", known := dict(REGISTRY))
    for name, cls in (("plain_user", Plain), ("summing_user", Summing)):
        sf.register(name)(cls)
    assert "plain_user" in known


@pytest.mark.usefixtures("registered")
def test_layers_of_others_go_as_far_as_they_can() -> None:
    m, x = model("summing_user lru"), ids(2, 6)
    assert torch.equal(m.generate(x, max_new_tokens=5), m.generate(x, max_new_tokens=5, use_cache=False))
    with refused("summing_user does not take attention_mask"):
        m(x, torch.ones(2, 6))
    m = model("plain_user lru")
    m(x, labels=x).loss.backward()
    with refused("plain_user does not take return_state"):
        m.generate(x)
    assert m.generate(x, max_new_tokens=2, use_cache=False).shape == (2, 8)
    with refused("plain_user has no init_state"):
        m.init_state(1)


# -- classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("real", [False, True])
def test_a_classifier_pools_over_each_sequence(pooling: str, real: bool) -> None:
    torch.manual_seed(0)
    settings = {"d_input": 3} if real else {"vocab_size": V}
    m = sf.Classifier("mamba2 softmax", d_model=D, n_classes=4, pooling=pooling, **settings).double()
    x = torch.randn(3, 10, 3).double() if real else ids(3, 10)
    labels = torch.tensor([0, 3, 1])
    whole = m(x, labels=labels, return_state=True)
    hidden, _ = m.hidden(x)
    want = m.head(hidden.mean(1) if pooling == "mean" else hidden[:, -1])
    assert close(whole.logits, want)
    assert close(whole.loss, F.cross_entropy(want, labels))
    keep = torch.arange(10) < torch.tensor([[4], [10], [7]])
    ends = torch.cat([m(x[i : i + 1, :n]).logits for i, n in enumerate((4, 10, 7))])
    assert close(m.logits(hidden), want) and close(m.logits(hidden, keep), ends)
    mask = torch.ones(3, 10)
    mask[0, 4:], mask[1, :7] = 0, 0
    spoiled = x.masked_fill(mask[..., None] == 0, math.nan) if real else torch.where(mask.bool(), x, 999)
    alone = [m(x[:1, :4]), m(x[1:2, 7:]), m(x[2:])]
    assert close(m(spoiled, mask).logits, torch.cat([a.logits for a in alone]))
    row = torch.cat([x[0, :4], x[1, 7:], x[2]])[None]
    packed = m(row, cu_seqlens=torch.tensor([0, 4, 7, 17]), labels=labels)
    assert close(packed.logits, torch.cat([a.logits for a in alone]))
    state = m(x[:, :4], return_state=True).state
    assert set(state) == set(m.init_state(3))
    nothing = m(x[:, 4:4], initial_state=state, return_state=True)
    assert close(nothing.logits, m(x[:, :4]).logits)
    state = nothing.state
    assert close(m(x[:, 4:], initial_state=state).logits, whole.logits)
    with refused("labels is torch.int64 of shape [2]", "[3]"):
        m(x, labels=labels[:2])
    with refused("labels holds the class 4", "0..3"):
        m(x, labels=labels + 1)
    with refused("expected numbers [B,T,3]" if real else "expected token ids [B,T]"):
        m(x[0])


# -- generation ---------------------------------------------------------------------------------------------------


def greedy_by_hand(m: Any, prompt: Tensor, steps: int) -> list[int]:
    tokens = prompt.tolist()
    for _ in range(steps):
        tokens.append(int(m(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens


def test_numbers_of_another_dtype_are_refused() -> None:
    model = sf.Classifier("s4d", d_model=8, d_input=2, n_classes=3)
    with refused("the input is torch.float64, the model torch.float32; cast one with"):
        model(torch.zeros(1, 4, 2, dtype=torch.float64))
    assert model.double()(torch.zeros(1, 4, 2, dtype=torch.float64)).logits.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which casts all but float64
        for module, x in ((model.float(), torch.zeros(1, 4, 2)), (model.blocks[0].mixer, torch.zeros(1, 4, 8))):
            with refused("torch.float64", "torch.float32", "cast one with"):
                module(x.double())  # type: ignore[operator]


def test_a_classifier_without_pooling_answers_at_every_token() -> None:
    torch.manual_seed(0)
    m = sf.Classifier("mamba2 softmax", d_model=D, d_input=2, n_classes=4, pooling="none").double()
    x, labels = torch.randn(2, 9, 2, dtype=torch.float64), torch.randint(4, (2, 9))
    labels[0, :5] = -100
    whole = m(x, labels=labels, return_state=True)
    assert whole.logits.shape == (2, 9, 4) and whole.state is not None and "pooled" not in whole.state.tensors
    expected = torch.nn.functional.cross_entropy(whole.logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(whole.loss, expected)
    start = m(x[:, :4], initial_state=m.init_state(2), return_state=True)
    torch.testing.assert_close(m(x[:, 4:], initial_state=start.state).logits, whole.logits[:, 4:])
    with pytest.raises(sf.StateformError, match=r"expected torch.int64 \[2, 9\], a class for each token"):
        m(x, labels=labels[:, 0])


@pytest.mark.parametrize("name", ["gated_deltanet", "lstm", "rwkv7", "softmax"])
@pytest.mark.drawn(0.4)
def test_a_convolution_before_the_mixer_keeps_the_contract(name: str) -> None:
    report = sf.check(Convolved(sf.build(name, d_model=16), 3))
    assert report.ok, str(report)


def test_a_convolution_before_the_mixer_is_that_of_torch() -> None:
    torch.manual_seed(0)
    m = sf.LanguageModel("linear", d_model=D, vocab_size=9, conv=3).double()
    (mixer,) = (block.mixer for block in m.blocks)
    x = torch.randn(2, 7, D, dtype=torch.float64)
    u = torch.nn.functional.conv1d(x.mT, mixer.conv.weight, padding=2, groups=D)[..., :7].mT
    torch.testing.assert_close(mixer(x), mixer.layer(u))
    with pytest.raises(sf.StateformError, match="conv is 1; expected 2 taps or more"):
        sf.LanguageModel("linear", d_model=D, vocab_size=9, conv=1)


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.drawn(0.4)
def test_the_cache_changes_nothing(name: str) -> None:
    m, x = model(f"{name} short_conv", max_positions=40, **small(name)), ids(2, 9)
    tokens = m.generate(x, max_new_tokens=8)
    assert torch.equal(tokens, m.generate(x, max_new_tokens=8, use_cache=False))
    assert tokens[0].tolist() == greedy_by_hand(m, x[0], 8)
    sampled = m.generate(x, max_new_tokens=8, temperature=2.0, seed=5)
    assert torch.equal(sampled, m.generate(x, max_new_tokens=8, temperature=2.0, seed=5, use_cache=False))
    assert not torch.equal(sampled, tokens)


@pytest.mark.parametrize("pattern", [HYBRID, "sliding_window(window=4) mlstm", "lru*2"])
def test_prompts_of_different_lengths_go_on_as_if_alone(pattern: str) -> None:
    m, x = model(pattern, max_positions=40), ids(4, 10)
    lengths = [10, 3, 1, 6]
    alone = [greedy_by_hand(m, x[i, :n], 8)[n:] for i, n in enumerate(lengths)]
    assert len({tuple(a) for a in alone}) > 1
    steps = torch.arange(10)
    for left in (False, True):
        moved, mask = torch.full_like(x, 999), torch.zeros_like(x)
        for i, n in enumerate(lengths):
            at = steps >= 10 - n if left else steps < n
            moved[i, at], mask[i, at] = x[i, :n], 1
        for options in ({}, {"prefill_chunk": 1}, {"prefill_chunk": 3}, {"use_cache": False}):
            got = m.generate(moved, mask, max_new_tokens=8, **options)
            assert got[:, 10:].tolist() == alone
            assert [got[i, 10 - n : 10].tolist() for i, n in enumerate(lengths)] == [
                x[i, :n].tolist() for i, n in enumerate(lengths)
            ]


def test_a_finite_state_takes_fixed_memory() -> None:
    for pattern, fixed in [("gated_deltanet mamba2 rg_lru", True), (HYBRID, False)]:
        m = model(pattern)
        state, sizes = m(ids(2, 4), return_state=True).state, set()
        for _ in range(6):
            sizes.add(state.nbytes)
            state = m(ids(2, 1), initial_state=state, return_state=True).state
        assert (len(sizes) == 1) == fixed


def test_a_row_ends_at_its_end() -> None:
    m, x = model(), ids(3, 5)
    free = m.generate(x, max_new_tokens=20)[:, 5:]
    end = int(free[0, 3])
    got = m.generate(x, max_new_tokens=20, eos_token_id=end)[:, 5:]
    for row in range(3):
        at = (free[row] == end).nonzero()
        stop = int(at[0]) + 1 if len(at) else 20
        assert got[row, :stop].tolist() == free[row, :stop].tolist()
        assert set(got[row, stop:].tolist()) <= {end}
    assert m.generate(x[:1], max_new_tokens=20, eos_token_id=[end, 1]).shape[1] <= 9
    padded = m.generate(x, max_new_tokens=20, eos_token_id=end, pad_token_id=2)[0, 5:]
    assert set(padded[int((free[0] == end).nonzero()[0]) + 1 :].tolist()) <= {2}


def test_a_prompt_goes_on_from_a_state() -> None:
    m, x = model(max_positions=30), ids(2, 12)
    state = m(x[:, :7], return_state=True).state
    got = m.generate(x[:, 7:], max_new_tokens=5, initial_state=state)
    assert torch.equal(got, m.generate(x, max_new_tokens=5)[:, 7:])


def test_tokens_are_heard_as_they_come() -> None:
    m, x, heard = model(), ids(2, 5), []

    class Streamer:
        def put(self, value: Tensor) -> None:
            heard.append(value)

        def end(self) -> None:
            heard.append(None)

    tokens = m.generate(x, max_new_tokens=4, streamer=Streamer())
    assert torch.equal(heard[0], x)
    assert torch.equal(torch.stack(heard[1:-1], 1), tokens[:, 5:])
    assert heard[-1] is None
    stream = m.stream(x, max_new_tokens=4)
    assert torch.equal(next(stream), tokens[:, 5])
    assert torch.is_grad_enabled()
    assert [t.tolist() for t in stream] == tokens[:, 6:].T.tolist()


def test_ctrl_c_returns_what_there_is() -> None:
    m, x, ended = model(), ids(2, 5), []

    class Interrupts:
        calls = 0

        def put(self, value: Tensor) -> None:
            self.calls += 1
            if self.calls == 4:  # the prompt, two tokens, and now
                raise KeyboardInterrupt

        def end(self) -> None:
            ended.append(True)

    tokens = m.generate(x, max_new_tokens=9, streamer=Interrupts())
    assert torch.equal(tokens, m.generate(x, max_new_tokens=3))
    assert ended


def test_draws_have_the_probabilities_that_they_say() -> None:
    logits = torch.tensor([[2.0, 0.5, 1.0, -1.0, 1.5]]).expand(20_000, -1)

    def seen(**options: Any) -> Tensor:
        drawn = Sampler(generator=torch.Generator().manual_seed(0), **options)(logits)
        return torch.bincount(drawn, minlength=5) / len(drawn)

    def want(keep: list[int], temperature: float = 1.0) -> Tensor:
        p = torch.zeros(5)
        p[keep] = (logits[0, keep] / temperature).softmax(0)
        return p

    for options, expected in [
        ({"temperature": 1.0}, want([0, 1, 2, 3, 4])),
        ({"temperature": 0.5}, want([0, 1, 2, 3, 4], 0.5)),
        ({"top_k": 2}, want([0, 4])),
        ({"top_k": 99}, want([0, 1, 2, 3, 4])),
        ({"top_p": 0.71}, want([0, 4])),  # the three likeliest have 0.445, 0.270 and 0.164
        ({"top_p": 0.72}, want([0, 4, 2])),
        ({"top_p": 1e-9}, want([0])),
        ({"top_k": 3, "temperature": 3.0}, want([0, 4, 2], 3.0)),
    ]:
        got = seen(**options)
        assert torch.equal(got > 0, expected > 0), options
        assert float((got - expected).abs().max()) < 0.02, options
    assert bool((Sampler()(logits) == 0).all())


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "temperature 0": ({"temperature": 0}, ("temperature is 0", "above 0")),
    "temperature below 0": ({"temperature": -1.0}, ("temperature is -1.0",)),
    "temperature nan": ({"temperature": math.nan}, ("temperature is nan",)),
    "temperature inf": ({"temperature": math.inf}, ("temperature is inf",)),
    "temperature in words": ({"temperature": "hot"}, ("temperature is 'hot'",)),
    "top_p 0": ({"top_p": 0.0}, ("top_p is 0.0", "up to 1")),
    "top_p above 1": ({"top_p": 1.5}, ("top_p is 1.5",)),
    "top_p nan": ({"top_p": math.nan}, ("top_p is nan",)),
    "top_k 0": ({"top_k": 0}, ("top_k is 0", "1 or more")),
    "half a top_k": ({"top_k": 1.5}, ("top_k is 1.5",)),
    "no tokens": ({"max_new_tokens": 0}, ("max_new_tokens is 0", "1 or more")),
    "half a token": ({"max_new_tokens": 2.5}, ("max_new_tokens is 2.5",)),
    "chunk": ({"prefill_chunk": 0}, ("prefill_chunk is 0",)),
    "seeds": ({"seed": 1, "generator": torch.Generator()}, ("seed or generator",)),
    "seed": ({"seed": 1.5}, ("seed is 1.5",)),
    "end": ({"eos_token_id": V}, (f"eos_token_id is {V}", f"0..{V - 1}")),
    "padding": ({"pad_token_id": "x"}, ("pad_token_id is 'x'",)),
    "too many": ({"max_new_tokens": 9}, ("max_positions = 12", "max_new_tokens = 8 or fewer")),
    "empty": ({"input_ids": ids(1, 0)}, ("the prompt is empty",)),
    "no rows": ({"input_ids": ids(0, 3)}, ("there is no prompt",)),
    "one row empty": (
        {"input_ids": ids(2, 2), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
        ("the prompt in row 1 is empty",),
    ),
    "floats": ({"input_ids": torch.rand(1, 3)}, ("torch.float32", "token ids")),
    "beyond": ({"input_ids": torch.tensor([[V]])}, (f"the id {V}",)),
    "state": ({"initial_state": sf.State({"S": torch.ones(1, 2)})}, ("belongs to a bare system",)),
}


@pytest.mark.parametrize("name", BAD)
def test_generation_that_cannot_be_is_refused_before_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, words = BAD[name]
    m = model(max_positions=12)

    def worked(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(m, "hidden", worked)
    for call in (m.generate, m.stream):
        with refused(*words):
            call(**{"input_ids": ids(1, 5), **options})


def test_generation_says_what_is_wrong_with_the_model() -> None:
    m = model(max_positions=12)
    assert m.generate(ids(1, 5), max_new_tokens=8).shape == (1, 13)  # the last token is not read again
    for options in ({"initial_state": m.init_state(1)}, {"prefill_chunk": 2}):
        with refused("use_cache=False", "initial_state and prefill_chunk"):
            m.generate(ids(1, 5), max_new_tokens=2, use_cache=False, **options)
    dropping = sf.LanguageModel("lru", d_model=D, vocab_size=V, dropout=0.5)
    with refused("training mode", "model.eval()"):
        dropping.generate(ids(1, 5))
    assert torch.equal(dropping.eval().generate(ids(1, 5)), dropping.generate(ids(1, 5)))
    with torch.no_grad():
        m.norm.weight.fill_(math.nan)
    with refused("the model's logits holds nan"):
        m.generate(ids(1, 5), max_new_tokens=2)


def test_text_is_bytes() -> None:
    tokens, mask = encode(["grün", b"a\xff"])
    assert tokens[0].tolist() == list("grün".encode())
    assert tokens[1, mask[1].bool()].tolist() == [97, 255]
    assert decode(tokens[0]) == "grün"
    assert decode([97, 300, 98]) == "ab"
    m = sf.LanguageModel("lru", d_model=D, tokenizer="bytes").eval()
    pieces = list(continue_text(m, "grün", max_new_tokens=30, temperature=5.0, seed=0))
    whole = m.generate(encode("grün")[0], max_new_tokens=30, temperature=5.0, seed=0)[0, 5:]
    assert "".join(pieces) == decode(whole)
    with refused("the prompt is empty"):
        continue_text(m, "")
    with refused("tokenizer is None", "expected 'bytes'"):
        continue_text(model(), "a")


def test_characters_of_several_bytes_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    m = sf.LanguageModel("lru", d_model=D, tokenizer="bytes")
    data = "aü€".encode() + b"\xe2\x82"
    monkeypatch.setattr(m, "stream", lambda *_, **__: iter(torch.tensor([[i] for i in data])))
    assert list(continue_text(m, "x")) == ["a", "ü", "€", "\ufffd"]


# -- in a folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sf.names())
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    m, x = model(name, lambda_skip=0.5, **small(name)), ids(2, 7)
    m.save_pretrained(tmp_path / "new" / "model")
    again = sf.LanguageModel.from_pretrained(tmp_path / "new" / "model")
    assert again.config == m.config
    assert not again.training
    assert torch.equal(again(x).logits, m(x).logits)
    state = m(x, return_state=True).state
    assert torch.equal(again(x, initial_state=state).logits, m(x, initial_state=state).logits)
    assert {p.name for p in (tmp_path / "new" / "model").iterdir()} == SAVED


def test_a_classifier_and_its_dtype_are_loaded(tmp_path: Path) -> None:
    m = sf.Classifier("lru", d_model=D, d_input=2, n_classes=3).bfloat16()
    m.save_pretrained(tmp_path)
    again = sf.Classifier.from_pretrained(tmp_path)
    assert again.head.weight.dtype == torch.bfloat16
    assert all(p.requires_grad for p in again.parameters())
    with refused("holds a Classifier; expected a LanguageModel", "Classifier.from_pretrained"):
        sf.LanguageModel.from_pretrained(tmp_path)


def test_weights_that_no_file_holds_are_named(tmp_path: Path) -> None:
    model = sf.LanguageModel("linear", d_model=8, n_heads=2, vocab_size=9)
    model.blocks[0].mixer.modes = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(
        sf.StateformError, match=r"blocks\.0\.mixer\.modes is torch\.complex128.*real and imaginary parts"
    ):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    from safetensors import safe_open

    m = model("lru")
    m.blocks[0].mixer_norm.weight = m.norm.weight  # tied by hand
    m.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "head.weight" not in file.keys()  # noqa: SIM118
        assert "embedding.weight" in file.keys()  # noqa: SIM118
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path)(ids(1, 5)).logits, m(ids(1, 5)).logits)


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m, x = model("lru"), ids(1, 5)
    m.save_pretrained(tmp_path)
    want = m(x).logits

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with torch.no_grad():
        m.norm.weight.fill_(3)
    with monkeypatch.context() as patch, refused("cannot write", "No space left on device"):
        patch.setattr("os.replace", full)
        m.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == SAVED
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path)(x).logits, want)


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _whole(folder: Path) -> None:
    save_file({k: x.long() for k, x in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ("has no config.json",)),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("there is no file", "model.safetensors")),
    "cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        ("not a whole safetensors file",),
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), ("not a whole safetensors file",)),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ("config.json is no JSON",)),
    "nested": (lambda f: (f / "config.json").write_text("[" * 10**5), ("config.json is no JSON", "nested too deeply")),
    "no text": (
        lambda f: (f / "config.json").write_bytes(b"\x80{}"),
        ("config.json is no text in UTF-8", "byte 0 is 0x80"),
    ),
    "a list": (lambda f: (f / "config.json").write_text("[]"), ("type None", "'stateform'")),
    "a class": (lambda f: _edit(f, architectures="LanguageModel"), ("architectures is 'LanguageModel'", "a list")),
    "classes by number": (lambda f: _edit(f, architectures={"0": 1}), ("architectures is {'0': 1}", "a list")),
    "a large number": (lambda f: _edit(f, d_model=10**39), ("whole number of 130 bits", "64 at most")),
    "no number": (lambda f: _edit(f, dropout=math.nan), ("dropout is nan",)),
    "options": (lambda f: _edit(f, options=[1]), ("options is [1]", "a dict")),
    "a nested pattern": (lambda f: _edit(f, pattern=["lru"]), ("pattern is ['lru']", "a string")),
    "whole numbers": (_whole, ("embedding.weight", "is torch.int64", "a floating dtype")),
    "another type": (lambda f: _edit(f, model_type="llama"), ("type 'llama'", "'stateform'")),
    "another version": (lambda f: _edit(f, format=9), ("format is 9",)),
    "unknown key": (lambda f: _edit(f, n_layer=2), ("no setting 'n_layer'", "n_layers")),
    "another width": (lambda f: _edit(f, d_model=8), ("do not fit", "is [29, 16], expected [29, 8]", "more")),
    "another layer": (lambda f: _edit(f, pattern="softmax"), ("do not fit", "is missing", "more")),
    "deeper": (lambda f: _edit(f, n_layers=2), ("do not fit", "blocks.1.mixer_norm.weight is missing")),
    "untied": (lambda f: _edit(f, tie_embeddings=False), ("head.weight is missing",)),
    "unregistered": (lambda f: _edit(f, pattern="my_own"), ("unknown layer 'my_own'", "import the module that reg")),
    "a file": (lambda f: _edit(f, pattern="evil.py:Evil"), ("names 'evil.py:Evil'", "registered layer")),
}


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    m = model("lru")
    m.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(m.config.to_json(), encoding=encoding)
        assert sf.LanguageModel.from_pretrained(tmp_path).config == m.config


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    spoil, words = BROKEN[name]
    model("lru").save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    spoil(tmp_path)
    with refused(*words):
        sf.LanguageModel.from_pretrained(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with refused("there is no folder"):
        sf.LanguageModel.from_pretrained(tmp_path / "absent")
    (tmp_path / "file").touch()
    with refused("cannot make the folder"):
        model("lru").save_pretrained(tmp_path / "file" / "model")
    with refused("meta", "no weights"), torch.device("meta"):
        sf.LanguageModel("lru", d_model=D, vocab_size=V).save_pretrained(tmp_path)


# -- transformers -------------------------------------------------------------------------------------------------


def test_transformers_opens_what_is_saved_and_the_reverse(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import stateform.models.auto  # noqa: F401

    m, x = model(options={"n_heads": 2}), ids(2, 7)
    m.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    out = theirs(input_ids=x, labels=x, use_cache=True)
    assert close(out.logits, m(x).logits) and close(out.loss, m(x, labels=x).loss)
    more = theirs(input_ids=x[:, :2], attention_mask=torch.ones(2, 9), past_key_values=out.past_key_values).logits
    assert close(more, m(torch.cat([x, x[:, :2]], 1)).logits[:, 7:])
    tokens = theirs.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=5, do_sample=False, temperature=1.0)
    assert torch.equal(tokens, m.generate(x, max_new_tokens=5))
    with torch.no_grad():
        theirs.model.norm.weight.mul_(2)
    theirs.save_pretrained(tmp_path / "theirs")
    again = sf.LanguageModel.from_pretrained(tmp_path / "theirs")
    assert again.config == m.config
    assert close(again(x).logits, theirs(x).logits)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "theirs")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (D, 4, V)
    config.save_pretrained(tmp_path / "config")
    assert sf.ModelConfig.from_json((tmp_path / "config" / "config.json").read_text()) == m.config
    fresh = transformers.AutoModelForCausalLM.from_config(config)
    assert {k: v.shape for k, v in fresh.model.state_dict().items()} == {k: v.shape for k, v in m.state_dict().items()}
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.bfloat16)
    assert half.model.norm.weight.dtype == torch.bfloat16
    with refused("takes no quantisation"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", quantisation=4)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)


def test_transformers_is_asked_for_by_name_alone(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('broken')")
    code = "import sys, stateform; assert 'transformers' not in sys.modules; import stateform.models.auto"
    result = python(code, tmp_path)
    assert result.returncode == 1
    assert "pip install 'stateform[hub]'" in result.stderr


# -- the command and the example ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_text_is_learned_by_one_command_and_continued_by_another(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 100)
    task, model = "text(path='text.txt', length=24)", ["--model", "lru softmax", "--d-model", "32"]
    settings = ["--steps", "120", "--lr", "1e-2", "--batch-size", "8", "--set", "train.eval_examples=8"]
    result = program("train", task, *model, *settings, "--out", "lm", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    bits = json.loads((tmp_path / "lm" / "outcome.json").read_text())["metrics"]["valid"]
    assert bits < 2.0, result.stdout  # 8 for bytes at random, 3.1 for their frequencies

    first = program("generate", "lm", "--prompt", "the cat ", "--greedy", "--max-new-tokens", "16", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.rstrip("\n") == "sat on the mat. "
    (tmp_path / "prompt").write_text("the cat ")
    slow = program("generate", "lm", "--prompt-file", "prompt", "--greedy", "--max-new-tokens", "16", "--no-cache",
                   cwd=tmp_path)  # fmt: skip
    assert slow.stdout == first.stdout


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from stateform import cli

    sf.LanguageModel("lru", d_model=D, tokenizer="bytes").save_pretrained(tmp_path / "lm")
    monkeypatch.chdir(tmp_path)
    for arguments, words in [
        (["absent", "--prompt", "a"], "there is no folder absent"),
        (["lm"], "give --prompt or --prompt-file"),
        (["lm", "--prompt", ""], "the prompt is empty"),
        (["lm", "--prompt", "a", "--prompt-file", "b"], "one of them"),
        (["lm", "--prompt-file", "absent"], "cannot read the text absent"),
        (["lm", "--prompt", "a", "--greedy", "--top-k", "3"], "--greedy draws nothing"),
        (["lm", "--prompt", "a", "--top-p", "2"], "top_p is 2.0"),
    ]:
        monkeypatch.setattr(sys, "argv", ["stateform", "generate", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        out = capsys.readouterr()
        assert out.out == ""
        assert words in out.err
        assert out.err.count("\n") == 1

    def interrupted(*_: object, **__: object) -> Iterator[str]:
        yield "some text"
        raise KeyboardInterrupt

    monkeypatch.setattr("stateform.models.continue_text", interrupted)
    monkeypatch.setattr(sys, "argv", ["stateform", "generate", "lm", "--prompt", "a"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130
    assert capsys.readouterr().out == "some text\n"


def test_a_configuration_of_a_model_can_be_changed() -> None:
    config = sf.ModelConfig("lru", d_model=D, vocab_size=V)
    deeper = replace(config, n_layers=3)
    assert len(sf.LanguageModel(deeper).blocks) == 3
    with refused("a ModelConfig is complete", "n_layers"):
        sf.LanguageModel(config, n_layers=3)
