"""The control view of constant systems, against formulas written out here, and balanced reduction within its bound."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import stateform as sf
from stateform.analysis import (
    StateSpace,
    balred,
    ctrb,
    excited,
    freqresp,
    frequencies,
    gram,
    hautus,
    hsvd,
    minimal,
    obsv,
    poles,
    statespace,
)
from stateform.analysis.linear.statespace import written
from stateform.contract.draws import redraw
from stateform.convert import kernel, reduce
from tests.systems import CASES, B, N, P, T, c, decay, feedback, r, softmax, u

CONSTANT = ("s4d", "s4", "dss", "s5", "lru", "lssl", "short_conv")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(got: Any, want: Any, rtol: float = 1e-11) -> None:
    got, want = (a.detach().resolve_conj().numpy() if isinstance(a, Tensor) else np.asarray(a) for a in (got, want))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= rtol * np.abs(want).max()


def stable(n: int = 7, i: int = 2, o: int = 3, H: int = 2, radius: float = 0.9) -> StateSpace:
    """Dense matrices with a spectral radius below 1."""
    A = r(H, n, n)
    A = radius * A / torch.linalg.eigvals(A).abs().amax(-1)[:, None, None]
    return statespace(A, r(H, n, i), r(H, o, n), r(H, o, i))


def layer_system(name: str, drawn: bool = True) -> sf.System:
    """With weights that are not those of its initialisation, unless those are wanted."""
    layer = sf.build(name, d_model=4).double()
    if drawn:
        redraw(layer, torch.Generator().manual_seed(1), "own")
    return layer.system(r(2, 30, 4)).detach()


SYSTEMS: dict[str, Callable[[], sf.System]] = {
    **{name: (lambda name=name: layer_system(name)) for name in CONSTANT},
    "complex diagonal": CASES["constant"],
    "complex diagonal, exclusive": CASES["constant, exclusive"],
    "dense": CASES["dense constant"],
    "dense, feedback": lambda: feedback("dense constant"),
    "complex feedback, exclusive": lambda: feedback("constant", exclusive=True),
    "complex keys of a real decay": lambda: sf.System(c(4, N), c(4, N), r(B, T, 4, P), log_decay=-u(4)),
    "complex keys of a dense decay": lambda: sf.System(c(4, N), c(4, N), r(B, T, 4, P), transition=0.2 * r(4, N, N)),
    "direct term, divided": lambda: decay("dense constant", b=u(4), d=r(4), eta=r(4), eta_floor=0.7),
    "exponential gate": lambda: decay("constant", log_b=r(4), d=r(4)),
    "output axis": lambda: sf.System(r(4, 3, N), r(4, N), r(B, T, 4, P), log_decay=-u(4, N)),
    "output axis, direct term": lambda: sf.System(r(4, 3, N), r(4, N), r(B, T, 4, P), log_decay=-u(4, N), d=r(4)),
    "grouped queries": lambda: sf.System(r(4, N), r(2, N), r(B, T, 2, P), log_decay=-u(2, N), d=r(4)),
    "shared state, outputs": lambda: sf.System(r(4, 3, N), r(1, N), r(B, T, 1, P), log_decay=-u(1, N), d=r(4)),
    "whole state": lambda: sf.System(None, r(4, N), r(B, T, 4, P), log_decay=-u(4, N)),
    "vector, whole state": lambda: sf.System(None, r(B, T, 4, N), None, log_decay=-u(4, N), b=u(4)),
    "vector, outputs": lambda: sf.System(r(4, 3, N), r(B, T, 4, N), None, log_decay=-u(4, N), phase=u(4, N)),
    "vector, direct term": lambda: sf.System(r(4, N), r(B, T, 2, N), None, transition=0.2 * r(2, N, N), d=r(B, T, 4),
                                             eta=1 + u(4)),
    "modes": CASES["modes"],
}  # fmt: skip


def on_its_input(system: sf.System, s: StateSpace) -> Tensor:
    """y of the matrices on the input of the system, in the shape of the system's own y (real)."""

    def of(x: Tensor) -> Tensor:
        return sf.run(s.system(x))[..., 0].unflatten(2, (s.H, -1))  # type: ignore[index]

    if system.v is not None:
        y = torch.stack([of(v.unsqueeze(-1)) for v in system.v.unbind(-1)], -1)  # [B,T,state heads,outputs,p]
        y = y.flatten(2, 3).unflatten(2, (system.H, -1))
        return y if system.q is None or system.q.ndim == 3 else y.squeeze(3)
    if system.w_in is not None:  # what the input was
        k = system.k.flatten(2)
        W = system.w_in.flatten(0, 1)
        x = torch.cat([k.real, k.imag], -1) @ torch.linalg.pinv(torch.cat([W.real, W.imag])).mT
        return of(x.unsqueeze(2))
    k = torch.cat([system.k.real, system.k.imag], -1) if system.k.is_complex() else system.k
    if system.w_out is not None:  # of every head the real part, then the imaginary one, of its key
        k = k.flatten(2).unsqueeze(2)
    y = of(k).flatten(2, 3).unflatten(2, (1 if system.w_out is not None else system.H, -1))
    if system.d is not None:  # added to the outputs, whatever the input is
        y = y + (system.d / system.eta).unsqueeze(-1)
    return y


