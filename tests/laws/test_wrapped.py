"""What is put on a module inside a layer or a model takes effect: hooks, adapters, parametrisations, quantised maps."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import stateform as sf
from stateform.architectures import REGISTRY
from stateform.architectures.learning.inner_norm import InnerNorm
from stateform.architectures.registry import accepted
from stateform.architectures.rnn.rg_lru import BlockLinear
from stateform.contract.draws import redraw
from stateform.layer import Convolved, ShortConv
from stateform.layer.parts import HeadNorm
from stateform.models import Classifier, LanguageModel
from stateform.system.precision import GRADIENT, relative_error, tolerance

KINDS = (
    nn.Linear, nn.Embedding, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, ShortConv, BlockLinear, HeadNorm, InnerNorm,
)  # fmt: skip
T = 9
LIMIT = tolerance(torch.float64, T)
WITHOUT_EFFECT = {
    "rwkv7": ("residual_map.0", "residual_map.2"),
    "model, untied": ("blocks.0.mixer.residual_map.0", "blocks.0.mixer.residual_map.2"),
}
"""Maps that alter nothing: those to the share of v_first in the first layer, where it is v."""
MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: LanguageModel("linear gru", d_model=8, vocab_size=11, n_heads=2),
    "untied": lambda: LanguageModel("rwkv7*2 lstm", d_model=8, vocab_size=11, n_heads=2, tie_embeddings=False),
    "positions": lambda: LanguageModel("softmax mamba", d_model=8, vocab_size=11, n_heads=2, max_positions=T),
    "convolved": lambda: LanguageModel("linear", d_model=8, vocab_size=11, n_heads=2, conv=3),
    "classes": lambda: Classifier("s5 gla", d_model=8, vocab_size=11, n_classes=3),
    "numbers": lambda: Classifier("lru", d_model=8, d_input=2, n_classes=3, pooling="none"),
}


class Added(nn.Module):
    """As adapters are: a module around another, of which it has the call alone, with a parameter of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.more = base, nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base(*args, **kwargs)
        return y + self.more * torch.tanh(y + 0.5)


def spots(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, KINDS)]


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(net.get_submodule(owner), last, module)


def ramp(y: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, y.shape[-1], dtype=y.dtype)


