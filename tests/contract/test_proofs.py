"""A proof is one of something: NaN equals nothing, what is not finite is refused by name, what is constant is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stateform as sf
from stateform import cli
from stateform.contract.outcome import Report
from stateform.convert.certificate import certify
from stateform.errors import require_finite_weights
from stateform.system.precision import relative_error

NAN, INF = torch.nan, torch.inf
IDS, X = torch.arange(1, 13)[None], torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))


def spoil(p: Any, value: float) -> None:
    """Put a value into the last entry of a parameter."""
    with torch.no_grad():
        p.view(-1)[-1] = value


def bench_model(model: nn.Module) -> Any:
    from stateform.timing import bench_model

    return bench_model(model, length=9, train_length=4, repeats=1)


def perplexity(model: nn.Module) -> Any:
    from stateform.hub import perplexity

    return perplexity(model, IDS)


# -- weights that are not finite ----------------------------------------------------------------------------------

OF_MODELS: dict[str, Callable[[Any], Any]] = {
    "check": sf.check,
    "lift": lambda model: sf.lift(model, IDS),
    "bench_model": bench_model,
    "analyze": lambda model: sf.analyze(model, IDS),
    "reduce": lambda model: sf.reduce(model, 0.1, IDS),
    "perplexity": perplexity,
}


@pytest.mark.parametrize("what", OF_MODELS)
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_name(what: str) -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    for value in (NAN, INF, -INF):
        model = small("mamba")
        spoil(model.backbone.layers[1].mixer.A_log, value)
        spoil(model.backbone.norm_f.weight, NAN)
        with pytest.raises(sf.StateformError, match="expected finite") as told:
            OF_MODELS[what](model)
        assert f"A_log of backbone.layers.1.mixer (MambaMixer) holds {value}" in str(told.value)


OF_OURS: dict[str, Callable[[Any], Any]] = {
    "analyze": lambda model: sf.analyze(model, IDS[0]),
    "reduce": lambda model: sf.reduce(model, 0.1, IDS),
    "perplexity": perplexity,
}


@pytest.mark.parametrize("what", OF_OURS)
def test_so_is_a_model_of_ours(what: str) -> None:
    model = sf.LanguageModel("s4d*2", d_model=8, vocab_size=16)
    spoil(model.blocks[1].mixer.out_proj.weight, NAN)  # type: ignore[union-attr]
    with pytest.raises(sf.StateformError, match=r"weight of blocks\.1\.mixer\.out_proj \(Linear\) holds nan"):
        OF_OURS[what](model)


OF_LAYERS: dict[str, Callable[[Any], Any]] = {
    "check": sf.check,
    "compare": lambda layer: sf.compare([layer], d_model=8, max_length=16),
    "analyze": sf.analyze,
    "reduce": lambda layer: sf.reduce(layer, 0.1),
    "equivalent": lambda layer: sf.equivalent(layer, layer, X),
    "equivalent to another": lambda layer: sf.equivalent(sf.build("linear", d_model=8), layer, X),
}


@pytest.mark.parametrize("what", OF_LAYERS)
def test_so_is_a_layer(what: str) -> None:
    layer = sf.build("linear", d_model=8)
    spoil(layer.out_proj.weight, NAN)
    with pytest.raises(sf.StateformError, match=r"weight of out_proj \(Linear\) holds nan at index \(7, 7\)"):
        OF_LAYERS[what](layer)


class Resetting(sf.Layer):
    """Half of its heads forget all at once: their log decay is -inf."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.log_decay = nn.Parameter(torch.tensor([-INF, -0.1]))

    def system(self, u: torch.Tensor, past: Any = None) -> sf.System:
        k = self.proj(u).unflatten(-1, (2, -1))
        return sf.System(k, k, k, log_decay=self.log_decay)


def test_the_log_decay_of_a_reset_is_no_fault_of_a_layer() -> None:
    layer = Resetting(8)
    found = sf.equivalent(layer, layer, X)
    assert found and "constant" not in found.text
    for name, value in (("log_decay", NAN), ("log_decay", INF), ("proj.weight", -INF)):
        layer = Resetting(8)
        spoil(layer.get_parameter(name), value)
        with pytest.raises(sf.StateformError, match=f"{name.rpartition('.')[2]} of .* holds {value}"):
            require_finite_weights(layer)


def test_all_dtypes_of_weights_are_looked_at() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e5m2):
        layer = nn.Module()
        large = torch.full((1000,), torch.finfo(dtype).max / 2, dtype=torch.float64).to(
            dtype
        )  # finite, though their sum is not
        layer.register_parameter("p", nn.Parameter(large, requires_grad=False))
        require_finite_weights(layer)
        large[7] = NAN
        with pytest.raises(sf.StateformError, match=r"p of Module holds \(?nan.* at index \(7,"):
            require_finite_weights(layer)
    layer.p = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    require_finite_weights(layer)
    require_finite_weights(nn.Linear(2, 2, device="meta"))


# -- outputs that are not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", OF_MODELS)
def test_finite_weights_whose_outputs_are_not(what: str) -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model = small("mamba")
    model.backbone.layers[0].mixer.register_forward_hook(lambda _module, _args, out: out / 0)
    named = {"check": "first at backbone.layers.0.mixer (MambaMixer)", "lift": "backbone.layers.1.mixer (MambaMixer)"}
    with pytest.raises(sf.StateformError, match="no proof: what it is compared with is not finite") as told:
        OF_MODELS[what](model)
    assert named.get(what, "MambaForCausalLM" if what != "analyze" else named["lift"]) in str(told.value)