# -- a system as matrices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_matrices_are_the_same_function(name: str) -> None:
    system = SYSTEMS[name]()
    close(on_its_input(system, written(system)), sf.run(system))


def test_a_complex_state_that_is_read_as_it_is_gives_both_parts() -> None:
    system = sf.System(None, c(B, T, 2, N), None, log_decay=-u(2, N), phase=u(2, N))
    y = sf.run(system)
    assert isinstance(y, Tensor)
    close(on_its_input(system, written(system)), torch.cat([y.real, y.imag], -1))


def test_several_inputs_and_a_direct_term() -> None:
    s, x = stable(), r(1, 9, 2, 2)
    h, y = torch.zeros(2, 7, dtype=torch.float64), []
    for t in range(9):
        y.append(torch.einsum("hon,hn->ho", s.C, h) + torch.einsum("hoi,hi->ho", s.D, x[0, t]))
        h = torch.einsum("hmn,hn->hm", s.A, h) + torch.einsum("hni,hi->hn", s.B, x[0, t])
    got = sf.run(s.system(x))
    assert isinstance(got, Tensor)
    close(got[0, ..., 0], torch.stack(y).flatten(1))


def test_the_bilinear_map_is_scipys() -> None:
    A, B_, C, D = (x.numpy() for x in (r(5, 5), r(5, 2), r(3, 5), r(3, 2)))
    s = statespace(A, B_, C, D, dt=0.3)
    want = scipy.signal.cont2discrete((A, B_, C, D), 0.3, method="bilinear")
    for got, x in zip((s.A, s.B, s.C, s.D), want[:4], strict=True):
        close(got[0], x)


@pytest.mark.parametrize("name", ["s4d", "s4", "lssl"])
def test_poles_are_the_spectrum_and_its_conjugates(name: str) -> None:
    system = layer_system(name)
    values = system.spectrum()[0, 0]
    want = torch.cat([values, values.conj()], -1) if system.is_complex else values

    def ordered(x: Tensor) -> np.ndarray:
        return np.sort_complex(np.round(x.numpy(), 7))

    # eigenvalues of a matrix that is far from normal (LSSL, S4) are known to a root of rounding
    close(ordered(poles(system)), ordered(want), 1e-6)


# -- Gramians ------------------------------------------------------------------------------------------------------


def test_gramians_solve_the_lyapunov_equations() -> None:
    s = stable(radius=0.99)
    for h in range(s.H):
        A, B_, C = (x[h].numpy() for x in (s.A, s.B, s.C))
        close(gram(s, "c")[h], scipy.linalg.solve_discrete_lyapunov(A, B_ @ B_.T), 1e-10)
        close(gram(s, "o")[h], scipy.linalg.solve_discrete_lyapunov(A.T, C.T @ C), 1e-10)
    F = gram(s, "cf")
    close(F @ F.mT, gram(s, "c"))


