"""Every registered layer keeps the contract; what breaks it is caught, and the place is named."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.architectures import REGISTRY, accepted, resolve
from stateform.contract.equivalence import share_weights
from stateform.contract.layer import LayerRunner, layer_runner
from stateform.contract.parts.forms import equations
from stateform.forms.form import FORMS
from stateform.loops import build, ops
from stateform.system.core import Core
from stateform.system.precision import tolerance

from ..loops.test_loops import needed


def quick_unless(slow: set[str], names: list[str]) -> list[Any]:
    """The names as parameters, some of them for `make test-all` alone."""
    assert slow <= set(names), slow - set(names)
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


# Layers that together call the compiled loops in every way there is.
LOOPS = {
    "deltanet", "deltaproduct", "gated_deltanet", "gla", "kda", "linear", "lru", "mamba", "mamba2", "rg_lru", "rwkv4",
    "rwkv6", "rwkv7", "s4d", "ttt_linear",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.loops] * (x in LOOPS)) for x in sf.names()])
def test_layer_keeps_the_contract(name: str) -> None:
    report = sf.check(name, d_model=16)
    assert report.ok, str(report)
    assert not report.not_offered
    assert sum(o.comparisons for o in report.outcomes.values()) > 200


class Watched:
    """The library of a precision, and in which ways its loops are called: with which parts and options, and whether
    for more than one key and value.
    """

    options = ("exclusive", "wide", "same", "chunked", "shared_q", "shared_k", "activate", "gate", "first")

    def __init__(self, loops: Any, ways: set[Any]) -> None:
        self.loops, self.ways = loops, ways

    def __getattr__(self, name: str) -> Any:
        def run(job: Any) -> Any:
            self.ways.add((name, *(self.kind(field, getattr(job._obj, field)) for field, *_ in job._obj._fields_)))
            return getattr(self.loops, name)(job)

        return run

    def kind(self, field: str, x: Any) -> Any:
        if field == "at":
            return tuple(map(bool, x))
        if field in ("n", "p"):
            return min(x, 2)
        return bool(x.at) if isinstance(x, ops.Strided) else x if field in self.options else None


@needed
@pytest.mark.slow
def test_some_layers_call_the_loops_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, set[Any]] = {}
    for name in sf.names():
        ways[name] = set()
        monkeypatch.setattr(ops, "library", lambda bits, found=ways[name]: Watched(build.library(bits), found))
        torch.manual_seed(0)
        layer = sf.build(name, d_model=16)
        for T in (1, 70):
            x = torch.randn(2, T, 16, requires_grad=True)
            for form in ("auto", "recurrent"):
                layer(x, form=form).sum().backward()
                with torch.no_grad():
                    _, state = layer(x, form=form, return_state=True)
                    layer(x, form=form, initial_state=state)
                    layer.step(x[:, 0], state)
                    layer.step(x[:, 0], state, inplace=True)
    some, every = (set().union(*(ways[name] for name in names)) for names in (LOOPS, ways))
    assert len(every) > 50
    missing = {name: [way[0] for way in found - some] for name, found in ways.items() if found - some}
    assert not missing, "one of these layers belongs to LOOPS"


@pytest.mark.parametrize("name", quick_unless(set(sf.names()) - {"gla", "mamba", "rg_lru", "s4d"}, sf.names()))
def test_layer_keeps_the_contract_without_compiled_loops(name: str) -> None:
    with sf.backend("torch"):
        report = sf.check(name, d_model=16)
    assert report.ok, str(report)


# The options that change what a layer computes.
VARIANTS = [
    "hopfield(updates=5, beta=2.0, d_state=3)",
    "ttt_linear(averaged=False)",
    "ttt_linear(averaged=False, inner_norm=False, bias=False, positions='none', gate=True, block=1)",
    "ttt_linear(block=7, share_qk=True)",
    "urn(d_state=5, rows=2)",
    "softmax(n_kv_heads=2)",
    "softmax(n_kv_heads=1, positions='none', bias=True)",
    "normalized(eta='softplus')",
    "normalized(eta='sigmoid')",
    "deltanet(allow_negative_eigenvalues=True)",
    "mamba(allow_negative_eigenvalues=True)",
    "mamba2(allow_negative_eigenvalues=True)",
    "gla(allow_negative_eigenvalues=True)",
    "mlstm(allow_negative_eigenvalues=True)",
    "kda(allow_negative_eigenvalues=True, least_log_decay=-5.0)",
    "path(forget=True)",
    "fox(qk_norm=True, gate=True)",
    "mla(absorbed=False)",
    "gau(positions='none')",
    "peephole_lstm(coupled=True)",
    "s4d(init='legs')",
    "mamba2(d_head=16, n_groups=2)",
    "qlstm(reversed=True)",
    "rg_lru(reset_first=True)",
    "mlstm(gate_cap=None)",
    "gla(d_state=3, gate_temperature=1.0)",
    "gated_softmax(gate='value', n_kv_heads=2)",
    "hgrn2(lower_bound=0.3)",
    "deltaproduct(n_h=3, gated=True)",
    "mesa(solver='cg', gated=True)",
    "kalmanet(mixed=False, input_gate=False)",
    "rwkv6(decay='channel')",
    "rwkv6(decay='head', gate=False)",
    "slstm(forget='exp', n_heads=2)",
]
LIKE_OTHERS = {
    "ttt_linear(averaged=False)", "ttt_linear(block=7, share_qk=True)", "softmax(n_kv_heads=2)",
    "normalized(eta='sigmoid')", "deltanet(allow_negative_eigenvalues=True)", "s4d(init='legs')",
    "gla(d_state=3, gate_temperature=1.0)", "hgrn2(lower_bound=0.3)", "rwkv6(decay='channel')",
    "kalmanet(mixed=False, input_gate=False)",
}  # fmt: skip
"""Variants with the structure of a layer or a variant that is checked besides."""
LONG_VARIANTS = ["kalmanet(solver='chebyshev', mixed=False, input_gate=False)"]
"""Those whose check alone takes half a minute."""


@pytest.mark.parametrize("spec", quick_unless(LIKE_OTHERS, VARIANTS))
def test_variant_keeps_the_contract(spec: str) -> None:
    report = sf.check(spec, seed=1, d_model=16)
    assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("spec", LONG_VARIANTS)
def test_long_variant_keeps_the_contract(spec: str) -> None:
    test_variant_keeps_the_contract(spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*sf.names(), *VARIANTS])
def test_layer_keeps_the_contract_exhaustively(spec: str) -> None:
    small = {} if "d_state" in spec or "d_state" not in accepted(resolve(spec)[0]) else {"d_state": 8}
    report = sf.check(spec, seed=2, exhaustive=True, d_model=16, **small)
    assert report.ok, str(report)


# One layer of each structure (decay, feedback, readout, eta, forms) is enough in the quick tests.
SAME_STRUCTURE = {
    "block_diagonal", "dss", "gated_softmax", "gru", "hgrn2", "lem", "lightning", "lstm", "ltc", "mesa", "min_gru",
    "min_lstm", "performer", "retention", "rg_lru", "s5", "short_conv", "slstm", "taylor", "urn",
}  # fmt: skip


@pytest.mark.parametrize("name", quick_unless(SAME_STRUCTURE, sf.names()))
@pytest.mark.drawn(0.25)
def test_a_thousand_tokens_to_ten_digits(name: str) -> None:
    torch.manual_seed(0)
    small = {"d_state": 8} if "d_state" in accepted(REGISTRY[name].cls) else {}
    layer = sf.build(name, d_model=8, **small).double()
    x = torch.randn(1, 1000, 8, dtype=torch.float64)
    with torch.no_grad():
        system = layer.system(x)
        want = sf.run(system, "recurrent")
        single = system.to(torch.float32)
        for form, why_not in system.forms().items():
            if why_not is None:
                assert float((sf.run(system, form) - want).abs().max() / want.abs().max()) < 1e-10, form
                close = sf.run(single.to(torch.float64), "recurrent")
                assert float((sf.run(single, form).double() - close).abs().max() / close.abs().max()) < 1e-4, form
    assert tolerance(torch.float64, 1000) < 1e-10
    assert tolerance(torch.float32, 1000) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", sf.names())
def test_131072_tokens_chunk_by_chunk(name: str) -> None:
    torch.manual_seed(0)
    layer = sf.build(name, d_model=64)
    x = torch.randn(1, 131_072, 64)
    with torch.no_grad():
        system = layer.system(x[:, :2])
        if system.readout.cached or system.forms()["chunkwise"] is not None:
            return  # softmax's cache grows; dense transitions have no chunks
        y = layer(x, form="chunkwise")
        head = layer(x[:, :1000])
    assert bool(torch.isfinite(y).all())
    assert float((y[:, :1000] - head).abs().max() / head.abs().max()) < tolerance(torch.float32, 1000)


# -- what breaks the contract is caught ---------------------------------------------------------------------------


def failures(thing: Any, part: str) -> str:
    report = sf.check(thing)
    assert not report.ok
    return "\n".join(report.outcomes[part].failures)


def test_a_broken_form_is_caught_with_its_position(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMS["chunkwise"]
    plain = form.compute

    def broken(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        y, S = plain(core, S)
        return torch.cat([y[:, :70], y[:, 70:] * (1 + 1e-6)], 1), S

    monkeypatch.setattr(form, "compute", broken)
    text = failures("gla", "forms")
    assert "form chunkwise" in text
    assert "position 70 of 97" in text


class Gated(sf.Layer):
    """A delta rule with exponential gates and a normaliser; its decay is a constant of its own, in float32."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        torch.manual_seed(0)
        self.q, self.k, self.v, self.gate = (nn.Linear(d_model, d_model) for _ in range(4))

    def system(self, u: Tensor, past: Any = None) -> sf.System:
        q, k, v = (f(u).unsqueeze(2) for f in (self.q, self.k, self.v))
        q, k = nn.functional.softplus(q), nn.functional.softplus(k)
        w = -0.5 * nn.functional.normalize(k, dim=-1)
        log_b, decay = self.gate(u)[..., :1], torch.tensor([-0.125])
        return sf.System(q, k, v, log_decay=decay, f=-2 * w, w=w, log_b=log_b, eta="sum", eta_floor=1.0)


