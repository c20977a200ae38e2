"""Coefficients at any length, decays, impulse responses, horizons and what a stack makes of them."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.analysis import (
    has_weights,
    horizon,
    impulse_response,
    influence,
    influence_band,
    peak_bytes,
    receptive_field,
    retention,
    rollout,
    spectrum,
    systems_of,
)
from stateform.system.core import fold
from tests.independent.helpers import recorded
from tests.systems import CASES, B, N, T, c, decay, feedback, r, ridge, softmax, u

LOOKED_AT = {name: make for name, make in CASES.items() if "output axis" not in name or name.startswith("vector")}


def close(got: Tensor, want: Tensor, scale: Tensor | None = None) -> None:
    """Within 1e-10 of the largest entry wanted."""
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= 1e-10 * float((want if scale is None else scale).abs().max())


@pytest.mark.parametrize("name", sf.names())
@torch.no_grad()
def test_the_coefficients_of_every_layer_make_its_reads(name: str) -> None:
    torch.manual_seed(0)
    layer = sf.build(name, d_model=16).double()
    system = layer.system(r(2, 40, 16))
    if "sink_value" in system.parts:  # which is no token's
        system = dataclasses.replace(system, readout=dataclasses.replace(system.readout, sink_value=None))  # type: ignore[type-var]
    y = sf.run(system, "recurrent")
    assert isinstance(y, Tensor)
    parts = system.contributions()  # alpha_ij v_j, or of a vector state C A_i ... A_{j+1} k_j
    close(parts.sum(-2).transpose(1, 2), y)
    if has_weights(system):
        assert system.v is not None
        v = system.v.repeat_interleave(system.H // system.v.shape[2], 2).expand(2, -1, -1, -1)
        close(torch.einsum("bhij,bjhp->bihp", system.coefficients(), v.to(y.dtype)), y)


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.drawn(0.3)
def test_a_band_is_that_of_the_whole(name: str) -> None:
    torch.manual_seed(0)
    system = LOOKED_AT[name]()
    whole = influence(system)
    for width in (1, 7, 2 * T):
        d = torch.arange(min(width, T))
        j = torch.arange(T)[:, None] - d
        want = torch.where(j >= 0, whole.gather(-1, j.clamp_min(0).expand(*whole.shape[:-1], len(d))), 0.0)
        close(influence_band(system, width), want, whole)


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.drawn(0.3)
def test_an_impulse_response_is_a_column_of_the_coefficients(name: str) -> None:
    torch.manual_seed(0)
    system = LOOKED_AT[name]()
    whole = influence(system)
    for j in (0, 33, -1):
        found = impulse_response(system, j)
        close(found.coefficients, whole[..., j % T :, j], whole)
    assert impulse_response(system, 33, lags=5).coefficients.shape[-1] == 6


@pytest.mark.parametrize("make", [decay, feedback])
@pytest.mark.parametrize("kind", ["identity", "scalar", "diagonal", "complex", "signed", "dense", "constant"])
def test_the_state_after_an_impulse_is_a_product_of_transitions(kind: str, make: object) -> None:
    torch.manual_seed(0)
    system = make(kind)  # type: ignore[operator]
    core = fold(system)
    A = core.transition().dense(N).flatten(2, 3).expand(2, T, 4, N, N)
    k = core.k.flatten(2, 3).expand(2, T, 4, N)
    h, want = k[:, 30].to(A.dtype), []
    for t in range(30, T):
        h = h if t == 30 else (A[:, t] @ h.unsqueeze(-1)).squeeze(-1)
        want.append(h.norm(dim=-1))
    found = impulse_response(system, 30)
    assert found.state is not None
    close(found.state, torch.stack(want, -1))


def constant(a: float, length: int = 200) -> sf.System:
    ones = torch.ones(1, length, 1, 1, dtype=torch.float64)
    return sf.System(ones, ones, ones, log_decay=torch.tensor([a], dtype=torch.float64).log())


def test_half_lives_of_a_known_decay() -> None:
    """0.9^7 = 0.478 is the first power of 0.9 below a half; ln 2 / -ln 0.9 = 6.58."""
    system = constant(0.9)
    assert retention(system).per_head() == [7.0]
    assert impulse_response(system, 100).half_life().tolist() == [[7.0]]
    assert spectrum(system).half_life_per_head() == pytest.approx([math.log(2) / -math.log(0.9)])
    still = constant(1.0)
    assert retention(still).per_head() == [math.inf]
    assert retention(still).to_dict()["half_life"] == [None]
    assert impulse_response(still, 100).half_life().tolist() == [[math.inf]]
    assert spectrum(still).half_life_per_head() == [math.inf]


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "product", "reset", "complex", "constant"])
def test_retention_is_the_product_of_decays(kind: str) -> None:
    torch.manual_seed(0)
    system = decay(kind)
    log = fold(system).decay_log()
    assert log is not None
    a = log.exp().flatten(2, 3).expand(-1 if log.shape[0] > 1 else 1, T, -1, -1)
    found = retention(system, lags=50, queries=[3, 60])
    for query, i in enumerate([3, 60]):
        for d in range(1, 51):
            want = a[:, i - d + 1 : i + 1].prod(1) if d <= i + 1 else torch.zeros_like(a[:, 0])
            torch.testing.assert_close(found.products[:, query, d - 1], want, rtol=1e-12, atol=1e-300)
    assert (found.half_life() > 0).all()


@pytest.mark.parametrize(
    "make", [lambda t: decay_of(t, "scalar"), lambda t: decay_of(t, "delta"), lambda t: decay_of(t, "sum")]
)
def test_a_band_and_an_impulse_take_memory_linear_in_length(make: object) -> None:
    def grown(job: object) -> float:
        return peak_bytes(lambda: job(make(4000))) / peak_bytes(lambda: job(make(1000)))  # type: ignore[operator]

    assert grown(lambda s: influence_band(s, 32)) < 6
    assert grown(lambda s: impulse_response(s, 5)) < 6
    assert grown(lambda s: retention(s, queries=[900])) < 6


def decay_of(length: int, kind: str) -> sf.System:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 2, 8) for _ in range(3))
    if kind == "sum":
        return sf.System(q.abs(), k.abs(), v, eta="sum")
    k = torch.nn.functional.normalize(k, dim=-1)
    delta = {"f": -0.5 * k, "w": k} if kind == "delta" else {}
    return sf.System(q, k, v, log_decay=-0.01 * torch.rand(1, length, 2), **delta)


def test_chosen_queries_take_memory_linear_in_length() -> None:
    def bytes_of(length: int) -> int:
        system = decay_of(length, "delta")
        return peak_bytes(lambda: influence(system, queries=[length // 2, length - 1]))

    assert bytes_of(2000) / bytes_of(500) < 6


# -- a stack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_rollout_with_value_maps_is_the_jacobian_of_the_stream(skip: float) -> None:
    """Three linear layers x <- skip x + sum_h W_O^h alpha^h W_V^h x, their gates held as they are."""
    torch.manual_seed(0)
    d, length, heads = 3, 8, 2
    fixed = [
        sf.System(
            r(1, length, heads, N), r(1, length, heads, N), r(1, length, heads, d), log_decay=-u(1, length, heads)
        ),
        sf.System(u(1, length, heads, N), u(1, length, heads, N), r(1, length, heads, d), eta="sum"),
        sf.System(r(1, length, heads, N), r(1, length, heads, N), r(1, length, heads, d), readout="exp", eta="sum"),
    ]
    W_V, W_O = (r(3, heads, d, d) for _ in range(2))

    def stream(x: Tensor) -> Tensor:
        for at, system in enumerate(fixed):
            v = torch.einsum("hpe,bte->bthp", W_V[at], x)
            read = sf.run(system.map(lambda name, part, v=v: v if name == "v" else part), "recurrent")
            assert isinstance(read, Tensor)
            x = skip * x + torch.einsum("hop,bthp->bto", W_O[at], read)
        return x

    jacobian = torch.autograd.functional.jacobian(stream, r(1, length, d))[0, :, :, 0]
    maps = [W_O[at] @ W_V[at] for at in range(3)]
    found = rollout(fixed, maps=maps, skip=skip)
    assert isinstance(jacobian, Tensor)
    close(found.map[0], jacobian)
    close(found.weights()[0], jacobian.norm(dim=(1, 3)))


def test_complex_weights_and_maps_act_by_their_real_part() -> None:
    """What comes out of a layer is Re(alpha M u): real layers beside it stay as they are."""
    torch.manual_seed(0)
    turning, plain = CASES["complex values"](), decay("scalar")
    M, W = c(4, 3, 3), r(4, 3, 3)
    x, y = r(B, T, 3), r(B, T, 3)
    for system, maps, into in ((turning, M, x), (plain, W, y)):
        alpha = system.coefficients()
        u = torch.einsum("bhij,hoe,bje->bio", alpha.to(maps.dtype), maps, into.to(maps.dtype))
        want = into + (u.real if u.is_complex() else u)
        found = rollout([system], maps=[maps]).map
        assert not found.is_complex()
        close(torch.einsum("bioje,bje->bio", found, into), want)
    both = rollout([turning, plain]).map
    close(both, rollout([plain]).map @ rollout([turning]).map)
    assert not both.is_complex()
    real = rollout([plain], maps=[M]).map
    close(real, rollout([plain], maps=[M.real]).map)


def test_attention_rollout_is_a_special_case() -> None:
    """A_l <- (A_l + I) / 2, multiplied from the last layer to the first (arXiv 2005.00928)."""
    torch.manual_seed(0)
    systems = [softmax(), softmax(2), softmax()]
    want = torch.eye(T, dtype=torch.float64)
    for system in systems:
        want = (system.coefficients().mean(1) + torch.eye(T)) / 2 @ want
    found = rollout(systems, normalise=True)
    close(found.map, want)
    torch.testing.assert_close(found.map.sum(-1), torch.ones(2, T, dtype=torch.float64))


def test_windows_add_up_to_the_predicted_receptive_field() -> None:
    """Three layers of 7 tokens see 1 + 3 * 6 = 19, which is how far the rollout of the same layers reaches."""
    torch.manual_seed(0)
    systems = {str(i): softmax(window=7) for i in range(3)}
    predicted = receptive_field(systems, share=1.0)
    assert predicted.tokens == 19
    reached = rollout(list(systems.values())).receptive_field(share=1.0)
    assert reached[:, 30:].unique().tolist() == [19]


@torch.no_grad()
def test_the_systems_of_a_model_are_those_it_ran() -> None:
    torch.manual_seed(0)
    model = sf.LanguageModel("rwkv7*2 gru softmax", d_model=16, n_heads=2, tokenizer="bytes").double().eval()
    tokens, seen = torch.randint(256, (2, 20)), {}
    hooks = [
        block.mixer.register_forward_hook(lambda m, x, y, at=at: seen.update({at: (x[0], y)}))
        for at, block in enumerate(model.blocks)
    ]
    before = model(tokens).logits
    found = systems_of(model, tokens)
    assert list(found) == [f"blocks.{i}.mixer" for i in range(4)]
    assert all("system" not in vars(block.mixer) for block in model.blocks)
    assert all(s.T == 20 for s in found.values())
    for at, system in enumerate(found.values()):
        layer, (x, y) = model.blocks[at].mixer, seen[at]
        if at == 1:  # its values are mixed with those of the first layer: alone it would give something else
            assert not torch.allclose(layer(x), y)
        read = sf.run(system)
        assert isinstance(read, Tensor)
        torch.testing.assert_close(layer.output(read, x, system, sf.Past()), y, rtol=1e-9, atol=1e-9)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(model(tokens).logits, before)
    assert rollout(list(found.values())).map.shape == (2, 20, 20)


# -- a trained model -------------------------------------------------------------------------------------------------


def test_the_horizon_of_a_trained_model_beside_its_accuracy() -> None:
    """RWKV-7 reverses 20 digits without a mistake and 120 hardly at all, though its horizon goes on growing: in both
    cases it reaches farther than the median digit is away, and the state that its heads need stays below its 16.
    """
    path = Path(__file__).parents[3] / "examples" / "rwkv7_reverse.py"
    example = runpy.run_path(str(path))
    (weights,) = recorded("rwkv7-reverse").glob("*.pth")
    model = example["open_file"](weights)
    short, long = (example["look"](model, length, 4) for length in (20, 120))
    assert (short["all right"], long["all right"]) == (1.0, 0.0)
    assert long["digits right"] < 0.5
    for row in (short, long):
        assert row["horizon 1"] > row["needed"]
        assert 0 < row["state needed"] <= 16
    assert long["horizon 1"] > 3 * short["horizon 1"]


def test_the_relation_of_horizon_and_accuracy_is_said_as_it_is() -> None:
    relation = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "rwkv7_reverse.py"))["relation"]
    row = {"digits": 60.0, "needed": 61.0, "horizon 1": 90.0, "share of the digit": 0.01, "state needed": 10.0,
           "digits right": 1.0, "all right": 0.9}  # fmt: skip
    longer = row | {"digits": 70.0, "needed": 71.0, "horizon 1": 105.0, "share of the digit": 0.009, "all right": 0.0}
    assert "none of them falls with it" in relation([row, longer])
    assert "From 60 to 70 digits" in relation([longer, row])
    assert "what falls with it is the state needed." in relation([row, longer | {"state needed": 5.0}])
    assert "what falls with it is the horizon 1 over" in relation([row, longer | {"horizon 1": 70.0}])
    assert "does not break" in relation([row, row | {"digits": 70.0}])


# -- what is refused, and what results say of themselves -------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (lambda: influence_band(decay("scalar"), 0), "width"),
        (lambda: influence_band(softmax(causal=False), 3), "causal"),
        (lambda: influence_band(decay("scalar"), 10, limit=10.0), "smaller width"),
        (lambda: impulse_response(decay("scalar"), T), "token"),
        (lambda: impulse_response(softmax(causal=False), 3), "causal"),
        (lambda: retention(softmax()), "impulse_response"),
        (lambda: retention(decay("dense")), "impulse_response"),
        (lambda: rollout([]), "systems_of"),
        (lambda: rollout([decay("scalar"), decay("scalar")[:9]]), "same for all layers"),
        (lambda: rollout([decay("scalar")], maps=[r(4, 3, 2)]), "M of layer 0"),
        (lambda: rollout([decay("scalar")], limit=10.0), "fewer tokens"),
        (lambda: rollout([softmax(causal=False)]).receptive_field(), "causal"),
        (lambda: softmax().coefficients(limit=10.0), "influence_band"),
        (lambda: systems_of(torch.nn.Linear(2, 2), torch.zeros(1, 2)), "has none with system"),
    ],
)
def test_what_cannot_be_is_refused(job: object, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(sf.StateformError, match=message):
        job()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["diagonal + feedback", "ridge", "softmax, window", "modes", "micro-steps"])
def test_results_print_and_serialise(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    results = [horizon(system), impulse_response(system, 5), receptive_field({"a": system}), rollout([system])]
    if not system.readout.cached:
        results += [spectrum(system), retention(system)]
    for found in results:
        assert "tokens" in str(found) or "eigenvalues" in str(found)
        json.dumps(found.to_dict(), allow_nan=False)


def test_a_stack_that_is_not_causal_has_a_rollout_and_no_reach() -> None:
    torch.manual_seed(0)
    found = rollout([softmax(causal=False), decay("scalar")])
    assert not found.causal
    assert "later tokens too" in str(found)
    assert rollout([softmax()]).causal


def test_a_ridge_readout_has_its_own_band() -> None:
    torch.manual_seed(0)
    system = ridge(mix=u(4))
    close(influence_band(system, T)[:, :, -1].flip(-1), influence(system, queries=[T - 1])[:, :, 0])