@pytest.mark.parametrize("horizon", [1, 2, 7, 20])
def test_gramians_of_a_horizon_are_sums(horizon: int) -> None:
    s = stable(radius=1.1)  # growing: only a horizon makes sense
    P, Q, power = torch.zeros_like(s.A), torch.zeros_like(s.A), torch.eye(s.N, dtype=torch.float64).expand_as(s.A)
    for _ in range(horizon):
        P, Q = P + power @ s.B @ (power @ s.B).mT, Q + (s.C @ power).mT @ s.C @ power
        power = power @ s.A
    close(gram(s, "c", horizon), P)
    close(gram(s, "o", horizon), Q)


@pytest.mark.parametrize("name", ["dense", "complex", "diagonal, exclusive", "dense + feedback, b, d", "eta given",
                                  "grouped queries", "whole state"])  # fmt: skip
@pytest.mark.parametrize("horizon", [1, 2, 13])
def test_gramians_of_a_varying_system_follow_the_recursion(name: str, horizon: int) -> None:
    system = CASES[name]()
    M = replace(system, d=None)[:horizon].matrices()
    p, shared = system.p, system.H // system.state_heads
    A, W, C = M.Lambda[..., ::p, ::p], M.B[..., ::p, ::p], M.C[..., ::p, ::p]
    if name == "whole state":  # its input is k itself
        W = torch.eye(system.n, dtype=torch.float64).expand_as(A)
    if A.is_complex():
        A = torch.cat([torch.cat([A.real, -A.imag], -1), torch.cat([A.imag, A.real], -1)], -2)
        W, C = torch.cat([W.real, W.imag], -2), torch.cat([C.real, -C.imag], -1)
    shape = (system.B, system.state_heads, A.shape[-1], A.shape[-1])
    P, Q = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    heads = range(0, system.H, shared)
    for t in range(horizon):
        a, w = A[:, t, ::shared], W[:, t, ::shared]
        P = a @ P @ a.mT + w @ w.mT
    for t in reversed(range(horizon)):
        own = torch.stack([sum(C[:, t, h + i].mT @ C[:, t, h + i] for i in range(shared)) for h in heads], 1)
        at = t if system.exclusive else min(t + 1, horizon - 1)  # at the end Q is 0
        a = A[:, at, ::shared]
        Q = own + a.mT @ Q @ a
    close(gram(system, "c", horizon), P)
    close(gram(system, "o", horizon), Q)


def test_a_constant_system_written_out_in_time_has_the_same_gramians() -> None:
    system = CASES["dense constant"]()
    varying = replace(system, k=system.k.expand(B, T, 4, N), transition=system.transition.expand(B, T, 4, N, N))
    for kind in ("c", "o"):
        close(gram(varying, kind, 11), gram(system, kind, 11).expand(B, -1, -1, -1))  # type: ignore[arg-type]


# -- Hankel values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s4d", "dense", "dense, feedback", "complex diagonal, exclusive", "lssl"])
def test_hankel_values_are_those_of_the_hankel_matrix(name: str) -> None:
    """The matrix of the kernel's numbers, which never saw A."""
    system, half = SYSTEMS[name](), 80
    K = kernel(replace(system, d=None), 2 * half)
    K = K[:, 1:] if system.exclusive else K[:, :-1]
    want = torch.linalg.svdvals(K.unfold(1, half, 1))[:, : written(system).N]
    got = hsvd(system, horizon=half).values
    assert float((got - want).abs().max()) <= 1e-12 * float(want.max())


def test_hankel_values_do_not_depend_on_coordinates() -> None:
    s, M = stable(), r(2, 7, 7)
    turned = StateSpace(M @ s.A @ M.inverse(), M @ s.B, s.C @ M.inverse(), s.D)
    close(hsvd(turned).values, hsvd(s).values, 1e-9)


def test_hankel_values_of_one_state() -> None:
    s = statespace([[0.5]], [[3.0]], [[2.0]])
    close(hsvd(s).values, [[6 / (1 - 0.25)]])  # P = 9 / (1 - a^2), Q = 4 / (1 - a^2)


# -- controllability -----------------------------------------------------------------------------------------------