def test_a_layer_with_a_constant_of_its_own_keeps_the_contract() -> None:
    report = sf.check(Gated(8))
    assert report.ok, str(report)


NORMALISED = ["deltanet", "gated_deltanet", "kda", "deltaproduct", "mesa", "kalmanet"]


@pytest.mark.parametrize("name", [*NORMALISED, "mlstm", "rwkv6", "rwkv7"])
def test_heads_of_one_normalised_value_are_refused(name: str) -> None:
    with pytest.raises(sf.StateformError, match=r"n_heads is 4, one value a head: expected 2 or more"):
        sf.check(sf.build(name, d_model=4))
    sf.build(name, d_model=8)


@pytest.mark.parametrize("name", NORMALISED)
def test_heads_of_one_normalised_key_are_refused(name: str) -> None:
    with pytest.raises(sf.StateformError, match=r"d_state is 1, one key a head: expected 2 or more"):
        sf.build(name, d_model=8, d_state=1)


def test_what_every_form_has_wrong_alike_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = importlib.import_module("stateform.forms.linear")
    scaled = forms.stabilise

    def broken(system: sf.System, start: Tensor | None = None) -> tuple[sf.System, Tensor]:
        new, m = scaled(system, start)
        return replace(new, f=system.f), m

    monkeypatch.setattr(forms, "stabilise", broken)
    report = sf.check(Gated(8))
    assert not report.outcomes["forms"].failures
    assert "y, own decays, T = 33: differs first at position" in "".join(report.outcomes["equations"].failures)


