"""Models with less state: what is written back computes the same within the tolerance, and the rest is measured."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf
from stateform import StateformError
from stateform.convert.smaller import smaller
from stateform.hub.reduction import reduce
from stateform.hub.runs import Runs, perplexity

WRITTEN = ["s4d", "dss", "s4", "lssl", "lru", "s5"]


def layer_of(name: str, d_state: int = 16, seed: int = 0, **options: Any) -> Any:
    """A layer whose modes matter less and less, as those of a trained one."""
    torch.manual_seed(seed)
    layer = sf.build(name, d_model=8, d_state=d_state, **options).double().eval()
    with torch.no_grad():
        layer.C.mul_((0.5 ** torch.arange(layer.C.shape[1], dtype=torch.float64)).view(-1, *[1] * (layer.C.ndim - 2)))
    return layer


def text(n: int = 60, top: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, top, (n,), generator=torch.Generator().manual_seed(seed))


def reads(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """y [B,T,H,p], before the output map."""
    y = sf.run(layer.system(x))
    assert isinstance(y, torch.Tensor)
    return y.detach()


# -- what is written back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_a_smaller_layer_is_within_its_bound(name: str) -> None:
    """For every input, ||y - y'||_2 <= tol sigma_1 ||u||_2, channel by channel; and the layer keeps the contract."""
    layer = layer_of(name)
    found = smaller(layer, 0.1)
    assert found.written and found.ok and found.states[1] < found.states[0]
    assert float(found.error.max()) <= found.tol and float(found.bound.max()) <= found.tol
    x = torch.randn(2, 400, 8, dtype=torch.float64)
    off = reads(layer, x) - reads(found.layer, x)
    sigma = torch.tensor(_sigma(layer), dtype=torch.float64)
    if name in ("lru", "s5"):
        assert float(off.norm()) <= found.tol * float(sigma.max()) * float(x.norm())
    else:
        energy = off.norm(dim=1).flatten(1)  # [B,channels]
        assert bool((energy <= found.tol * sigma * x.norm(dim=1) + 1e-12).all())
    assert float(off.norm()) > 0


def _sigma(layer: Any) -> list[float]:
    from stateform.analysis.linear.control import hsvd

    return hsvd(layer.system(torch.zeros(1, 1, 8, dtype=torch.float64))).values[:, 0].tolist()


@pytest.mark.parametrize("name", ["s4d", "lru", "s5"])
def test_a_smaller_layer_keeps_the_contract(name: str) -> None:
    found = smaller(layer_of(name, 8), 0.1, modes=2)
    report = sf.check(found.layer)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("s4d", {"A_log": 1, "A_imag": 1}),
        ("lru", {"nu_log": 0, "theta_log": 0, "gamma_log": 0, "B": 0}),
        ("s5", {"log_decay_rate": 0, "frequency": 0, "log_dt": 0, "B": 0}),
    ],
)
@torch.no_grad()
def test_modes_that_are_there_twice_become_one(name: str, weights: dict[str, int]) -> None:
    """Without an error but rounding: the second half of the modes is the first again, read with other weights."""
    layer = layer_of(name, 8)
    for weight, axis in weights.items():
        x = getattr(layer, weight)
        first, second = x.chunk(2, axis)
        second.copy_(first)
    found = smaller(layer, 1e-9)
    assert found.written and found.states[1] * 2 == found.states[0]
    x = torch.randn(1, 100, 8, dtype=torch.float64)
    assert float((layer(x) - found.layer(x)).norm() / layer(x).norm()) < 1e-8


