"""The ridge readout: each token's equations solved by themselves, as the papers write them, in plain numpy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import stateform as sf
from stateform.analysis import condition, cost, horizon, influence, peak_bytes
from stateform.forms import ridge
from stateform.forms.form import FORMS
from stateform.forms.ridge import problem, steps_for
from stateform.system.core import Core, fold

from .helpers import (
    EXACT,
    assert_close,
    assert_same_function,
    drawn,
    inputs,
    join_heads,
    numbers,
    rms_normalised,
    short_convolution,
    sigmoid,
    silu,
    softplus,
    split_heads,
)


def fitted(q: Any, k: Any, v: Any, b: Any, a: Any, ridge: Any) -> tuple[Any, Any]:
    """y [B,H,T,p] and the last [S | G] of the regression at each token: arrays [B,H,T,...], `ridge` (G) -> R, n x n."""
    B, H, T, n = q.shape
    y, state = np.zeros_like(v), np.zeros((B, H, n, v.shape[-1] + n))
    for i in np.ndindex(B, H):
        for t in range(T):
            # every sum anew, weighted by what has been forgotten since
            weights = np.array([b[i][j] * np.prod(a[i][j + 1 : t + 1]) for j in range(t + 1)])
            keys, values = k[i][: t + 1], v[i][: t + 1]
            G, S = (keys.T * weights) @ keys, (keys.T * weights) @ values
            y[i][t] = np.linalg.solve(G + ridge(G, i[1]), q[i][t]) @ S
        state[i] = np.concatenate([S, G], 1)
    return y, state


def projected(layer: Any, x: Tensor, letters: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """q, k, v [B,H,T,...] of a layer, q and k of length 1, with the short convolutions of `letters`."""
    w, out = numbers(layer), []
    for s in "qkv":
        z = x.numpy() @ w[f"{s}_proj.weight"].T
        z = split_heads(silu(short_convolution(z, w[f"{s}_conv.weight"])) if s in letters else z, layer.n_heads)
        out.append(z if s == "v" else z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6))
    return out, w


def per_head(x: Tensor, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A linear map to a number per head, [B,H,T]."""
    return np.moveaxis(x.numpy() @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0), 2, 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"d_state": 5, "gated": True, "least_ridge": 0.1}, {"solver": "cg"}, {"solver": "chebyshev", "d_conv": 2}],
)
def test_mesa_is_the_regression_of_the_paper(options: dict[str, Any]) -> None:
    """arXiv 2506.05233: Lambda diagonal, on the same G as S in all but the values."""
    layer, x = drawn("mesa", d_model=16, n_heads=2, **options), inputs(2, 13, 16)
    (q, k, v), w = projected(layer, x, "qk")
    ridge = softplus(w["ridge"]) + options.get("least_ridge", 0.25)
    a, beta = sigmoid(per_head(x, w, "a_proj")), sigmoid(per_head(x, w, "beta_proj"))
    y, state = fitted(q, k, v, beta, a, lambda _, head: np.diag(ridge[head]))
    y = join_heads(rms_normalised(y, 1e-5) * w["norm.weight"])
    if options.get("gated"):
        y = y * silu(x.numpy() @ w["gate_proj.weight"].T)
    assert_same_function(layer, x, y @ w["out_proj.weight"].T, lambda s: s["S"], state)


@pytest.mark.parametrize(
    "options",
    [{}, {"mixed": False, "d_state": 5}, {"input_gate": False, "solver": "chebyshev", "ridge_ratio": 0.1}],
)
def test_kalmanet_is_the_regression_of_the_paper(options: dict[str, Any]) -> None:
    """arXiv 2511.21016: lambda_t = r ||G_t||_F, and the connection x = q + alpha (x - q)."""
    layer, x = drawn("kalmanet", d_model=16, n_heads=2, **options), inputs(2, 13, 16)
    (q, k, v), w = projected(layer, x, "qkv")
    ratio, q = options.get("ridge_ratio", 0.02), q / math.sqrt(q.shape[-1])
    a = np.exp(-np.exp(w["A_log"])[:, None] * softplus(per_head(x, w, "a_proj") + w["dt_bias"][:, None]))
    b = np.square(sigmoid(per_head(x, w, "beta_proj")) + 1e-6) if layer.beta_proj else np.ones(a.shape)
    y, state = fitted(q, k, v, b, a, lambda G, _: ratio * np.linalg.norm(G) * np.eye(len(G)))
    if layer.alpha_proj:
        alpha = sigmoid(per_head(x, w, "alpha_proj"))[..., None]
        # with a ridge so large that the keys do not count the answer is that of linear attention
        linear, _ = fitted(q * 1e9, k, v, b, a, lambda G, _: 1e9 * np.eye(len(G)))
        y = alpha * y + (1 - alpha) * linear
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) * silu(x.numpy() @ w["gate_proj.weight"].T)
    if layer.alpha_proj:  # G + 1e9 I is I to nine digits
        with torch.no_grad():
            assert_close(layer(x), y @ w["out_proj.weight"].T, "output", 1e-7)
    else:
        assert_same_function(layer, x, y @ w["out_proj.weight"].T, lambda s: s["S"], state)