class Vanishes(REGISTRY["linear"].cls):  # type: ignore[name-defined,misc]
    """Features that round to zero all together."""

    def system(self, u: Tensor, past: Any = None) -> sf.System:
        system = super().system(u, past)
        q, k = (1e-20 * x.log().exp() ** 8 for x in (system.q, system.k))
        return replace(system, q=q.to(u.dtype), k=torch.where(k < 1e-38, 0.0, k))


def test_features_that_round_to_zero_are_caught() -> None:
    torch.manual_seed(0)
    assert "inputs times 10, float32" in failures(Vanishes(16), "equations")


class Overflows(REGISTRY["linear"].cls):  # type: ignore[name-defined,misc]
    """Large values that become infinite."""

    def system(self, u: Tensor, past: Any = None) -> sf.System:
        system = super().system(u, past)
        assert system.v is not None
        return replace(system, v=torch.where(system.v.abs() > 8, torch.inf, system.v))


def test_large_values_that_become_infinite_are_caught() -> None:
    torch.manual_seed(0)
    assert "inputs times 10" in failures(Overflows(16), "equations")


def test_what_diverges_is_compared_as_far_as_its_numbers_go() -> None:
    """Descent without a norm: in float32 its numbers end after some fifty tokens of large inputs."""
    spec = "ttt_linear(averaged=False, inner_norm=False, bias=False, positions='none', block=1)"
    runner = layer_runner(spec, 2, True, {"d_model": 16})
    with torch.no_grad():
        values = runner.drawn().in_precision(torch.float32, 130).system(10 * runner.input(2, 130).float()).v
    assert values is not None and not values.isfinite().all()
    runner.perform("equations", equations)
    assert runner.report.ok, str(runner.report)


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMS["matrix"]
    plain = form.compute
    monkeypatch.setattr(form, "compute", lambda core, S: plain(core, S.detach()))
    assert "form matrix, gradient of initial state" in failures("linear", "gradients")


