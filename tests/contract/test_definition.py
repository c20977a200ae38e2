"""Whatever happens to a System on its way, what comes out is what the three equations say."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.contract.definition import defined, defined_coefficients
from stateform.forms import exists
from stateform.forms.dense import normaliser
from stateform.system.precision import relative_error, tolerance

from ..drawn import Recipe, covering, differences, recipe_of, recipes
from ..systems import CASES, T, c, r, u

ALLOWED = 10 * tolerance(torch.float64, T)


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float(relative_error(got, want).max())


@pytest.mark.parametrize("name", CASES)
def test_every_structure_is_its_definition(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    want, S = defined(system)
    y, state = sf.run(system, "recurrent", return_state=True)
    assert error(y, want) < ALLOWED
    if S is not None:
        scale = state["log_scale"].exp()[..., None, None] if "log_scale" in state else 1.0
        got = (state["S"] * scale).repeat_interleave(S.shape[1] // state["S"].shape[1], 1)
        assert error(got, S) < ALLOWED


def test_a_definition_is_the_equations_by_hand() -> None:
    """Two tokens of numbers, every part present, written out on paper."""
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    number = one[..., 0]
    system = sf.System(
        2 * one, 3 * one, 5 * one, log_decay=torch.tensor([0.5]).double().log(), f=0.25 * one, w=2 * one, b=7 * number,
        d=11 * number, eta=13 * number,
    )  # fmt: skip
    first = 7 * 3 * 5
    second = (0.5 + 0.25 * 2) * first + 7 * 3 * 5
    y, S = defined(system)
    assert y.flatten().tolist() == [(2 * first + 55) / 13, (2 * second + 55) / 13]
    assert S is not None
    assert S.item() == second
    alpha = defined_coefficients(system)[0, 0, 0]
    assert alpha.tolist() == [[(2 * 21 + 11) / 13, 0.0], [2 * 21 / 13, (2 * 21 + 11) / 13]]


@pytest.mark.parametrize("name", ["phase", "log_decay"])
def test_noise_on_a_constant_decay_is_alike_at_every_step(name: str) -> None:
    """A form rounds exp(i phase) once where it is constant: after t steps that is t roundings, not about sqrt(t)."""
    steps, noise = 400, 2.0**-30
    k = torch.zeros(1, steps, 1, 1, dtype=torch.float64)
    k[:, 0] = 1
    constant = torch.full((1,), -0.01, dtype=torch.float64)
    found = {}
    for of, x in (("constant", constant), ("varying", constant.expand(1, steps, 1))):
        system = sf.System(None, k, None, **{name: x})  # type: ignore[arg-type]
        want, *noisy = (defined(system, noise=noise * (i > 0), seed=i)[0][0, -1] for i in range(9))
        found[of] = sum(float((y - want).abs() / want.abs()) for y in noisy) / 8 / noise
    assert steps / 4 < found["constant"] < 4 * steps
    assert found["varying"] < 4 * steps**0.5


# -- exponential gates with feedback ---------------------------------------------------------------------------------


def gated(**more: Any) -> sf.System:
    """A delta rule with exponential gates and a normaliser."""
    parts = {"log_decay": -u(1, 12, 2), "f": r(1, 12, 2, 3), "w": r(1, 12, 2, 3), "log_b": r(1, 12, 2), "eta": "sum"}
    return sf.System(r(1, 12, 2, 3), r(1, 12, 2, 3), r(1, 12, 2, 3), **{**parts, **more})  # type: ignore[arg-type]


def reset() -> Tensor:
    g = -0.1 * u(1, 12, 2)
    g[:, 5:7] = -torch.inf
    return g


def late() -> Tensor:
    """Nothing is written before the fourth token, nor at the reset."""
    log_b = 3 * r(1, 12, 2)
    log_b[:, :3] = log_b[:, 5:7] = -torch.inf
    return log_b


GATED = {
    "plain": lambda: gated(),
    "no decay": lambda: gated(log_decay=None),
    "exclusive, floor": lambda: gated(exclusive=True, eta_floor=1.0),
    "wide gates": lambda: gated(log_b=20 * r(1, 12, 2), f=0.3 * r(1, 12, 2, 3)),
    "resets": lambda: gated(log_decay=reset()),
    "late writes": lambda: gated(log_b=late(), exclusive=True, d=r(1, 12, 2)),
    "a reset that writes nothing": lambda: gated(log_decay=reset(), log_b=late()),
    "growing": lambda: gated(log_decay=0.1 * u(1, 12, 2)),
    "constant feedback": lambda: gated(f=0.5 * r(2, 3), w=0.5 * r(2, 3), log_decay=-u(2)),
    "shared heads": lambda: gated(f=r(1, 12, 1, 3), w=r(1, 3), log_b=r(1, 12, 1)),
    "complex": lambda: gated(f=0.5 * c(1, 12, 2, 3), phase=r(1, 12, 2)),
    "strong decay": lambda: gated(log_decay=-60 * u(1, 12, 2), log_b=60 * u(1, 12, 2) - 30),
}


@pytest.mark.parametrize("name", GATED)
def test_exponential_gates_with_feedback_are_the_equations(name: str) -> None:
    torch.manual_seed(0)
    system = GATED[name]()
    scaled = sf.State({"S": r(1, 2, 3, 4), "log_scale": 3 * r(1, 2)})
    if system.is_complex:
        scaled = sf.State({**scaled.tensors, "S": c(1, 2, 3, 4)})
    for start in (None, scaled["S"], scaled):
        want, _ = defined(system, initial_state=start)
        noisy, _ = defined(system, initial_state=start, noise=2.0**-30, summed=True)
        there = ~want.isnan()
        lost = float(relative_error(noisy[there], want[there]).max()) * 2.0**30
        for form in exists(system):
            got = sf.run(system, form, initial_state=start)
            assert torch.equal(got.isnan(), want.isnan())
            assert error(got[there], want[there]) < tolerance(torch.float64, 12) + 4 * lost * 2.0**-48, form


def test_exponential_gates_with_feedback_have_the_gradients_of_plain_ones() -> None:
    torch.manual_seed(0)
    system = gated(log_decay=-u(1, 12, 2), d=r(1, 12, 2), eta_floor=0.3)
    plain = sf.System(
        system.q, system.k, system.v, log_decay=system.log_decay, f=system.f, w=system.w, b=system.log_b.exp(),
        d=system.d, eta="sum", eta_floor=0.3,
    )  # fmt: skip

    def gradients(of: sf.System, form: str) -> dict[str, Tensor]:
        leaf = of.map(lambda _, x: x.detach().clone().requires_grad_())
        y = sf.run(leaf, form)
        weights = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos()
        found = torch.autograd.grad((y * weights).sum(), list(leaf.tensors().values()))
        return dict(zip(leaf.tensors(), found, strict=True))

    for form in exists(system):
        want, got = gradients(plain, form), gradients(system, form)
        want["log_b"] = want.pop("b") * system.log_b.exp()
        assert set(got) == set(want)
        for name, g in want.items():
            assert error(got[name], g) < 1e-9, (form, name)


# -- what drawn systems have found -----------------------------------------------------------------------------------

FOUND: dict[str, Recipe] = {
    "a bare S at the start of packed exponential gates: the state came back without its scale": Recipe(
        T=9, n=2, p=2, strength="log_b", eta="sum", state="S", pack=(4, 5)
    ),
    "matrices of a normalised read with several outputs": Recipe(
        B=2, T=5, n=4, p=2, micro=2, q="outputs", eta="sum", floor="tensor", positive=True
    ),
    "matrices in half precision, whose normaliser was rounded to it": Recipe(
        dtype="bfloat16", B=2, T=5, n=4, p=2, eta="sum", positive=True
    ),
    "matrices of several real writes a token behind a complex decay": Recipe(
        T=5, n=2, micro=2, decay="scalar", phase="scalar"
    ),
    "the same with one number in time": Recipe(B=2, T=5, n=4, micro=2, q="outputs", eta="sum", constant=("k", "q")),
    "matrices of a vector state that is divided by its sum and knows its input map": Recipe(
        T=6, n=2, v=False, w_in=True, eta="sum", positive=True
    ),
    "softmax beside a direct term that all but cancels its sum: both sums are rounded": Recipe(
        dtype="float32", B=3, T=64, H=4, readout="exp", decay="scalar", temper="lasting", strength="log_b", spread=0.5,
        d=True, eta="sum", window=1, constant=("log_decay", "log_b"), state="prefix", seed=32980,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_drawn_systems_have_found(name: str) -> None:
    found = differences(FOUND[name])
    assert not found.failures
    assert found.compared
    assert not found.loose
    assert not found.out_of_range


def test_outputs_with_sums_of_their_own_have_no_one_normaliser() -> None:
    system = sf.System(u(1, 5, 2, 3, 4), u(1, 5, 2, 4), r(1, 5, 2, 2), eta="sum")
    for ask in (lambda: system.matrices(normalised=True), lambda: system.spectrum(normalised=True)):
        with pytest.raises(sf.StateformError, match="every output has a normaliser of its own"):
            ask()


def test_an_exclusive_sum_has_no_coordinates_of_its_own_before_the_first_write() -> None:
    system = sf.System(u(1, 5, 2, 3), u(1, 5, 2, 3), r(1, 5, 2, 2), eta="sum", exclusive=True)
    with pytest.raises(sf.StateformError, match="divides the first token by an empty sum"):
        system.matrices(normalised=True)
    want, _ = defined(system)
    got = system.matrices().run(system.v)  # type: ignore[arg-type]
    assert error(got[:, 1:], want[:, 1:]) < tolerance(torch.float64, 5)
    direct = replace(system, d=r(1, 5, 2).abs() + 1)
    want, _ = defined(direct)
    assert error(direct.matrices(normalised=True).run(direct.v), want) < tolerance(torch.float64, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1.0, -3.0, 1e-6])
def test_a_direct_term_beside_tiny_weights_keeps_its_floor(dtype: torch.dtype, size: float) -> None:
    """All weights of the past round to nothing beside d, which alone is what is divided by the floor."""
    torch.manual_seed(0)
    log_b, d = torch.full((1, 5, 1), -150.0).to(dtype), torch.full((1, 5, 1), size).to(dtype)
    q, k, v = (x.to(dtype) for x in (u(1, 5, 1, 3), u(1, 5, 1, 3), r(1, 5, 1, 2)))
    for floor in (None, 0.5, torch.tensor([2.0]).to(dtype)):
        system = sf.System(q, k, v, log_b=log_b, d=d, eta="sum", eta_floor=floor)
        far = sf.System(q, k - 150, v, d=d, eta="sum", eta_floor=floor, readout="exp")
        for x in (system, far):
            want, _ = defined(x)
            for form in exists(x):
                assert error(sf.run(x, form).double(), want) < tolerance(dtype, 5), form
            assert error(x.coefficients().double(), defined_coefficients(x).squeeze(2)) < tolerance(dtype, 5)


@pytest.mark.parametrize("name", [x for x in CASES if x.startswith(("eta", "softmax", "exponential"))])
def test_the_normaliser_is_the_sum_of_the_weights(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    if system.eta is None:
        return
    system = sf.stabilise(system)[0] if system.log_b is not None else system
    system = replace(system, d=u(2, T, system.H)) if system.eta == "sum" else system
    eta = system.eta
    if not isinstance(eta, Tensor):
        ones = torch.ones(2, T, 1, 1, dtype=torch.float64)
        eta = defined(replace(system, v=ones, eta=None, eta_floor=None))[0].squeeze(-1)
    want = eta if system.eta_floor is None else torch.maximum(eta.abs(), system.gate("eta_floor"))
    assert error(normaliser(system), want.expand(2, T, system.H)) < ALLOWED
    if name == "softmax, direct":
        ratio = torch.cat([torch.zeros_like(want[:, :1]), want[:, :-1] / want[:, 1:]], 1)
        assert error(system.spectrum(normalised=True).squeeze(-1).real, ratio) < ALLOWED


def test_systems_that_hold_most_threes_of_parts_are_their_definition() -> None:
    """A short draw in which parts that are rarely drawn together meet: of 1,900 the 200 with most threes."""
    choose = random.Random(0).choice
    many = [recipe for recipe in (recipe_of(choose) for _ in range(2500)) if recipe.B and 2 <= recipe.T <= 40]
    failed = {repr(recipe): found.failures for recipe in covering(many, 200) if (found := differences(recipe)).failures}
    assert not failed


@hypothesis.settings(
    max_examples=int(os.environ.get("STATEFORM_DRAWN", "40")), derandomize=True, deadline=None, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
@hypothesis.given(recipes())
def test_drawn_systems_are_their_definition(recipe: Recipe) -> None:
    assert not differences(recipe).failures