def test_ctrb_and_obsv_are_powers() -> None:
    s = stable()
    powers = [torch.linalg.matrix_power(s.A, k) for k in range(s.N)]
    close(ctrb(s), torch.cat([M @ s.B for M in powers], -1))
    close(obsv(s), torch.cat([s.C @ M for M in powers], -2))


def test_hautus_finds_the_mode_that_is_not_reached() -> None:
    M = r(4, 4)
    for modulus, stabilisable in ((0.5, True), (1.2, False)):
        A = torch.diag(torch.tensor([0.9, 0.3, -0.7, modulus], dtype=torch.float64))
        B_ = torch.tensor([1, 2, 1, 0], dtype=torch.float64)
        s = statespace(M @ A @ M.inverse(), M @ B_[:, None], r(1, 4))
        found = hautus(s)
        assert not found.controllable and found.observable and found.detectable
        assert found.stabilisable is stabilisable
        unreached = found.poles[found.reached < found.tol]
        assert len(unreached) == 1 and abs(complex(unreached[0]) - modulus) < 1e-8
        dual = hautus(statespace(s.A[0].T, s.C[0].T, s.B[0].T))
        assert dual.controllable and not dual.observable and dual.detectable is stabilisable


def test_the_order_of_a_minimal_realisation() -> None:
    A = torch.block_diag(r(3, 3) / 4, r(2, 2) / 4, r(2, 2) / 4)
    M, B_, C = r(7, 7), r(7, 1), r(1, 7)
    B_[3:5], C[:, 5:] = 0, 0  # two states unreached, two unseen
    for scale in (1.0, 8.0):  # decaying, and growing
        s = statespace(scale * M @ A @ M.inverse(), M @ B_, C @ M.inverse())
        assert (float(poles(s).abs().max()) < 1) is (scale == 1.0)
        assert minimal(s).orders == [3] and not minimal(s).minimal
    assert minimal(stable()).minimal


def hidden(order: int, unreached: Tensor, unseen: Tensor, radius: float = 1.2, spread: float = 1.0) -> StateSpace:
    """A system of a known order: poles of modulus 0.05 to `radius`, under modes that inputs do not reach and modes that
    outputs do not show, each drawn to one of the given moduli; in coordinates of the condition number `spread`.
    """
    a, b = len(unreached), len(unseen)
    n = order + a + b
    reached = radius * torch.linspace(1, 0.05, order, dtype=torch.float64)
    A = torch.diag(torch.cat([reached, unreached, unseen]))
    A[:order, order : order + a], A[order + a :, : order + a] = r(order, a), r(b, order + a)
    B_, C = r(n, 1), r(1, n)
    B_[order : order + a], C[:, order + a :] = 0, 0
    turn, other = (torch.linalg.qr(r(n, n)).Q for _ in range(2))
    M = turn @ torch.diag(torch.logspace(0, np.log10(spread), n, dtype=torch.float64)) @ other
    return statespace(M @ A @ M.inverse(), M @ B_, C @ M.inverse())


MODULI = torch.tensor([0, 0.5, 1 - 1e-12, 1, 1.3], dtype=torch.float64)


@pytest.mark.parametrize("spread", [1.0, 100.0])
@pytest.mark.parametrize("radius", [0.9, 1.2])
@pytest.mark.parametrize("order", [1, 2, 5, 10])
def test_a_hidden_order_is_found_under_modes_of_any_modulus(order: int, radius: float, spread: float) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        drawn = MODULI[torch.randint(len(MODULI), (20 - order,))]
        half = len(drawn) // 2
        found = minimal(hidden(order, drawn[:half], drawn[half:], radius, spread))
        assert found.orders == [order] and not found.minimal
    assert minimal(hidden(20, drawn[:0], drawn[:0], radius)).orders == [20]


@pytest.mark.parametrize("modulus", MODULI.tolist())
@pytest.mark.parametrize("where", ["unreached", "unseen", "both"])
def test_modes_of_one_modulus_do_not_hide_one_state(modulus: float, where: str) -> None:
    """Twenty states, nineteen of them one repeated pole."""
    many = torch.full((19,), modulus, dtype=torch.float64)
    split = {"unreached": 19, "unseen": 0, "both": 10}[where]
    assert minimal(hidden(1, many[:split], many[split:], 0.7)).orders == [1]


