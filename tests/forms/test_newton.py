"""Newton's method on nonlinear cells: it arrives or says that it did not, with the gradients of the recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.forms.newton import Newton, jacobian, linearized, solve
from stateform.system.precision import tolerance

EXACT = tolerance(torch.float64, 1)


def cell(name: str, d_model: int = 12, **options: Any) -> Any:
    torch.manual_seed(0)
    return sf.build(name, d_model=d_model, **options).double()


def tokens(T: int, width: int = 12, B: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(B, T, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(f: Any, s: Tensor, x: Tensor) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        s = f(s, x[:, t])
        out.append(s)
    return torch.stack(out, 1)


def residual(f: Any, states: Tensor, s0: Tensor, x: Tensor) -> float:
    """The largest violation of the recurrence, step by step."""
    before = [s0, *states.unbind(1)[:-1]]
    return max(float((f(b, x[:, t]) - states[:, t]).abs().max()) for t, b in enumerate(before))


def chaos(gain: float, n: int = 16, T: int = 512) -> tuple[Any, Tensor, Tensor]:
    """A random tanh network, far beyond the gain at which it turns chaotic."""
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(n, n, dtype=torch.float64, generator=generator) * gain * n**-0.5
    x = 0.5 * torch.randn(1, T, n, dtype=torch.float64, generator=generator)
    return (lambda s, u: torch.tanh(s @ W.T + u.unsqueeze(-2))), torch.zeros(1, 1, n, dtype=torch.float64), x


@pytest.mark.parametrize("name", ["lstm", "gru", "slstm", "lem", "ltc"])
@pytest.mark.parametrize("newton", [Newton(), Newton(damped=True)], ids=["newton", "damped"])
def test_cells_converge_from_zero(name: str, newton: Newton) -> None:
    layer, u = cell(name), tokens(512)
    with torch.no_grad():
        found = layer.solve(u, newton)
        _, want = layer(u, return_state=True, form="recurrent")
    assert found.converged, str(found)
    assert found.residual <= found.tolerance == EXACT
    assert newton.damped or found.iterations < 20
    last = want["S"].squeeze(-1)
    assert float((found.states[:, -1] - last).abs().max() / last.abs().max()) < tolerance(torch.float64, 512)


def test_the_diagonal_alone_converges_where_states_mix_little() -> None:
    layer, u = cell("gru"), tokens(200)
    with torch.no_grad():
        layer.h_proj.weight.mul_(0.3)
        quasi, full = layer.solve(u, Newton(quasi=True)), layer.solve(u)
    assert quasi.converged
    assert full.converged
    assert quasi.iterations > full.iterations
    assert float((quasi.states - full.states).abs().max()) < 1e-12


def test_the_diagonal_is_that_of_the_jacobian() -> None:
    f, _, x = chaos(1.5, n=5, T=7)
    s = tokens(7, 5, 1).unsqueeze(2)
    full = jacobian(lambda h: f(h, x), s)
    assert torch.equal(jacobian(lambda h: f(h, x), s, diagonal=True), full.diagonal(dim1=-2, dim2=-1))
    assert float(full.abs().min()) > 0


@pytest.mark.parametrize("gain", [2.5, 4.0])
def test_chaos_is_reported_and_damping_arrives(gain: float) -> None:
    f, s0, x = chaos(gain)
    lost = solve(f, s0, x, 512)
    assert not lost.converged
    assert not lost
    assert lost.iterations == 50
    assert lost.residual > 0.1
    assert "did NOT converge after 50 iterations" in str(lost)
    assert bool(torch.isfinite(lost.states).all())
    found = solve(f, s0, x, 512, Newton(damped=True))
    assert found.converged, str(found)
    # judged by the recurrence itself: two trajectories that both obey it drift apart
    assert residual(f, found.states, s0, x) <= EXACT


def test_two_orders_of_the_same_sums_drift_apart_in_chaos() -> None:
    f, s0, x = chaos(4.0)
    found = solve(f, s0, x, 512, Newton(damped=True))
    apart = (found.states - one_by_one(f, s0, x)).abs().amax((0, 2, 3))
    assert float(apart[:20].max()) < 1e-10
    assert float(apart.max()) > 0.1


def test_overflow_is_reset_and_does_not_spread() -> None:
    """Products of 60 overflow float64 after 174 steps, at first everywhere; the first t states are exact after t."""

    def f(s: Tensor, u: Tensor) -> Tensor:
        return torch.sin(60 * s + u.unsqueeze(-2))

    x, s0 = tokens(300, 1, 1), torch.zeros(1, 1, 1, dtype=torch.float64)
    J = jacobian(lambda s: f(s, x), torch.zeros(1, 300, 1, 1, dtype=torch.float64))
    assert bool(torch.isinf(J.abs().prod()))
    lost = solve(f, s0, x, 300, Newton(max_iter=40))
    assert not lost.converged
    assert bool(torch.isfinite(lost.states).all())
    assert residual(f, lost.states[:, :35], s0, x[:, :35]) <= EXACT
    found = solve(f, s0, x, 300, Newton(damped=True))
    assert found.converged, str(found)


def test_iterations_that_are_too_few_are_no_convergence() -> None:
    layer, u = cell("lstm"), tokens(64)
    with torch.no_grad():
        needed = layer.solve(u).iterations
        assert layer.solve(u, Newton(max_iter=needed)).converged
        short = layer.solve(u, Newton(max_iter=needed - 2))  # the last iteration comes after convergence
    assert not short.converged
    layer.newton = Newton(max_iter=needed - 2)
    with pytest.raises(sf.StateformError, match=r"did NOT converge after \d+ iterations.*form='recurrent'"):
        layer(u, form="newton")


def test_nan_is_no_convergence() -> None:
    found = solve(lambda s, u: s / 0 * 0 + u.unsqueeze(-2), torch.zeros(1, 1, 2), torch.ones(1, 9, 2), 9)
    assert not found.converged
    assert found.residual == float("inf")


@pytest.mark.parametrize("max_iter", [0, -3, 2.5, True, "many"])
def test_a_wrong_number_of_iterations_is_refused(max_iter: Any) -> None:
    with pytest.raises(sf.StateformError, match=r"max_iter is .*expected a whole number, 1 or more"):
        Newton(max_iter=max_iter)


@pytest.mark.parametrize("name", ["lstm", "slstm", "lem"])
@pytest.mark.parametrize("form", ["newton", "scan", "matrix"])
def test_gradients_are_those_of_the_recurrence(name: str, form: str) -> None:
    layer, u = cell(name, 8), tokens(41, 8)
    with torch.no_grad():
        _, start = layer(tokens(5, 8, seed=4), return_state=True)
    gradients = []
    for how in ("recurrent", form):
        S = start["S"].clone().requires_grad_()
        x = u.clone().requires_grad_()
        y, end = layer(
            x, initial_state=sf.State({**start.tensors, "S": S}, start.fingerprint), return_state=True, form=how
        )
        loss = (y * tokens(41, 8, seed=5)).sum() + end["S"].square().sum()
        gradients.append(torch.autograd.grad(loss, [x, S, *layer.parameters()]))
    for name_, want, got in zip(["x", "S", *dict(layer.named_parameters())], *gradients, strict=True):
        assert float((got - want).abs().max() / want.abs().max().clamp_min(1e-9)) < 1e-10, name_


def test_gradients_by_finite_differences() -> None:
    layer, u = cell("gru", 3), tokens(6, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, form="newton"), (u,))


def test_the_linearised_system_has_the_states_of_the_cell() -> None:
    layer, u = cell("slstm"), tokens(50)
    with torch.no_grad():
        system = layer.linearize(u)
        _, state = layer(u, return_state=True)
        y, end = sf.run(system, "recurrent", return_state=True)
        assert system.decay_kind == "dense"
        assert (system.H, system.n, system.p) == (4, 9, 1)
        assert float((end["S"] - state["S"]).abs().max()) < 1e-12
        # A_t is the derivative of a step: by central differences
        s, h = y[:, 9], 1e-6
        x = layer._prepared(u, sf.Past())[2][:, 10]
        for j in range(system.n):
            e = h * torch.eye(system.n, dtype=torch.float64)[j]
            column = (layer.cell(s + e, x) - layer.cell(s - e, x)) / (2 * h)
            assert float((column - system.transition[:, 10, :, :, j]).abs().max()) < 1e-7


def test_heads_are_solved_side_by_side() -> None:
    f, s0, x = chaos(1.2, n=6, T=60)

    def two(s: Tensor, u: Tensor) -> Tensor:
        return torch.cat([f(s[..., :1, :], u), f(s[..., 1:, :], -u)], -2)

    found = solve(two, s0.repeat(1, 2, 1), x, 60)
    alone = solve(f, s0, x, 60), solve(f, s0, -x, 60)
    assert found.converged
    assert float((found.states - torch.cat([a.states for a in alone], 2)).abs().max()) < 1e-12
    assert linearized(two, found.states, s0.repeat(1, 2, 1), x).transition.shape == (1, 60, 2, 6, 6)


class Tiny(sf.Cell):
    """A tanh network in a few lines."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, n=d_model)
        self.x_proj, self.h_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def inputs(self, u: Tensor, past: sf.Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(x + self.h_proj(s))


def test_a_cell_of_a_few_lines_is_torchs_rnn() -> None:
    torch.manual_seed(0)
    layer, other = Tiny(6).double(), nn.RNN(6, 6, batch_first=True).double()
    with torch.no_grad():
        for ours, theirs in (("x_proj", "ih"), ("h_proj", "hh")):
            layer.get_parameter(f"{ours}.weight").copy_(other.get_parameter(f"weight_{theirs}_l0"))
            layer.get_parameter(f"{ours}.bias").copy_(other.get_parameter(f"bias_{theirs}_l0"))
        u = tokens(30, 6)
        for form in layer.forms(u):
            assert float((layer(u, form=form) - other(u)[0]).abs().max()) < 1e-12, form


class Begun(Tiny):
    """One that does not start from zero."""

    def start(self) -> Tensor:
        return torch.linspace(-1, 1, self.n)[None]


def test_a_cell_may_start_from_any_state() -> None:
    torch.manual_seed(0)
    layer, x = Begun(6).double().requires_grad_(False), tokens(9, 6)
    y = layer(x)
    assert torch.equal(y, layer(x, initial_state=layer.init_state(2)))
    want = torch.tanh(layer.inputs(x)[:, 0] + layer.h_proj(layer.start().double()))
    assert float((y[:, 0] - want.flatten(1)).abs().max()) < 1e-12
    system = layer.system(x)  # its first input carries the start, so that it runs from zero
    for form in ("recurrent", "scan", "matrix"):
        assert float((sf.run(system, form).flatten(2) - y).abs().max()) < 1e-12
    report = sf.check(layer.requires_grad_(True))
    assert report.ok, str(report)


def test_a_cell_of_a_few_lines_keeps_the_contract() -> None:
    report = sf.check(Tiny(8))
    assert report.ok, str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_steps_in_float32(dtype: torch.dtype) -> None:
    layer, u = cell("lstm").to(dtype), tokens(40).to(dtype)
    wide = cell("lstm").to(dtype).float()
    y, state = layer(u, return_state=True)
    assert (y.dtype, state["S"].dtype) == (dtype, torch.float32)
    _, want = wide(u.float(), return_state=True)
    assert float((state["S"] - want["S"]).detach().abs().max()) < 4 * torch.finfo(dtype).eps
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())