class Forgets(REGISTRY["gla"].cls):  # type: ignore[name-defined,misc]
    """Drops its state between calls."""

    def forward(self, x: Tensor, *, initial_state: sf.State | None = None, **kwargs: Any) -> Any:
        return super().forward(x, initial_state=None, **kwargs)


def test_a_dropped_state_is_caught_with_the_split() -> None:
    text = failures(Forgets(16), "splits")
    assert "split at [" in text
    assert "differs first at position" in text


class Leaks(REGISTRY["gla"].cls):  # type: ignore[name-defined,misc]
    """Looks at masked tokens: they are set to zero instead of left out, so that they still decay the state."""

    def forward(self, x: Tensor, *, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            x = torch.where(attention_mask[..., None] > 0, x, 0.0)
        return super().forward(x, **kwargs)


def test_a_leaking_mask_is_caught_with_its_position() -> None:
    text = failures(Leaks(16), "padding")
    assert "row 1 padded to [0,13) of 40" in text
    assert "differs first at position" in text


class Peeks(REGISTRY["linear"].cls):  # type: ignore[name-defined,misc]
    """Sees one token of the future."""

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        return super().forward(x + torch.cat([x[:, 1:], x[:, -1:]], 1), **kwargs)


def test_a_look_into_the_future_is_caught() -> None:
    assert "the future changed" in failures(Peeks(16), "packing")


class Mixes(REGISTRY["linear"].cls):  # type: ignore[name-defined,misc]
    """Lets the rows of a batch see each other."""

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        return super().forward(x + x.mean(0, keepdim=True), **kwargs)


def test_rows_that_see_each_other_are_caught() -> None:
    assert "another row of the batch changed" in failures(Mixes(16), "packing")


class Overwrites(REGISTRY["linear"].cls):  # type: ignore[name-defined,misc]
    """Writes into the state it is given."""

    def step(self, x_t: Tensor, state: sf.State, *, inplace: bool = False) -> tuple[Tensor, sf.State]:
        return super().step(x_t, state, inplace=True)


def test_a_state_that_is_changed_is_caught() -> None:
    assert "changed the state it was given" in failures(Overwrites(16), "steps")


class Running(nn.Module):
    """A third-party layer that follows the protocol without knowing of systems: a leaky sum."""

    def __init__(self, d_model: int, leak: float = 0.9, broken_at: int | None = None) -> None:
        super().__init__()
        self.d_model, self.leak, self.broken_at = d_model, leak, broken_at
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, initial_state: sf.State | None = None, return_state: bool = False) -> Any:
        h = x.new_zeros(x.shape[0], self.d_model) if initial_state is None else initial_state["h"]
        out = []
        for t in range(x.shape[1]):
            h = self.leak * h + self.proj(x[:, t])
            out.append(h)
        y = torch.stack(out, 1) if out else x
        if initial_state is not None and self.broken_at is not None:
            y = y.clone()
            y[:, self.broken_at :] += 1e-3
        return (y, sf.State({"h": h})) if return_state else y


def test_a_module_that_only_follows_the_protocol_is_checked() -> None:
    report = sf.check(Running(8))
    assert report.ok, str(report)
    assert set(report.not_offered) == {"step", "attention_mask", "cu_seqlens"}
    assert "init_state" not in inspect.signature(Running.forward).parameters


class Keeps(Running):
    """Keeps its last result, as modules do that show it."""

    def forward(self, x: Tensor, initial_state: sf.State | None = None, return_state: bool = False) -> Any:
        y, state = super().forward(x, initial_state, return_state=True)
        self.seen = {"y": y, "state": [state["h"]]}
        return (y, state) if return_state else y


def test_a_module_that_keeps_results_of_earlier_calls_is_checked() -> None:
    layer = Keeps(8)
    y = layer(torch.randn(1, 3, 8))
    report = sf.check(layer)
    assert report.ok, str(report)
    assert layer.seen["y"] is y and y.requires_grad
    shared = share_weights(layer, layer)
    assert sf.equivalent(shared.a, shared.b, torch.randn(1, 3, 8))