def scaled(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
    return y * ramp(y)


def drawn(make: Callable[[], nn.Module], name: str) -> tuple[nn.Module, Tensor]:
    """A module in float64, all of whose parts show, and an input for it."""
    seed = zlib.crc32(name.encode())
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make().double().eval()
    redraw(net, generator, "own")
    if getattr(net, "embedding", None) is not None:
        return net, torch.randint(11, (2, T), generator=generator)
    width = 2 if isinstance(net, Classifier) else net.d_model
    return net, torch.randn(2, T, width, generator=generator, dtype=torch.float64)


def outputs(net: nn.Module, x: Tensor, **options: Any) -> Tensor:
    y = net(x, **options)
    return y if isinstance(y, Tensor) else y.logits


def after(net: nn.Module, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The outputs that follow a state, and the next one."""
    found = net(x, initial_state=state, return_state=True)
    return found if isinstance(found, tuple) else (found.logits, found.state)


def streamed(net: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    found, state = [], None
    for piece in x.split(sizes, 1):
        y, state = after(net, piece, state)
        found.append(y)
    return torch.cat(found, 1)


def close(got: Tensor, want: Tensor, limit: float = LIMIT) -> bool:
    return float(relative_error(got, want).detach().max()) <= limit


def sizes(name: str) -> dict[str, Any]:
    return {"d_model": 8, **({"n_heads": 2} if "n_heads" in accepted(REGISTRY[name].cls) else {})}


def layer(name: str) -> Callable[[], nn.Module]:
    return lambda: sf.build(name, **sizes(name))


CASES = {
    **{name: layer(name) for name in sf.names()},
    "convolved": lambda: Convolved(sf.build("gru", d_model=8), 3),
    **{f"model, {name}": make for name, make in MODELS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_hook_on_any_module_takes_effect(name: str) -> None:
    """On a map it is what a map with other weights is."""
    net, x = drawn(CASES[name], name)
    with torch.no_grad():
        before = outputs(net, x)
        for spot in spots(net):
            if spot in WITHOUT_EFFECT.get(name, ()):
                continue
            hooked, other = copy.deepcopy(net), copy.deepcopy(net)
            hooked.get_submodule(spot).register_forward_hook(scaled)
            got = outputs(hooked, x)
            assert not close(got, before, 1e-5), spot
            m = other.get_submodule(spot)
            if isinstance(m, nn.Linear | nn.Embedding):
                m.weight.mul_(ramp(m.weight.mT).unsqueeze(1) if isinstance(m, nn.Linear) else ramp(m.weight))
                if isinstance(m, nn.Linear) and m.bias is not None:
                    m.bias.mul_(ramp(m.bias))
                assert close(got, outputs(other, x)), spot


@pytest.mark.parametrize("name", CASES)
def test_wrappers_hold_in_every_form(name: str) -> None:
    """The same outputs in all forms, token by token too, and the same gradients of what the wrappers have."""
    net, x = drawn(CASES[name], name)
    with torch.no_grad():
        before = outputs(net, x)
    for spot in spots(net):
        put(net, spot, Added(net.get_submodule(spot)))
    if not spots(net):  # parameters alone
        return
    mine = {n: p for n, p in net.named_parameters() if n.endswith(".more")}
    mine = {n: p for n, p in mine.items() if n.removesuffix(".more") not in WITHOUT_EFFECT.get(name, ())}
    direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(1), dtype=before.dtype)
    want = outputs(net, x, form="recurrent")
    gradients = torch.autograd.grad((want * direction).sum(), list(mine.values()))
    assert not close(want, before, 1e-5)
    for spot, g in zip(mine, gradients, strict=True):
        assert float(g.abs()) > 0, spot
    forms = net.forms(x) if isinstance(net, sf.Layer) else ["auto"]
    for form in ("auto", *forms):
        y = outputs(net, x, form=form)
        assert close(y, want), form
        again = torch.autograd.grad((y * direction).sum(), list(mine.values()), allow_unused=True)
        for spot, g, h in zip(mine, again, gradients, strict=True):
            assert g is not None and float((g - h).abs()) <= GRADIENT * LIMIT * max(1.0, float(h.abs())), (form, spot)
    if want.ndim == 3:
        with torch.no_grad():
            for pieces in ([4, T - 4], [1] * T):
                assert close(streamed(net, x, pieces), want), pieces


class LowRank(nn.Linear):
    """An adapter that is a map itself, of another forward."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, dtype=base.weight.dtype)
        self.load_state_dict(base.state_dict())
        self.down = nn.Parameter(torch.full((1, self.in_features), 0.3, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.linspace(-1, 1, self.out_features, dtype=base.weight.dtype)[:, None])

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.mT @ self.up.mT


@pytest.mark.parametrize("name", ["lstm", "gru", "ttt_linear", "urn", "model, untied", "model, tied"])
def test_maps_of_another_forward(name: str) -> None:
    """As with the product added to the weight."""
    net, x = drawn(CASES[name], name)
    other = copy.deepcopy(net)
    for spot in spots(net):
        if isinstance(m := net.get_submodule(spot), nn.Linear):
            put(net, spot, made := LowRank(m))
            with torch.no_grad():
                other.get_submodule(spot).weight.add_(made.up @ made.down)
    assert close(outputs(net, x), outputs(other, x))


@pytest.mark.parametrize("name", ["lstm", "gru", "ttt_linear", "urn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parametrised_maps(name: str, dtype: torch.dtype) -> None:
    """The direction and the length of each weight are parameters: the same function, and both have gradients."""
    net, x = drawn(layer(name), name)
    net, x = net.to(dtype), x.to(dtype)
    before = net(x)
    for spot in spots(net):
        if isinstance(net.get_submodule(spot), nn.Linear):
            parametrizations.weight_norm(net.get_submodule(spot))
    y = net(x)
    y.sum().backward()
    assert close(y, before, 2 * tolerance(dtype, T, rounded=8))
    parts = {n: p.grad for n, p in net.named_parameters() if "parametrizations" in n}
    assert parts and all(g is not None and bool(g.abs().sum() > 0) for g in parts.values())


@pytest.mark.parametrize("name", ["lstm", "gru", "ttt_linear", "urn"])
def test_pruned_maps_train(name: str) -> None:
    """What was pruned stays away from step to step."""
    net, x = drawn(layer(name), name)
    for spot in spots(net):
        if isinstance(m := net.get_submodule(spot), nn.Linear):
            prune.l1_unstructured(m, "weight", amount=0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    y = net(x, form="recurrent")
    for spot in spots(net):
        if isinstance(m := net.get_submodule(spot), nn.Linear):
            prune.remove(m, "weight")
            assert int((m.weight == 0).sum()) == m.weight.numel() // 2
    assert close(net(x), y)


def test_the_table_of_a_tied_head_is_what_the_embedding_gives() -> None:
    """So a model with its adapters merged into the weights is the same function."""
    peft = pytest.importorskip("peft")
    net, ids = drawn(CASES["model, tied"], "tied")
    config = peft.LoraConfig(r=2, target_modules=["embedding"], init_lora_weights=False)
    adapted = peft.get_peft_model(net, config).double()
    y = adapted(ids).logits
    merged = adapted.merge_and_unload()
    assert type(merged.embedding) is nn.Embedding
    assert close(merged(ids).logits, y)


def test_adapters_of_peft_train() -> None:
    """On the head and the maps of the recurrences: every matrix has a gradient, and a step alters the logits."""
    peft = pytest.importorskip("peft")
    net, ids = drawn(CASES["model, untied"], "peft")
    names = sorted({spot.rpartition(".")[2] for spot in spots(net) if isinstance(net.get_submodule(spot), nn.Linear)})
    assert {"head", "x_proj", "h_proj"} <= set(names)
    adapted = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=[n for n in names if not n.isdigit()]))
    adapted = adapted.double().train()
    mine = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    assert all(p.requires_grad for p in mine.values())
    before = adapted(ids).logits
    optimizer = torch.optim.SGD(mine.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(bool(p.grad.abs().sum() > 0) for p in mine.values()), [n for n, p in mine.items() if not p.grad.any()]
    after_training = adapted(ids).logits
    assert not close(after_training, before, 1e-5)
    assert close(adapted(ids, form="recurrent").logits, after_training)
    assert close(adapted.merge_and_unload()(ids).logits, after_training)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # to be removed from torch one day
@pytest.mark.parametrize("name", ["lstm", "gru", "model, untied", "model, tied"])
def test_quantised_maps(name: str) -> None:
    """Weights of 8 bits: the outputs are other ones, and near."""
    dynamic = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    from torch.ao.quantization import default_dynamic_qconfig

    net, x = drawn(CASES[name], name)
    net, x = net.float(), x if x.dtype == torch.long else x.float()
    before = outputs(net, x)
    for spot in spots(net):
        if isinstance(m := net.get_submodule(spot), nn.Linear):
            m.qconfig = default_dynamic_qconfig
            put(net, spot, dynamic.Linear.from_float(m))
    with torch.no_grad():
        y = outputs(net, x)
        assert not torch.equal(y, before) and close(y, before, 0.1)
        assert torch.equal(outputs(net, x, form="recurrent"), y) or name.startswith("model")
        assert close(streamed(net, x, [1] * T), y, 0.1)  # the scale of a call's inputs is that of all its tokens