def regression(T: int = 40, n: int = 6, dtype: torch.dtype = torch.float64, **more: Any) -> sf.System:
    generator = torch.Generator().manual_seed(3)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = {"b": r(2, T, 2).sigmoid(), "log_decay": -0.05 * r(2, T, 2).abs(), "ridge": 0.3 + r(2, n).sigmoid(), **more}
    system = sf.System(r(2, T, 2, n), r(2, T, 2, n), r(2, T, 2, 3), readout="ridge", **parts)
    return system.to(dtype)


def test_no_steps_are_linear_attention_with_scaled_queries() -> None:
    system = regression(solver=sf.Solver("cg", steps=0))
    k, b = system.k, system.b
    assert b is not None and system.q is not None
    # diag G_t is linear attention from one key to the values k * k
    ones = torch.ones(2, 40, 2, 1, dtype=torch.float64)
    diagonal = sf.run(sf.System(ones, ones, k * k, b=b, log_decay=system.log_decay))
    q = system.q / (diagonal + system.tensors()["ridge"])
    want = sf.run(sf.System(q, k, system.v, b=b, log_decay=system.log_decay))
    for form in ("recurrent", "chunkwise", "matrix"):
        assert_close(sf.run(system, form), want, form)
        first, state = sf.run(system[:17], form, return_state=True)
        second = sf.run(system[17:], form, initial_state=state)
        assert_close(torch.cat([first, second], 1), want, f"{form}, in two pieces")


@pytest.mark.parametrize("form", ["recurrent", "chunkwise", "matrix"])
def test_written_out_a_few_tokens_at_a_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = regression()
    want = sf.run(system, form)
    monkeypatch.setattr(ridge, "TILE", 4 * 2 * 2 * 6 * 6 * 7)  # seven tokens
    assert len(list(problem(system, fold(system), fold(system).zero_state(), FORMS[form])[0].written())) == 6
    assert_close(sf.run(system, form), want, "in stretches of seven tokens")


def test_mix_goes_from_linear_attention_to_the_regression() -> None:
    whole = sf.run(regression())
    plain = regression()
    linear = sf.run(sf.System(plain.q, plain.k, plain.v, b=plain.b, log_decay=plain.log_decay))
    for share in (0.0, 0.25, 1.0):
        mixed = sf.run(regression(mix=torch.full((2,), share, dtype=torch.float64)))
        assert_close(mixed, share * whole + (1 - share) * linear, f"mix = {share}")


def test_few_orthogonal_keys_are_recalled_exactly() -> None:
    """With keys e_1 .. e_n and a ridge that vanishes, reading at e_j gives v_j, overwritten or not scaled by b."""
    n = 5
    k = torch.eye(n, dtype=torch.float64)[None, :, None]
    v, b = inputs(1, n, 3)[:, :, None], torch.rand(1, n, 1, dtype=torch.float64) + 0.1
    q = k[:, :1].expand(1, n, 1, n)  # ask for the first at all times
    y = sf.run(sf.System(q, k, v, b=b, log_decay=-0.5 * b, readout="ridge", ridge=torch.full((1,), 1e-12).double()))
    assert_close(y, v[:, :1].expand_as(y), "recalled", 1e-9)


