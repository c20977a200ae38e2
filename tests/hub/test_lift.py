"""Every mixer of every family as a System: the certificates hold, cover all that mixes over time, and notice errors."""

from __future__ import annotations

import html
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import nn

from stateform import StateformError
from stateform.hub import FAMILIES, accelerate, lift, reduce
from stateform.hub.lift import Lift
from stateform.hub.lifted import ADAPTERS, Lifted, named
from stateform.hub.supported import mixers
from tests.fixtures.foreign import ATTENDING, WITH_IMAGES, families, shared, small, with_images

OPEN = [name for name in families() if name in FAMILIES]
UNADAPTED: set[str] = set()
"""Families with a mixer that has no adapter yet: to stay empty."""
BESIDES = {
    "qwen4_exp_text": "attention over an index of chosen tokens is no System",
}
"""Families that mix over time in other places than the mixers too."""
NO_EFFECT = ("key.bias", "k_proj.bias")
"""A bias of keys moves all scores of a query alike, unless positions turn the keys."""
TEXT = torch.arange(41) * 7 % 60 + 1


@cache
def lifted(kind: str, dtype: str | None = "float64") -> Lift:
    return lift(shared(kind), TEXT, dtype=dtype)


def test_the_adapters_are_complete() -> None:
    assert {kind for kind in OPEN if any(name not in ADAPTERS for name in FAMILIES[kind])} <= UNADAPTED


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-10), ("float32", 1e-5)])
def test_every_mixer_is_its_system(kind: str, dtype: str, allowed: float) -> None:
    opened = lifted(kind, dtype)
    assert len(opened) > 0
    for certificate in opened.certificates():
        assert certificate, str(certificate)
        assert certificate.error <= allowed, str(certificate)
        assert certificate.dtype == dtype


@pytest.mark.parametrize("kind", OPEN)
def test_nothing_else_mixes_over_time(kind: str) -> None:
    """Without its mixers, a model looks at each token by itself; and each mixer that ran was lifted."""
    if kind in UNADAPTED | set(BESIDES):
        pytest.skip(BESIDES.get(kind, "a mixer has no adapter yet"))
    alone_without_mixers(shared(kind), lifted(kind))