def test_analyses_of_what_overflows() -> None:
    model = sf.LanguageModel("s4d", d_model=8, vocab_size=16)
    model.norm.register_forward_hook(lambda _module, _args, out: out / 0)
    with pytest.raises(sf.StateformError, match="logits of this LanguageModel holds"):
        sf.analyze(model, IDS[0])
    layer = sf.build("linear", d_model=8)
    layer.k_proj.register_forward_hook(lambda _module, _args, out: out / 0)
    with pytest.raises(sf.StateformError, match="k holds"):
        sf.analyze(layer)
    with pytest.raises(sf.StateformError, match="no proof"):
        sf.reduce(layer, 0.1, X)


@pytest.mark.parametrize("value", [NAN, INF])
def test_equal_to_what_is_not_finite_is_no_proof(value: float) -> None:
    y = torch.randn(2, 5, 3, dtype=torch.float64)
    y[1, 3, 0] = value
    found = sf.equivalent(y, y)
    assert not found and found.error == INF
    assert found.text == f"no proof: what it is compared with is not finite, {value} first at position 3 of 5, row 1"
    report = Report("y")
    report.compare("part", "here", y, y, 1.0)
    assert report.failures == [f"part: here: {found.text}"] and report.outcomes["part"].worst == INF
    other = y.nan_to_num(0.0, 0.0)
    assert not sf.equivalent(y, other) and sf.equivalent(other, other)


def test_infinities_that_are_meant() -> None:
    """The scale of an empty state is exp(-inf): equal, where it is asked for, and no scale for the rest."""
    x = torch.tensor([[-INF, 1.0, 2.0]], dtype=torch.float64)
    assert relative_error(x, x).tolist() == [[0, 0, 0]]
    assert relative_error(x + 1, x).tolist() == [[0, 0.5, 0.5]]
    assert relative_error(x.nan_to_num(neginf=0.0), x)[0, 0] == INF
    report = Report("state")
    report.compare("part", "log_scale", x, x, 1e-9, infinite=True)
    assert report.ok
    report.compare("part", "log_scale", x, x, 1e-9)
    assert not report.ok


def test_a_certificate_of_what_is_not_finite() -> None:
    k = torch.randn(1, 6, 2, 3)
    system = sf.System(k, k, k)
    assert certify(system, system, "itself").ok
    k[0, 2] = NAN
    with sf.validate(False):
        found = certify(system, system, "itself")
    assert not found.ok and "no proof" in str(found) and found.errors == (INF, INF)


def test_compare_does_not_call_nan_equal() -> None:
    layer = sf.build("linear", d_model=8)
    layer.v_proj.register_forward_hook(lambda _module, _args, out: out / float(out.shape[1] < 9))
    certificate = sf.compare([layer], d_model=8, max_length=16).to_dict()["layers"][0]["certificate"]
    assert not certificate["ok"] and certificate["worst"] == INF
    layer.v_proj.register_forward_hook(lambda _module, _args, out: out / 0)
    with pytest.raises(sf.StateformError, match=r"Linear: no proof: .* first at position 0 of 2, row 0"):
        sf.compare([layer], d_model=8, max_length=16)


# -- outputs that are constant ------------------------------------------------------------------------------------


def test_what_depends_on_nothing_is_said() -> None:
    layer = sf.build("linear", d_model=8)
    assert "constant" not in sf.equivalent(layer, layer, X).text
    with torch.no_grad():
        layer.out_proj.weight.zero_()
    assert "constant: this says nothing of how they depend on their input" in sf.equivalent(layer, layer, X).text


class Forgetting(nn.Module):
    """Keeps every part of the contract, as it remembers nothing."""

    d_model = 4

    def forward(self, x: Any, initial_state: Any = None, return_state: bool = False) -> Any:
        state = sf.State({"position": torch.zeros(len(x))})
        return (2 * x, state) if return_state else 2 * x


def test_a_module_without_memory_is_said_to_have_none() -> None:
    report = sf.check(Forgetting())
    assert report.ok and "note: the last output is the same whatever comes before the last token" in str(report)


def test_models_without_memory_are_said_to_have_none() -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model = small("mamba")
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.zero_()
    report = sf.check(model)
    assert report.ok and len(report.notes) == 1 and report.to_dict()["notes"] == report.notes
    certificates = sf.lift(model, IDS).certificates()
    assert all(certificates) and all("its output is constant" in str(found) for found in certificates)
    with torch.no_grad():
        model.backbone.norm_f.weight.zero_()
    assert "the same at every position, whatever the tokens" in " ".join(str(bench_model(model)).split())


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["check {}", "open {} --tokenizer bytes", "reduce {} --tokenizer bytes", "bench --model {} --quick"]
)
def test_commands_say_it_in_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model = small("mamba", vocab_size=256)
    spoil(model.backbone.layers[1].mixer.A_log, NAN)
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["stateform", *words.format(tmp_path / "model").split()])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and "A_log of backbone.layers.1.mixer (MambaMixer) holds nan" in said[-1]
    assert not any("Traceback" in line for line in said)