@torch.no_grad()
def test_real_poles_take_one_slot() -> None:
    """Modes on the real line, which an S4D has as pairs that lie on each other, need one real state each."""
    layer = layer_of("s4d", 4)
    layer.A_imag.zero_()
    layer.A_log.copy_(torch.tensor([0.0, 1.0]).expand(8, 2))
    layer.C[:, 1] = 0  # one of the two modes is not read
    found = smaller(layer, 1e-6)
    assert found.written and found.layer.config["d_state"] == 2 and set(found.orders) == {1}
    x = torch.randn(1, 100, 8, dtype=torch.float64)
    assert torch.allclose(layer(x), found.layer(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["s4d", "lru"])
def test_too_tight_a_tolerance_leaves_the_layer(name: str) -> None:
    layer = layer_of(name)
    found = smaller(layer, 1e-13)
    assert not found.written and found.layer is layer


@pytest.mark.parametrize("name", ["s4d", "lru"])
def test_by_the_error_alone_more_is_left_out(name: str) -> None:
    layer = layer_of(name)
    bound, error = smaller(layer, 0.05), smaller(layer, 0.05, by="error")
    assert error.ok and float(error.error.max()) <= 0.05 < float(error.bound.max())
    assert error.states[1] < bound.states[1]


@pytest.mark.parametrize("name", WRITTEN)
def test_too_few_modes_are_noticed(name: str) -> None:
    """Broken on purpose: one mode a channel."""
    found = smaller(layer_of(name), 1e-3, modes=1)
    assert not found.ok and float(found.error.max()) > 1e-3


def test_float32_weights_are_measured_as_they_are() -> None:
    found = smaller(layer_of("s4d", 32, dt_min=1e-2).float(), 0.5)
    assert found.written and next(found.layer.parameters()).dtype == torch.float32
    assert found.ok


def test_a_layer_behind_a_convolution() -> None:
    layer = sf.LanguageModel("lru(r_max=0.9)", d_model=8, vocab_size=8, conv=3, d_state=16).blocks[0].mixer
    found = smaller(layer, 0.2)
    x = torch.randn(1, 50, 8)
    assert found.written and type(found.layer) is type(layer)
    assert float((layer(x) - found.layer(x)).detach().norm() / layer(x).detach().norm()) < 0.2


# -- models -------------------------------------------------------------------------------------------------------


def small_model() -> Any:
    torch.manual_seed(0)
    return sf.LanguageModel(
        "lru(r_max=0.9) mamba2(d_head=16) s4(dt_min=0.02) softmax", d_model=16, vocab_size=64, n_heads=2, d_state=16
    ).eval()


def test_a_reduced_model_is_an_ordinary_one(tmp_path: Path) -> None:
    model, ids = small_model(), text()
    kept = {k: x.clone() for k, x in model.state_dict().items()}
    seen: list[tuple[str, int, int]] = []
    found = reduce(model, 0.2, ids, on_progress=lambda *x: seen.append(x))
    assert found.complete and found.ok and found.written == ["blocks.0.mixer", "blocks.2.mixer"]
    assert [row.became.partition("(")[0] for row in found.layers] == ["lru", "", "s4d", ""]
    assert found.parameters[1] < found.parameters[0] == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(x, kept[k]) for k, x in model.state_dict().items()), "the model was changed"
    assert not any("forward" in m.__dict__ for m in model.modules()), "the model was left changed"
    # what was measured is what the model does
    new = found.model
    assert isinstance(new, sf.LanguageModel) and not new.training
    loss = new(ids[None], labels=ids[None]).loss
    assert loss is not None and math.isclose(loss.item(), found.losses["written"], rel_tol=1e-5)
    assert math.isclose(perplexity(model, ids).nats or 0, found.losses["before"], rel_tol=1e-9)
    assert found.off["written"] < 0.2
    # saves, loads, streams, trains
    new.save_pretrained(tmp_path / "new")
    again = sf.LanguageModel.from_pretrained(tmp_path / "new")
    assert torch.equal(again(ids[None]).logits, new(ids[None]).logits)
    first = new(ids[None, :20], return_state=True)
    rest = new(ids[None, 20:], initial_state=first.state).logits
    assert torch.allclose(rest, new(ids[None]).logits[:, 20:], atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in new.parameters())
    # progress, and what is printed
    assert seen[-1][0] == "done" and all(done <= total for _, done, total in seen)
    assert "written back" in str(found) and "perplexity" in str(found) and found.to_dict()["ok"]
    printed = " ".join(str(found).split())
    assert "largest Hankel value of its channel, is kept to 0.2;" in printed
    assert "each head's operator is kept to 0.2 of it" in printed and "worst head's outputs, over those" in printed
    assert "0.2 a channel" not in printed