def alone_without_mixers(net: nn.Module, found: Lift) -> None:
    ran = set()

    def silence(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            ran.add(name)
            nothing = named(module, args, kwargs).get("residual")  # Bloom's attention adds it itself
            if isinstance(output, tuple):
                return (torch.zeros_like(output[0]) if nothing is None else nothing, *output[1:])
            return torch.zeros_like(output)

        return hook

    hooks = [m.register_forward_hook(silence(name), with_kwargs=True) for name, m in mixers(net).items()]
    other = TEXT.clone()
    other[5] = 3 if int(TEXT[5]) != 3 else 4
    try:
        with torch.no_grad():
            one, two = (net(text[None]).logits for text in (TEXT, other))
    finally:
        for hook in hooks:
            hook.remove()
    differ = (one != two).any(-1)[0]
    assert bool(differ[5]) and int(differ.sum()) == 1
    assert ran == {name.split(" (use")[0] for name in found}
    assert {type(m).__name__ for m in mixers(net).values()} <= set(ADAPTERS)


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_of_a_further_family(kind: str) -> None:
    """The mixers are their Systems, nothing else mixes, and a phase is there where the model turns queries and keys."""
    net = small(kind)
    found = lift(net, TEXT, dtype="float64")
    for certificate in found.certificates():
        assert certificate and certificate.error <= 1e-10, str(certificate)
    alone_without_mixers(net, found)
    for name, system in lift(net, torch.full((20,), 7), dtype="float64").items():
        tables = found._sites[name].given.get("position_embeddings")
        turns = tables is not None and getattr(found.module(name), "use_rope", True)
        if name == next(iter(found)) and turns and not kind.startswith("hunyuan"):  # there a norm follows, with weights
            assert system.phase is not None
            assert float((system.q - system.q[:, :1]).abs().max()) < 1e-5 * float(system.q.abs().max())


@pytest.mark.parametrize("kind", WITH_IMAGES)
def test_the_language_model_of_a_model_of_several_parts(kind: str) -> None:
    net = with_images(kind)
    found = lift(net, TEXT, dtype="float64")
    for certificate in found.certificates():
        assert certificate and certificate.error <= 1e-10, str(certificate)
    assert all(name.startswith("model.language_model.layers.") for name in found)
    assert len(found) == net.config.text_config.num_hidden_layers
    assert len(reduce(net, 0.05, TEXT[:8]).layers) == len(found)
    alone_without_mixers(net, found)


def test_attention_to_tokens_that_an_index_chose_is_refused() -> None:
    """With fewer tokens than it chooses it is attention to them all."""
    first, *indexed = lift(with_images("glm5_next", index_topk=8), TEXT, dtype="float64").certificates()
    assert first
    assert all("what an index did not choose" in certificate.refused for certificate in indexed)
    assert all(lift(with_images("glm5_next", index_topk=8), TEXT[:8], dtype="float64").certificates())


def _first_of_each_class(kind: str) -> list[str]:
    first: dict[str, str] = {}
    for name in lifted(kind):
        first.setdefault(type(lifted(kind).layer(name).module).__name__, name)
    return list(first.values())


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", OPEN)
def test_a_wrong_weight_is_noticed(kind: str, every: bool) -> None:
    """A layer with any one of its weights a little off is not the same function (two of its weights in short)."""
    opened = lifted(kind)
    for name in _first_of_each_class(kind):
        layer = opened.layer(name)
        weights = list(layer.module.named_parameters())
        for weight, p in weights if every else (weights[0], weights[-1]):
            with torch.no_grad():
                right, by = p.clone(), torch.Generator().manual_seed(0)
                p.add_(1e-3 * torch.randn(p.shape, generator=by, dtype=p.dtype))
            certificate = opened.certificate(name, layer=layer)
            with torch.no_grad():
                p.copy_(right)
            if certificate:
                assert weight.endswith(NO_EFFECT), f"{name}: {weight} is not noticed"
        assert opened.certificate(name, layer=layer)


@pytest.mark.parametrize("kind", ["qwen3", "mamba", "mamba2", "qwen3_next", "rwkv", "xlstm", "recurrent_gemma"])
def test_another_system_is_not_the_same_function(kind: str) -> None:
    opened = lifted(kind)
    for name in _first_of_each_class(kind):
        system = opened[name]
        assert opened.certificate(name, system)
        v = system.v * 1.001 if system.v is not None else None
        k = system.k if v is not None else system.k * 1.001
        assert not opened.certificate(name, replace(system, v=v, k=k)), name


def test_an_accelerated_model_is_compared_with_the_modules_themselves() -> None:
    """Or a wrong System would be compared with itself."""
    net = small("mamba2")
    accelerate(net)
    opened = lift(net, TEXT)
    assert type(opened.layer("backbone.layers.0.mixer").module).__module__.startswith("transformers")
    assert not hasattr(type(opened.layer("backbone.layers.0.mixer").module), "original")
    assert all(opened.certificates())


def test_some_layers_in_the_dtype_of_the_model_and_a_batch() -> None:
    net = small("bamba").bfloat16()
    opened = lift(net, TEXT[:40].reshape(2, 20), layers=["model.layers.0.mamba"])
    assert list(opened) == ["model.layers.0.mamba"]
    (certificate,) = opened.certificates()
    assert certificate and certificate.dtype == "bfloat16" and 1e-4 < certificate.allowed < 0.1
    assert opened["model.layers.0.mamba"].T == 20
    assert "same function" in str(opened)


def test_a_shared_block_is_lifted_at_each_use() -> None:
    names = list(lifted("zamba2"))
    assert any("(use 2)" in name for name in names) or len({n for n in names if "shared" in n}) == 2


def test_the_model_is_left_as_it_was() -> None:
    net = small("mamba2").train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    lift(net, TEXT).certificates()
    assert net.training and not any(m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tokens": torch.tensor([1.0])}, "expected integers"), ({"tokens": torch.tensor([64])}, "vocabulary is 0..63"),
     ({"dtype": "float13"}, "expected one of"), ({"dtype": torch.int32}, "expected one of"),
     ({"layers": ["x"]}, "there is no layer"),
     ({"tokens": torch.empty(1, 0, dtype=torch.long)}, "one or more")],
)  # fmt: skip
def test_errors_come_before_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StateformError, match=message):
        lift(shared("mamba2"), **{"tokens": TEXT, **options})