@pytest.mark.parametrize("eigenvalue", [0.0, 0.5, 0.999, 1 - 1e-12, 1.0, 1.3])
def test_a_chain_of_one_pole_is_reached_as_far_as_inputs_reach(eigenvalue: float) -> None:
    for n, reached in ((3, 1), (4, 2), (6, 3), (6, 6)):
        A = eigenvalue * torch.eye(n, dtype=torch.float64) + torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
        B_ = r(n, 1)
        B_[reached:] = 0
        M = torch.linalg.qr(r(n, n)).Q
        assert minimal(statespace(M @ A @ M.mT, M @ B_, r(1, n))).orders == [reached]


@pytest.mark.parametrize("growth", [-0.5, 0.0, 0.2])
def test_a_hidden_order_is_found_in_systems_of_every_kind(growth: float) -> None:
    """Diagonal, complex and feedback systems, of one head or several, growing or not; four of six keys are read."""
    k, q = r(2, 6), r(2, 6)
    k[:, 4], q[:, 5] = 0, 0  # one not reached, one not seen
    log = growth - torch.linspace(0, 2, 6, dtype=torch.float64).expand(2, 6)
    v = r(1, 5, 2, 1)
    assert minimal(sf.System(q, k, v, log_decay=log)).orders == [4, 4]
    turned = sf.System(q.to(torch.complex128), k.to(torch.complex128), v, log_decay=log, phase=u(2, 6))
    assert minimal(turned).orders == [8, 8]  # Re and Im of each
    w, f = 0.3 * r(2, 6), 0.3 * r(2, 6)
    f[:, 4], w[:, 5] = 0, 0  # feedback that neither reaches the one nor reads the other
    assert minimal(sf.System(q, k, v, log_decay=log, f=f, w=w)).orders == [4, 4]
    none = minimal(sf.System(q, torch.zeros_like(k), v, log_decay=log))
    assert none.orders == [0, 0] and "0 of 6" in str(none)


def test_conjugate_pairs_of_s4_are_counted_once() -> None:
    """S4 starts with both modes of each pair of HiPPO-LegS: as a real system half of its 2 n states say nothing new."""
    found = minimal(layer_system("s4", drawn=False))
    assert found.states == 64 and found.orders == [32] * 4
    assert min(minimal(layer_system("s4", drawn=True)).orders) > 32  # weights without that symmetry


# -- frequency response --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["complex diagonal", "dense, feedback", "complex feedback, exclusive"])
def test_the_frequency_response_is_the_transform_of_the_kernel(name: str) -> None:
    system = replace(SYSTEMS[name](), d=r(4))
    K = kernel(system, 4096)
    assert float(K[:, -1].abs().max()) < 1e-12  # the kernel has decayed
    omega = 2 * torch.pi / 4096 * torch.arange(2049, dtype=torch.float64)
    close(freqresp(system, omega).G[..., 0, 0], torch.fft.rfft(K))


def test_the_frequency_response_of_matrices() -> None:
    s, omega = stable(), torch.tensor([0.0, 0.3, 2.0, torch.pi])
    z = torch.exp(1j * omega.double())[:, None, None, None]
    inverse = torch.linalg.inv(z * torch.eye(7, dtype=torch.float64) - s.A)
    close(freqresp(s, omega).G.movedim(1, 0), s.C.to(z.dtype) @ inverse @ s.B.to(z.dtype) + s.D)


def test_each_head_has_frequencies_of_its_own() -> None:
    system = layer_system("s4d")
    found, angles = freqresp(system), system.spectrum()[0, 0].angle().abs()
    assert found.omega.shape == found.gain.shape
    assert float((found.omega[:, :, None] - angles[:, None]).abs().amin(1).max()) < 1e-9
    for h in range(4):
        close(freqresp(system, found.omega[h]).G[h], found.G[h])
    assert "head" in str(found) and json.dumps(found.to_dict())
    raises(r"omega has shape \[3, 5\]; expected \[K\], or \[4,K\]", lambda: freqresp(system, torch.ones(3, 5)))