@pytest.mark.parametrize("name", ["gla", "mesa", "softmax"])
@pytest.mark.drawn(0.25)
def test_numbers_are_drawn_where_the_layer_is(name: str) -> None:
    """A default device is for what is made without one: nothing of a check is, and it finds the same."""
    torch.manual_seed(0)
    layer = sf.build(name, d_model=8)
    with torch.device("meta"):
        report = sf.check(layer)
    assert report.ok, str(report)
    assert report == sf.check(layer)


def stretches(x: Tensor, of: Tensor) -> bool:
    """True if each row [B,T,d] is a stretch of a series [L,d] that begins again after its end."""
    every = torch.stack([of.roll(-k, 0).repeat(1 + x.shape[1] // len(of), 1)[: x.shape[1]] for k in range(len(of))])
    return all(bool((every == row).flatten(1).all(1).any()) for row in x)


def test_numbers_that_are_given_are_read_in_place_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.RandomState(0).randn(31, 8)
    given = torch.from_numpy(3 * numbers / np.sqrt((9 * numbers**2).mean()))
    seen: list[Tensor] = []
    own = LayerRunner.input

    def watched(self: LayerRunner, B: int, T: int) -> Tensor:
        seen.append(own(self, B, T))
        assert seen[-1].shape == (B, T, self.d_model) and seen[-1].dtype == self.dtype
        return seen[-1]

    monkeypatch.setattr(LayerRunner, "input", watched)
    torch.manual_seed(0)
    report = sf.check(sf.build("gla", d_model=8), data=3 * numbers)
    assert report.ok, str(report)
    assert seen and all(stretches(x, given.to(x.dtype)) for x in seen if x.dtype == torch.float32)
    assert any(x.shape[1] > 31 for x in seen), "it begins again"
    (note,) = report.notes
    assert (
        note == "inputs are stretches of 31 steps of an array of 8 numbers, scaled to mean square 1, not random draws"
    )
    layer = sf.build("linear", d_model=16)
    with torch.device("meta"):
        report = sf.check(layer, data=numbers, project=True)
    assert report.ok and "8 numbers a step, scaled to mean square 1, mapped to 16 by" in report.notes[0]


class Silent(Running):
    """Goes wrong where a token is silent, as no draw is."""

    def forward(self, x: Tensor, initial_state: sf.State | None = None, return_state: bool = False) -> Any:
        y, state = super().forward(x, initial_state, return_state=True)
        y = torch.where((x == 0).all(-1, keepdim=True), y + float(x.shape[1]), y)
        return (y, state) if return_state else y


def test_what_goes_wrong_on_such_numbers_alone_is_caught() -> None:
    torch.manual_seed(0)
    layer, numbers = Silent(8), np.random.RandomState(0).randn(40, 8)
    numbers[::3] = 0
    assert sf.check(layer).ok
    assert not sf.check(layer, data=numbers).ok


def test_numbers_that_cannot_be_read_are_refused_before_any_work() -> None:
    started: list[str] = []
    numbers = np.random.RandomState(0).randn(9, 4)
    model = sf.LanguageModel("linear", d_model=8, vocab_size=9)
    for thing, options, message in [
        ("linear", {"data": numbers}, r"has 4 numbers a step; linear reads 32: give .*--project"),
        ("linear", {"data": np.full((9, 32), np.nan)}, "holds nan at step 0, number 0"),
        ("linear", {"data": "absent.wav"}, "cannot read the numbers absent.wav"),
        (model, {"data": numbers}, "reads tokens, which are drawn; numbers are for a layer"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            sf.check(thing, on_progress=started.append, **options)  # type: ignore[arg-type]
    assert not started


def test_a_layer_without_weights_is_refused() -> None:
    with pytest.raises(sf.StateformError, match=r"GLA has no weights yet: [\w.]+ is on the device 'meta'; load the"):
        sf.check(sf.build("gla", d_model=8).to("meta"))


def test_a_module_that_continues_wrongly_is_caught() -> None:
    assert "differs first at position" in failures(Running(8, broken_at=1), "splits")


def test_a_report_says_what_it_found() -> None:
    report = sf.check("linear")
    assert bool(report)
    assert "the contract holds" in str(report)
    assert report.to_dict()["ok"] is True
    broken = sf.check(Forgets(16))
    assert "BROKEN" in str(broken)
    assert broken.to_dict()["ok"] is False