class Added(torch.nn.Module):
    """As adapters are: a module around another, with a parameter of its own."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base, self.more = base, torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        return y + self.more * torch.tanh(y)


def test_what_was_put_on_a_model_stays_on_the_reduced_one() -> None:
    torch.manual_seed(0)
    model, ids = sf.LanguageModel("s4d*2", d_model=8, vocab_size=64).eval(), text()
    mixer: Any = model.blocks[0].mixer
    mixer.out_proj, mixer.log_dt.requires_grad = Added(mixer.out_proj), False
    model.norm.register_forward_hook(lambda module, args, y: 2 * y)
    found = reduce(model, 0.5, ids)
    new: Any = found.model
    assert found.written == ["blocks.0.mixer", "blocks.1.mixer"]
    assert isinstance(new.blocks[0].mixer.out_proj, Added) and new.norm._forward_hooks
    assert [n for n, p in new.named_parameters() if not p.requires_grad] == ["blocks.0.mixer.log_dt"]
    loss = new(ids[None], labels=ids[None]).loss
    assert math.isclose(loss.item(), found.losses["written"], rel_tol=1e-5)
    assert new.fingerprint == type(new)(new.config).fingerprint
    assert new.blocks[0].mixer is not mixer and not any(p is q for p in new.parameters() for q in model.parameters())


def test_layers_that_vary_are_reduced_on_the_text() -> None:
    model, ids = small_model(), text()
    found = reduce(model, 0.1, ids, layers=["blocks.1.mixer", "blocks.3.mixer"])
    assert not found.written and found.model is model
    for row in found.layers:
        assert row.ok and row.error is not None and row.bound is not None and row.error <= row.bound
        assert len(row.orders) == len(row.least) == 2 and row.alone is not None
        assert all(a <= b for a, b in zip(row.least, row.orders, strict=True))
    finer = reduce(model, 1e-6, ids, layers=["blocks.3.mixer"])
    assert (finer.off["together"]) < 1e-4 < found.off["together"]
    assert max(finer.layers[0].orders) > max(found.layers[1].orders)


def test_a_wrong_system_is_above_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the reduced system writes one and a half times what it should."""
    module = importlib.import_module("stateform.hub.reduction.on_text")
    right = module.reduce_varying

    def wrong(system: sf.System, *args: Any, **options: Any) -> Any:
        found = right(system, *args, **options)
        return replace(found, system=replace(found.system, k=1.5 * found.system.k))

    monkeypatch.setattr(module, "reduce_varying", wrong)
    found = reduce(small_model(), 1e-3, text(), layers=["blocks.3.mixer"])
    assert not found.ok and "ABOVE its bound" in str(found)


def test_heads_in_groups_are_the_same() -> None:
    model, ids = small_model(), text(40)
    whole, parts = (reduce(model, 0.1, ids, layers=["blocks.3.mixer"], limit=x) for x in (5e8, 6e4))
    assert whole.layers[0].orders == parts.layers[0].orders
    assert math.isclose(whole.losses["together"], parts.losses["together"], rel_tol=1e-6)


def test_a_text_of_bytes_and_a_classifier_and_a_layer(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"to be, or not to be, that is the question" * 3)
    torch.manual_seed(0)
    model = sf.LanguageModel("linear", d_model=8, tokenizer="bytes", n_heads=2)
    found = reduce(model, 0.1, tmp_path / "text.txt", max_length=50)
    assert found.tokens == 50 and found.bytes and "bits per byte" in str(found)
    labels = sf.Classifier("linear lru(r_max=0.9)", d_model=8, d_input=2, n_classes=3, n_heads=2, d_state=8)
    seen = reduce(labels, 0.3, torch.randn(30, 2))
    assert not seen.losses and seen.off["together"] < 0.5 and "Outputs differ" in str(seen)
    alone = reduce(sf.build("linear", d_model=16, n_heads=2), 0.1, torch.randn(1, 30, 16))
    assert alone.layers[0].name == "layer" and alone.layers[0].ok