@pytest.mark.parametrize("what", [freqresp, hsvd, lambda s: gram(s, "c"), lambda s: reduce(s, 0.1)])
def test_twice_as_many_heads_take_twice_the_work(what: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplications, and the numbers in the triangular systems that are solved."""
    solve, solved = torch.linalg.solve_triangular, 0

    def counted(M: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal solved
        solved += M.numel()
        return solve(M, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, "solve_triangular", counted)
    work = []
    for heads in (4, 8):
        solved = 0
        angles = torch.linspace(0.2, 3, 8, dtype=torch.float64) + torch.arange(heads).double()[:, None] / 100
        ones = torch.ones(heads, 8, dtype=torch.complex128)
        system = sf.System(ones, ones, r(1, 9, heads, 1), log_decay=-angles / 3, phase=angles)
        with FlopCounterMode(display=False) as counter, sf.backend("torch"):
            what(system)
        work.append(solved + counter.get_total_flops())
    assert 0 < work[1] <= 2.01 * work[0]


# -- reduction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3, 6, 9])
def test_truncation_is_within_its_bound(order: int) -> None:
    s = stable(10, 2, 3, radius=0.97)
    found = balred(s, order)
    assert found.order == order and float(poles(found.reduced).abs().max()) < 1
    assert bool((found.error() <= found.bound).all())
    # at least as large as the first value left out: no system of that order is nearer
    assert bool((found.error() >= 0.99 * hsvd(s).values[:, order]).all())
    x = r(3, 50, 2, 2)
    error = (sf.run(s.system(x)) - sf.run(found.reduced.system(x))).unflatten(2, (2, 3))  # type: ignore[operator]
    energy = error.movedim(2, 1).flatten(2).norm(dim=2) / x.movedim(2, 1).flatten(2).norm(dim=2)
    assert bool((energy <= found.bound).all())


def test_truncation_to_the_minimal_order_is_exact() -> None:
    s4 = layer_system("s4", drawn=False)
    found = balred(s4, max(minimal(s4, 1e-14).orders))
    assert found.order == 32 and found.original.N == 64
    assert bool((found.error() <= 1e-9 * freqresp(s4).peak).all())


@pytest.mark.parametrize("name", SYSTEMS)
def test_reduced_systems_keep_their_error(name: str) -> None:
    system = SYSTEMS[name]()
    found = reduce(system, 0.05)
    assert found.ok, found
    assert not found.exact and found.original is system
    got, want = sf.run(found.system), sf.run(system)
    assert isinstance(got, Tensor) and isinstance(want, Tensor)
    assert got.shape == want.shape and got.dtype == want.dtype
    peak = freqresp(system).peak
    assert max(g / p for g, p in zip(found.gain, peak.tolist(), strict=True)) <= 0.05
    assert json.dumps(found.to_dict())


def test_a_looser_tolerance_keeps_fewer_states() -> None:
    system = layer_system("lssl")
    orders = [reduce(system, tol).order for tol in (0.5, 0.05, 1e-3)]
    assert orders == sorted(orders) and orders[0] < orders[-1] <= 16
    assert reduce(system.to(torch.float32), 0.05).ok


def test_a_wrong_reduction_is_not_ok() -> None:
    found = reduce(layer_system("lssl"), 0.05)
    assert found.ok
    assert not replace(found, gain=tuple(1.1 * b + 1e-6 for b in found.bound)).ok
    assert not replace(found, ran={"noise": 1.1}).ok


# -- what an input moves -------------------------------------------------------------------------------------------


def test_excited_counts_the_directions_of_the_keys() -> None:
    basis = r(2, N)
    k = r(B, T, 1, 2) @ basis
    system = sf.System(r(B, T, 1, N), k, r(B, T, 1, P), log_decay=-u(B, T, 1))  # a scalar decay leaves the span alone
    found = excited(system)
    assert found.N == N and found.count == [2] and 1 < found.effective[0] < 2.0001


@pytest.mark.parametrize("name", ["complex", "dense + feedback, b, d", "modes", "micro-steps", "exponential gate"])
def test_excited_is_the_svd_of_the_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = CASES[name]()
    bare: dict[str, Any] = dict.fromkeys(("q", "w_out", "d", "eta", "eta_floor"))
    plain = sf.stabilise(system)[0] if name == "exponential gate" else system
    S = sf.run(replace(plain, **bare, exclusive=False), "recurrent")
    assert isinstance(S, Tensor)
    S = S.unsqueeze(-1) if S.ndim == 4 else S
    rows = S.movedim(2, 0).movedim(-1, 1)  # [H,p,B,T,n]
    if name == "modes":
        rows = S.squeeze(-1).squeeze(-1)[None]
    rows = torch.cat([rows.real, rows.imag], -1) if rows.is_complex() else rows
    rows = rows.flatten(1, -2)
    want = torch.linalg.svdvals(rows) / rows.shape[1] ** 0.5
    close(excited(system).singular_values, want)
    monkeypatch.setattr(sys.modules[excited.__module__], "STRETCH", 1)  # token by token
    close(excited(system).singular_values, want)


# -- what comes back, and what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("function", [hsvd, minimal, hautus, freqresp, excited, lambda s: balred(s, 2)])
def test_results_print_and_serialise(function: Callable[[Any], Any]) -> None:
    found = function(CASES["dense constant"]())
    assert str(found) and len(str(found)) < 600
    assert json.loads(json.dumps(found.to_dict()))


def test_frequencies_hold_the_angles_of_the_poles() -> None:
    system = layer_system("s4d")
    grid, angles = frequencies(system), system.spectrum().angle().abs().flatten()
    assert float((grid[:, None] - angles).abs().amin(0).max()) < 1e-9


def raises(text: str, function: Callable[[], Any]) -> None:
    with pytest.raises(sf.StateformError, match=text):
        function()


def test_errors_say_what_to_do() -> None:
    growing = sf.System(r(1, 2), r(1, 2), r(1, 5, 1, 1), log_decay=torch.tensor([[0.1, -1.0]]).double())
    raises(r"pole of modulus 1\.105.*horizon=", lambda: gram(growing, "c"))
    raises("pole of modulus", lambda: hsvd(growing))
    raises("pole of modulus", lambda: reduce(growing, 0.1))
    raises("varying in time: .*k.*horizon", lambda: hsvd(CASES["diagonal"]()))
    raises("softmax", lambda: hsvd(softmax()))
    raises("softmax", lambda: excited(softmax()))
    raises("softmax", lambda: gram(softmax(), "c", 4))
    raises("horizon is 0", lambda: gram(stable(), "c", 0))
    raises("horizon is 71; the system has 70", lambda: gram(CASES["diagonal"](), "c", 71))
    raises("kind is 'x'", lambda: gram(stable(), "x"))  # type: ignore[arg-type]
    raises("either the order", lambda: balred(stable()))
    raises("order is 8; expected 1 to 7", lambda: balred(stable(), 8))
    raises("tol is 0", lambda: reduce(layer_system("lssl"), 0))
    raises("shapes", lambda: statespace(r(3, 3), r(2, 1), r(1, 3)))
    raises("D has shape", lambda: statespace(r(3, 3), r(3, 1), r(1, 3), r(2, 2)))
    raises("dt is -1", lambda: statespace(r(3, 3), r(3, 1), r(1, 3), dt=-1))
    raises("expected a System", lambda: hsvd(3))  # type: ignore[arg-type]
    raises("GB", lambda: hautus(stable(), limit=10))
    raises("pole lies", lambda: freqresp(statespace([[1.0]], [[1.0]], [[1.0]]), [0.0]))
    raises("give it? a q|the system a q", lambda: reduce(
        sf.System(None, c(1, 5, 2, 3), None, log_decay=-u(2, 3), phase=u(2, 3)), 0.1))  # fmt: skip


def test_systems_that_vary_are_reduced_on_their_own_input() -> None:
    pytest.importorskip("stateform.convert.reduce_varying")
    found = reduce(CASES["diagonal"](), 0.1)
    assert found.ok