def test_what_is_no_model_of_transformers() -> None:
    with pytest.raises(StateformError, match="no model of transformers"):
        lift(nn.Linear(2, 2), TEXT)


ANY_ACTIVATION = (
    "mamba", "falcon_mamba", "jamba", "zamba", "bamba", "granitemoehybrid", "falcon_h1", "qwen3_next", "olmo_hybrid",
)  # fmt: skip
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("mamba2", {"time_step_limit": (0.1, 0.2)}),
    ("mamba2", {"hidden_act": "gelu"}),
    ("mamba2", {"use_bias": True, "use_conv_bias": False, "n_groups": 4, "conv_kernel": 2}),
    ("mamba2", {"n_groups": 1, "conv_kernel": 7}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    ("falcon_h1", {"ssm_multipliers": [1.1, 0.9, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.3, "mamba_proj_bias": True}),
    ("nemotron_h", {"time_step_min": 0.15}),
    ("zamba2", {"time_step_min": 0.15, "add_bias_linear": True}),
    ("mamba", {"use_bias": True, "use_conv_bias": False}),
    ("falcon_mamba", {"use_bias": True}),
    ("jamba", {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    ("bloom", {"num_attention_heads": 12, "hidden_size": 48}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("falcon", {"num_attention_heads": 6, "hidden_size": 48, "multi_query": False, "bias": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "attn_implementation": "eager"}),
    ("falcon", {"alibi": False}),
    ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("mpt", {"num_attention_heads": 6, "hidden_size": 48}),
    ("gptj", {"rotary_dim": 8}),
    ("deepseek_v2", {"q_lora_rank": None, "v_head_dim": 12}),
    ("diffllama", {"num_key_value_heads": 4, "head_dim": 6}),
    *((kind, {"hidden_mamba_act" if kind == "zamba" else "hidden_act": "gelu"}) for kind in ANY_ACTIVATION),
]


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_options_of_the_mixers(kind: str, options: dict[str, Any]) -> None:
    for certificate in lift(small(kind, **options), TEXT, dtype="float64").certificates():
        assert certificate and certificate.error <= 1e-10, str(certificate)


def test_options_that_no_system_expresses() -> None:
    found = lift(small("mamba2", time_step_limit=(0.2, 0.1)), TEXT)
    assert all("expected 0 <= least" in certificate.refused for certificate in found.certificates())
    with pytest.raises(StateformError, match="expected 0 <= least"):
        dict(found)


def test_an_adapter_is_a_layer() -> None:
    layer = lifted("mamba2").layer("backbone.layers.0.mixer")
    assert isinstance(layer, Lifted)
    u = lifted("mamba2").input("backbone.layers.0.mixer").double()
    whole, end = layer(u, return_state=True)
    first, state = layer(u[:, :17], return_state=True)
    second, state = layer(u[:, 17:], initial_state=state, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(state["S"], end["S"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mamba", "llama"])
def test_a_layer_is_the_same_on_every_text(kind: str) -> None:
    """What it is called with besides its input tells no states apart, and is not written out to compare them."""
    one, two = (lift(shared(kind), text) for text in (TEXT, TEXT[:9]))
    assert one.layer(next(iter(one))).fingerprint == two.layer(next(iter(two))).fingerprint


def test_a_model_keeps_its_modes_and_its_forwards() -> None:
    from stateform.hub.runs import perplexity

    net = small("mamba").train()
    net.backbone.embeddings.eval()
    mixer, modes = net.backbone.layers[0].mixer, [m.training for m in net.modules()]
    mixer.forward = given = mixer.forward
    lift(net, TEXT)
    perplexity(net, TEXT)
    reduce(net, 0.05, TEXT[:8])
    assert [m.training for m in net.modules()] == modes
    assert mixer.__dict__["forward"] is given


def test_one_layer_without_a_system_leaves_the_others(tmp_path: Path) -> None:
    """Its certificate says why; an analysis has a row of it, a reduction the reason."""
    import stateform as sf

    net = small("mamba2")
    net.backbone.layers[1].mixer.time_step_limit = (0.2, 0.1)
    why = "the time_step_limit of Mamba2Mixer is [0.2, 0.1]"
    first, second = lift(net, TEXT).certificates()
    assert first
    assert not second
    assert why in str(second)
    found = sf.analyze(net, TEXT, only="memory")
    rows = found.to_dict()["layers"]
    assert [bool(row["answers"]) for row in rows] == [True, False]
    assert why in rows[1]["certificate"]["refused"]
    assert found.complete
    assert why in " ".join(str(found).split())
    assert why in html.unescape(found.html())
    found.save_json(tmp_path / "found.json")
    assert "NaN" not in (tmp_path / "found.json").read_text()
    assert why in sf.hub.reduce(net, 0.05, TEXT[:8]).layers[1].why


def test_caps_and_sinks_are_those_of_the_model() -> None:
    capped, sunk = (next(iter(lifted(kind).values())) for kind in ("gemma2", "gpt_oss"))
    assert capped.readout.cap == shared("gemma2").config.attn_logit_softcapping
    sinks = shared("gpt_oss").model.layers[0].self_attn.sinks.detach()
    assert torch.equal(sunk.readout.sink, sinks.double())


@pytest.mark.parametrize("heads", [4, 6])
def test_the_slopes_of_alibi_are_a_forgetting(heads: int) -> None:
    """What the model has rounded of them is kept beside, as a bias, so that certificates hold."""
    right = [0.25**h for h in (1, 2, 3, 4)] if heads == 4 else [0.25**h for h in (1, 2, 3, 4)] + [0.5, 0.125]
    for kind in ("bloom", "falcon"):
        net = shared(kind, num_attention_heads=heads, hidden_size=8 * heads)
        system = next(iter(lift(net, TEXT, dtype="float64").values()))
        scale = 8**-0.5 if kind == "falcon" else 1.0
        torch.testing.assert_close(-system.readout.forget, torch.tensor(right).double() * scale, rtol=1e-6, atol=0)
        assert (system.readout.bias is None) == (kind == "bloom")


@pytest.mark.parametrize(
    "kind", ["llama", "smollm3", "gpt_oss", "gpt_neox", "gptj", "falcon", "deepseek_v2", "deepseek_v3", "diffllama"]
)
def test_a_phase_is_where_the_model_turns(kind: str) -> None:
    """The queries of one token again and again differ by their positions alone: without the phase they are the same."""
    net = shared(kind, **({"alibi": False} if kind == "falcon" else {}))
    system = next(iter(lift(net, torch.full((20,), 7), dtype="float64").values()))
    assert system.phase is not None
    assert float((system.q - system.q[:, :1]).abs().max()) < 1e-5 * float(system.q.abs().max())


def test_unknown_names_and_single_names() -> None:
    name = "backbone.layers.0.mixer"
    found = lift(shared("mamba"), TEXT, layers=name)
    assert list(found) == [name]
    for ask in (found.input, found.layer, found.module, found.certificate, found.__getitem__):
        with pytest.raises(StateformError, match="there is no layer 'x'"):
            ask("x")


@pytest.mark.parametrize("kind", ["gpt2", "bert", "opt", "biogpt"])
def test_more_tokens_than_learned_positions(kind: str) -> None:
    config = shared(kind).config
    most = getattr(config, "n_positions", None) or config.max_position_embeddings
    with pytest.raises(StateformError, match=f"the model has {most} positions"):
        lift(shared(kind), torch.ones(most + 1, dtype=torch.long))


def test_what_was_opened_has_the_model_in_it() -> None:
    import stateform as sf
    from stateform.hub import Opened, undo

    opened: Any = Opened("mine", shared("mamba"), None)
    for call in (lambda: lift(opened, TEXT), lambda: accelerate(opened), lambda: sf.check(opened)):
        with pytest.raises(StateformError, match=r"give \.model"):
            call()
    text: Any = "x"
    with pytest.raises(StateformError, match="expected a model"):
        undo(text)