def test_numbers_are_read_from_files_and_arrays(tmp_path: Path) -> None:
    numbers = np.random.RandomState(0).randn(40, 16)
    np.save(tmp_path / "a.npy", numbers)
    torch.manual_seed(0)
    layer = sf.build("mamba2", d_model=16)
    want = reduce(layer, 0.1, torch.from_numpy(numbers[None, :30]).float()).to_dict()
    for given in ({"data": tmp_path / "a.npy"}, {"data": numbers}, {"tokens": numbers}):
        found = reduce(layer, 0.1, max_length=30, **given)  # type: ignore[call-overload]
        assert found.to_dict() == want and (found.tokens, found.unit) == (30, "step")
        told = " ".join(str(found).split())
        assert "measured on 30 steps" in told and "what its heads need on these 30 steps" in told
        assert not re.findall(r"\b(tokens?|text)\b", told)
    labels = sf.Classifier("linear s4d", d_model=8, d_input=1, n_classes=3, n_heads=2, d_state=8)
    (tmp_path / "a.csv").write_text("x\n" + "\n".join(f"{x:.3f}" for x in numbers[:, 0]))
    assert reduce(labels, 0.3, data=tmp_path / "a.csv").off["together"] < 0.5
    started: list[str] = []
    for model, options, message in [
        (layer, {"data": numbers[:, :3]}, r"has 3 numbers a step; Mamba2 reads 16: give numbers \[T,16\]$"),
        (labels, {"data": numbers}, r"has 16 numbers a step; Classifier reads 1"),
        (small_model(), {"data": numbers}, "LanguageModel reads tokens, not numbers"),
        (layer, {"data": numbers, "tokens": numbers}, "tokens and numbers were given"),
        (layer, {"tokens": np.array([None])}, "an array of object was given"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            reduce(model, 0.1, on_progress=lambda *a: started.append(a[0]), **options)  # type: ignore[call-overload]
    assert not started


def test_a_cell_is_left_and_said_so() -> None:
    torch.manual_seed(0)
    found = reduce(sf.LanguageModel("gru", d_model=8, vocab_size=64), 0.1, text())
    assert found.layers[0].why and found.layers[0].alone is None and "together" not in found.losses


def test_what_the_first_layer_hands_on() -> None:
    """RWKV-7 hands the values of its first layer on to the others."""
    torch.manual_seed(0)
    model = sf.LanguageModel("rwkv7*2", d_model=16, vocab_size=64, n_heads=2).eval()
    runs = Runs(model, text(20))
    assert all(x <= 1 for x in runs.same().values())


def test_interrupted_it_keeps_what_is_done() -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "blocks.1.mixer: on the text":
            raise KeyboardInterrupt

    found = reduce(small_model(), 0.2, text(), on_progress=stop)
    assert not found.complete and len(found.written) == 2 and found.layers[0].alone is not None
    assert "Interrupted" in str(found)


def test_a_system_is_reduced_by_convert() -> None:
    system = layer_of("s4d", 8).system(torch.randn(1, 20, 8, dtype=torch.float64))
    assert type(sf.convert.reduce(system, 0.1)) is type(reduce(system, 0.1))


@pytest.mark.parametrize("family", ["llama", "mamba", "bamba"])
def test_models_of_transformers_are_measured(family: str) -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model = small(family)
    found = reduce(model, 0.1, text(24, 60) + 1)
    assert found.model is model and not found.written and found.ok
    assert all(row.alone is not None for row in found.layers) and found.losses["together"] != found.losses["before"]
    with torch.no_grad():
        logits = model((text(24, 60) + 1)[None]).logits
    assert not any("forward" in m.__dict__ for m in model.modules()) and bool(logits.isfinite().all())


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: reduce(m, 0.0), "tol is 0.0"),
        (lambda m: reduce(m, math.nan), "tol is nan"),
        (lambda m: reduce(m, 1.5), "tol is 1.5"),
        (lambda m: reduce(m, True), "tol is True"),
        (lambda m: reduce(m, 0.1, torch.tensor([1, 64])), "expected 0..63"),
        (lambda m: reduce(m, 0.1, torch.tensor([1, -1])), "expected 0..63"),
        (lambda m: reduce(m, 0.1, torch.tensor([1])), "1 token"),
        (lambda m: reduce(m, 0.1, torch.tensor([1.0, 2.0])), "token ids"),
        (lambda m: reduce(m, 0.1, [1, 2]), "list"),
        (lambda m: reduce(m, 0.1, "some/file"), "read as bytes"),
        (lambda m: reduce(m, 0.1, layers=["block"]), "there is no layer"),
        (lambda m: reduce(m, 0.1, max_length=1), "max_length is 1"),
        (lambda m: reduce(m, 0.1, by="hope"), "by is 'hope'"),
        (lambda _: reduce("lru", 0.1), "a str was given"),
        (lambda _: reduce(torch.nn.Linear(2, 2), 0.1), "model of transformers"),
        (lambda _: reduce(sf.build("lru", d_model=8), 0.1, torch.full((1, 4, 8), math.nan)), "NaN"),
        (lambda _: reduce(sf.build("lru", d_model=8), 0.1, torch.zeros(1, 4, 7)), "expected numbers"),
        (lambda _: smaller(sf.build("mamba2", d_model=8), 0.1), "cannot hold the reduced system"),
        (lambda _: smaller(layer_of("lru"), math.nan), "tol is nan"),
        (lambda _: smaller(layer_of("lru"), 0.1, modes=0), "modes is 0"),
        (lambda m: perplexity(sf.build("lru", d_model=8), torch.zeros(1, 4, 8)), "no causal language model"),
    ],
)
def test_bad_input(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(StateformError, match=message):
        call(small_model())


def test_an_unstable_layer_is_left_and_said_so() -> None:
    layer = layer_of("lssl")
    with torch.no_grad():
        layer.A.neg_()
    found = reduce(layer, 0.1)
    assert "unit circle" in found.layers[0].why and found.model is layer