@pytest.mark.parametrize("method", ["cg", "chebyshev"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_iterations_reach_the_exact_solution_and_say_so(method: Any, relative: bool, dtype: torch.dtype) -> None:
    ridge = torch.full((2,), 0.02, dtype=torch.float64) if relative else 0.3 + torch.rand(2, 6, dtype=torch.float64)
    exact = regression(ridge=ridge, relative=relative, dtype=dtype)
    found = condition(dataclasses.replace(exact, solver=sf.Solver(method)))
    eps, worst = torch.finfo(dtype).eps, found.worst
    assert worst <= float(found.bound.max()) * (1 + 1e3 * eps)
    assert float(found.residual.max()) < 200 * eps * (worst if method == "chebyshev" else worst**0.5)
    y = sf.run(dataclasses.replace(exact, solver=sf.Solver(method)), "chunkwise")
    assert_close(y, sf.run(exact, "chunkwise"), method, 100 * eps * worst)
    # fewer steps leave more (conjugate gradients end after n = 6)
    left = [
        float(condition(dataclasses.replace(exact, solver=sf.Solver(method, steps=k))).residual.max())
        for k in (0, 2, 4)
    ]
    assert left[0] > left[1] > left[2] > float(found.residual.max())


def test_condition_numbers() -> None:
    system = regression(ridge=torch.full((2,), 0.02, dtype=torch.float64), relative=True)
    found = condition(system, tokens=[0, 7, -1])
    assert found.tokens == [0, 7, 39]
    assert found.numbers.shape == found.bound.shape == found.residual.shape == (2, 3, 2)
    assert_close(found.numbers[:, 0], torch.full((2, 2), 51.0), "one key: the bound itself", 1e-9)
    assert_close(found.bound, torch.full((2, 3, 2), 51.0), "1 + 1/r", EXACT)
    _, state = sf.run(system[:8], return_state=True)
    G = state["S"][..., 3:].numpy()
    want = [[np.linalg.cond(M + 0.02 * np.linalg.norm(M) * np.eye(6)) for M in row] for row in G]
    assert_close(found.numbers[:, 1], np.array(want), "by singular values", 1e-9)
    with pytest.raises(sf.StateformError, match='only "ridge" solves'):
        condition(sf.System(system.q, system.k, system.v))


def test_steps_follow_from_the_condition_number() -> None:
    assert steps_for(51.0, 2.0**-23) < 64 < steps_for(51.0, 2.0**-52)
    root = math.sqrt(51)
    assert 2 * ((root - 1) / (root + 1)) ** steps_for(51.0, 1e-6) <= 1e-6
    assert 2 * ((root - 1) / (root + 1)) ** (steps_for(51.0, 1e-6) - 1) > 1e-6


@pytest.mark.parametrize("form", ["recurrent", "chunkwise", "matrix"])
@pytest.mark.parametrize("solver", [sf.Solver(), sf.Solver("cg"), sf.Solver("chebyshev")], ids=lambda s: s.method)
@pytest.mark.parametrize(
    "relative, second", [(False, True), (True, False), pytest.param(True, True, marks=pytest.mark.slow)]
)
@pytest.mark.drawn(0.25)
def test_gradients_by_finite_differences(form: str, solver: sf.Solver, relative: bool, second: bool) -> None:
    s = regression(T=3, n=2, mix=torch.rand(2, 3, 2).double(), relative=relative)
    s = s.gather(lambda x, _: x[:1]).select_heads([0])
    whole = [s.q, s.k, s.v, s.b, s.log_decay, s.parts["ridge"], s.parts["mix"], state_of(s)]
    leaves = [x.detach().clone().requires_grad_() for x in whole]  # type: ignore[union-attr]

    def compute(q: Tensor, k: Tensor, v: Tensor, b: Tensor, g: Tensor, R: Tensor, mix: Tensor, S: Tensor) -> Any:
        S = torch.cat([S[..., :3], (S[..., 3:] + S[..., 3:].mT) / 2], -1)  # G is symmetric, differences are not
        parts = sf.System(
            q, k, v, b=b, log_decay=g, ridge=R, mix=mix, readout="ridge", relative=relative, solver=solver
        )
        y, end = sf.run(parts, form, initial_state=S, return_state=True)
        return y, end["S"]

    assert torch.autograd.gradcheck(compute, leaves)
    if form == "chunkwise" and solver.method == "exact":
        assert torch.autograd.gradcheck(compute, leaves, check_forward_ad=True, check_backward_ad=False)
        if second:
            assert torch.autograd.gradgradcheck(compute, leaves)


def state_of(s: sf.System) -> Tensor:
    """S after a few tokens of a system."""
    return sf.run(s, return_state=True)[1]["S"]


def test_functional_transforms() -> None:
    s = regression(T=9)

    def loss(k: Tensor) -> Tensor:
        return sf.run(dataclasses.replace(s, k=k)).square().sum()  # type: ignore[union-attr]

    both = torch.stack([s.k, 2 * s.k])
    for got, k in zip(vmap(grad(loss))(both), both, strict=True):
        leaf = k.clone().requires_grad_()
        assert_close(got, torch.autograd.grad(loss(leaf), leaf)[0], "vmap of grad")


def test_an_iteration_costs_one_run_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    form, lengths = FORMS["chunkwise"], []
    plain = form.compute

    def counted(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(core.length)
        return plain(core, S)

    monkeypatch.setattr(form, "compute", counted)
    sf.run(regression(solver=sf.Solver("cg", steps=7)), "chunkwise")
    assert lengths == [40] * (7 + 3)  # diag G, the first residual, seven steps, the read


@torch.no_grad()
@pytest.mark.parametrize("solver", [sf.Solver(), sf.Solver("cg", steps=5)], ids=lambda s: s.method)
@pytest.mark.drawn(0.4)
def test_memory_is_linear_in_length(solver: sf.Solver) -> None:
    n = 32
    short, long = 2048, 8192
    sizes = {T: peak_bytes(lambda T=T: sf.run(regression(T, n, solver=solver), "chunkwise")) for T in (short, long)}
    assert sizes[long] < 4.5 * sizes[short]
    assert sizes[long] < 0.5 * 2 * long * 2 * n * n * 8  # less than half of what all G_t would take
    system = regression(long, n, solver=solver)
    assert peak_bytes(lambda: sf.run(system, "chunkwise")) < 4 * cost(system, "chunkwise").bytes


def test_what_it_looks_at() -> None:
    s = regression()
    alpha = s.coefficients()
    assert s.v is not None
    assert_close(torch.einsum("bhij,bjhp->bihp", alpha, s.v), sf.run(s), "alpha v")
    assert_close(influence(s, queries=[39])[:, :, 0], alpha[:, :, 39], "influence")
    assert all(1 <= x <= 40 for x in horizon(s).per_head())
    assert s.state_size == 2 * 6 * (3 + 6)
    assert "ridge readout; state 2 x 6 x (3 + 6)" in repr(s)
    assert s.forms()["convolution"] is not None and s.forms()["scan"] is not None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no ridge": ({"ridge": None}, "needs the ridge R"),
    "diagonal decay": ({"log_decay": -torch.ones(2, 40, 2, 6).double()}, "takes a scalar decay"),
    "feedback": ({"f": torch.ones(2, 6).double(), "w": torch.ones(2, 6).double()}, "takes a scalar decay"),
    "sign": ({"sign": -torch.ones(2).double()}, "leave out sign"),
    "phase": ({"phase": torch.ones(2).double()}, "needs real q, k and v"),
    "normaliser": ({"eta": "sum"}, "not a sum of weights"),
    "window": ({"window": 3}, "forgets by its decay"),
    "not causal": ({"causal": False}, "a ridge readout is causal"),
    "no values": ({"v": None}, "give q and v"),
    "no queries": ({"q": None}, "give q and v"),
    "wrong keys": ({"ridge": torch.ones(2, 5).double()}, "number of keys"),
    "a number": ({"ridge": 0.1}, "ridge is a float; expected a tensor"),
    "solver": ({"solver": "cg"}, "expected a Solver"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_systems(name: str) -> None:
    parts, message = BAD[name]
    with pytest.raises(sf.StateformError, match=message):
        dataclasses.replace(regression(), **parts)


def test_bad_values_and_solvers() -> None:
    with pytest.raises(sf.StateformError, match=r"ridge holds 0.0 at index \(1,\).*expected numbers above 0"):
        sf.run(regression(ridge=torch.tensor([1.0, 0.0]).double()))
    with pytest.raises(sf.StateformError, match=r"b holds -1.0 at index \(0,\).*expected 0 or more"):
        sf.run(regression(b=-torch.ones(2).double()))
    with pytest.raises(sf.StateformError, match="expected 'exact', 'cg' or 'chebyshev'"):
        sf.Solver("jacobi")  # type: ignore[arg-type]
    for steps in (-1, 2.5, True):
        with pytest.raises(sf.StateformError, match="expected 0 or more, or None"):
            sf.Solver("cg", steps=steps)  # type: ignore[arg-type]
    with pytest.raises(sf.StateformError, match="the exact solver has no steps"):
        sf.Solver(steps=3)
    with pytest.raises(sf.StateformError, match='for readout "ridge"'):
        dataclasses.replace(regression(), readout="linear", ridge=torch.ones(2).double())  # type: ignore[call-arg]
    tiny = regression(dtype=torch.float32, ridge=torch.full((2,), 1e-12).double())
    with pytest.raises(sf.StateformError, match=r"not positive definite in float32.*expected a larger ridge"):
        sf.run(dataclasses.replace(tiny, k=tiny.k[:, :, :, :1].expand(-1, -1, -1, 6).contiguous()))
    system, state = regression(), torch.zeros(2, 2, 6, 3, dtype=torch.float64)
    with pytest.raises(sf.StateformError, match="the last 6 columns are the Gram matrix"):
        sf.run(system, initial_state=state)
