"""Conversions: their certificates hold, agree with formulas written out here, and refuse what they cannot do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.contract.draws import redraw
from stateform.contract.equivalence import share_weights
from stateform.convert import RELATIONS, Relation, special_case
from stateform.convert.certificate import certify
from stateform.studies.questions import pairs
from stateform.system.core import fold
from tests.systems import CASES, B, N, P, T, c, decay, feedback, phases, r, softmax, u

EXACT = 1e-11
H = 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer(spec: str, d_model: int = 16) -> Any:
    """A layer in float64 whose weights are not those of its initialisation."""
    made = sf.build(spec, d_model=d_model).double()
    redraw(made, torch.Generator().manual_seed(1), "own")
    return made


def x(length: int = 40, d_model: int = 16) -> Tensor:
    return r(B, length, d_model)


def system_of(spec: str, length: int = 40) -> sf.System:
    return layer(spec).system(x(length)).detach()


def close(got: Any, want: Any, rtol: float = EXACT) -> None:
    got, want = (a.detach().resolve_conj().numpy() if isinstance(a, Tensor) else np.asarray(a) for a in (got, want))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= rtol * np.abs(want).max()


def holds(found: Any) -> None:
    """The certificate, and the same measured from outside."""
    assert found.ok and found.exact
    assert found.error <= found.tolerance < 1e-11
    assert sf.equivalent(found.system, found.original)


# -- SSD and linear attention -------------------------------------------------------------------------------------

SSD: dict[str, Callable[[], sf.System]] = {
    "mamba2": lambda: system_of("mamba2")[:12],
    "mamba2, groups": lambda: system_of("mamba2(n_groups=2, d_head=8)")[:12],
    "gated_deltanet": lambda: system_of("gated_deltanet"),
    "lightning": lambda: system_of("lightning"),
    "b, d": lambda: decay("scalar", b=u(B, T, 4), d=r(4)),
    "feedback, b, d": lambda: feedback("scalar", b=u(B, T, 4), d=r(B, T, 4)),
    "sum, floor": lambda: decay("scalar", eta="sum", eta_floor=0.3, d=u(B, T, 4)),
    "stabilised": lambda: sf.stabilise(system_of("mlstm"))[0],
    "eta given": lambda: decay("scalar", eta=0.5 + u(B, T, 4), eta_floor=0.7),
    "growing": lambda: decay("identity", log_decay=0.1 * u(B, T, 4)),
    "shared heads": lambda: sf.System(
        r(B, T, 6, N), r(B, T, 2, N), r(B, T, 3, P), log_decay=(u(B, T, 3), -u(1)), b=u(B, T, 1), f=0.1 * r(2, N),
        w=0.1 * r(2, N)
    ),
    "whole state": lambda: sf.System(None, r(B, T, 4, N), None, log_decay=-u(4)),
}  # fmt: skip


@pytest.mark.parametrize("make", SSD.values(), ids=SSD)
def test_ssd_is_linear_attention_with_a_normaliser(make: Callable[[], sf.System]) -> None:
    system = make()
    found = sf.convert.ssd_to_linear_attention(system)
    holds(found)
    assert found.system.decay_kind == "identity"
    assert found.system.state_size == system.state_size  # shared heads stay shared
    if found.system.eta != "sum":
        back = sf.convert.linear_attention_to_ssd(found.system)
        holds(back)
        assert back.system.decay_kind == "scalar"
        assert sf.equivalent(back.system, system)


def test_the_normaliser_and_the_keys_are_the_frameworks() -> None:
    """eta_i = exp(a sum delta) and keys eta_i delta_i b_i, with y_i = sum_j (c_i^T k_j) v_j / eta_i."""
    delta, a = u(1, 20, 1), 0.7
    q, k, v = r(1, 20, 1, 3), r(1, 20, 1, 3), r(1, 20, 1, 2)
    found = sf.convert.ssd_to_linear_attention(sf.System(q, k, v, log_decay=-a * delta, b=delta))
    c_, b_, v_, dt = (z.numpy()[0, :, 0] for z in (q, k, v, delta))
    S, want = np.zeros((3, 2)), []
    for t in range(20):
        S = np.exp(-a * dt[t]) * S + dt[t] * np.outer(b_[t], v_[t])
        want.append(c_[t] @ S)
    eta = np.exp(a * np.cumsum(dt))
    keys = (eta * dt)[:, None] * b_
    close(np.tril(c_ @ keys.T) @ v_ / eta[:, None], want)  # the identity itself
    close(found.system.eta.squeeze(), eta)  # type: ignore[union-attr]
    close((found.system.b.unsqueeze(-1) * found.system.k).squeeze(), keys)  # type: ignore[union-attr]
    close(sf.run(found.system).squeeze(), want)  # type: ignore[union-attr]


def test_eta_is_refused_beyond_its_range_and_the_message_says_where() -> None:
    system = decay("scalar", log_decay=-u(B, T, 4)).to(torch.float32)
    long = replace(system, log_decay=2 * system.log_decay)  # type: ignore[operator]
    with pytest.raises(
        sf.StateformError, match=r"float32 has room for exp\(44\).*system\.to\(torch\.float64\)"
    ) as caught:
        sf.convert.ssd_to_linear_attention(long)
    fits = int(str(caught.value).split("which is ")[1].split()[0])
    assert sf.convert.ssd_to_linear_attention(long[:fits]).ok
    with pytest.raises(sf.StateformError):
        sf.convert.ssd_to_linear_attention(long[: fits + 1])
    assert sf.convert.ssd_to_linear_attention(long.to(torch.float64)).ok
    with pytest.raises(sf.StateformError, match="exp"):  # a hard reset has no inverse
        sf.convert.ssd_to_linear_attention(decay("scalar", log_decay=torch.full((4,), -torch.inf).double()))


def test_normalized_attention_is_an_ssd_with_any_decay() -> None:
    system = system_of("normalized")
    found = sf.convert.linear_attention_to_ssd(system)
    holds(found)
    eta = system.eta
    assert isinstance(eta, Tensor)
    close(found.system.spectrum()[:, 1:].real.unique(), (eta[:, :-1] / eta[:, 1:]).unique())  # eq. 15's eigenvalues


def test_a_conversion_passes_gradients() -> None:
    g = (-u(B, T, 4)).requires_grad_()
    system = decay("scalar", log_decay=g)
    found = sf.convert.ssd_to_linear_attention(system)
    ours, theirs = (torch.autograd.grad(sf.run(s).square().sum(), g)[0] for s in (found.system, system))  # type: ignore[union-attr]
    close(ours, theirs, 1e-9)


# -- continuous and discrete --------------------------------------------------------------------------------------

METHODS = ("zoh", "bilinear", "euler")


def series(A: np.ndarray, B_: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """exp(dt A), and the integral of exp(s A) B over a step, as power series."""
    term, total, integral = np.eye(len(A), dtype=A.dtype), np.eye(len(A), dtype=A.dtype), dt * np.eye(len(A))
    integral = integral.astype(A.dtype)
    for p in range(1, 80):
        term = term @ A * dt / p
        total, integral = total + term, integral + term * dt / (p + 1)
    return total, integral @ B_


def by_hand(A: np.ndarray, B_: np.ndarray, dt: float, method: str) -> tuple[np.ndarray, np.ndarray]:
    eye = np.eye(len(A))
    if method == "zoh":
        return series(A, B_, dt)
    if method == "bilinear":
        left = np.linalg.inv(eye - dt / 2 * A)
        return left @ (eye + dt / 2 * A), left @ B_ * dt
    return eye + dt * A, dt * B_


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["real", "complex", "singular"])
def test_discretisation_of_matrices_and_modes(method: Any, kind: str) -> None:
    A, B_ = (r(5, 5), r(5, 2)) if kind != "complex" else (c(5, 5), c(5, 2))
    if kind == "singular":
        A[0] = 0
    got = sf.convert.discretise(A, B_, 0.1, method, dense=True)
    want = by_hand(A.numpy(), B_.numpy(), 0.1, method)
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs)
    modes, b = A.diagonal(), B_[:, 0]
    got = sf.convert.discretise(modes, b, 0.1, method)
    want = by_hand(np.diag(modes.numpy()), b.numpy(), 0.1, method)
    close(got[0], np.diag(want[0]))
    close(got[1], want[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("numbers", [r, c])
def test_continuous_is_the_inverse(method: Any, dense: bool, numbers: Callable[..., Tensor]) -> None:
    A, B_ = (0.3 * numbers(3, 5, 5), numbers(3, 5, 2)) if dense else (numbers(3, 5), numbers(3, 5))
    dt = 0.1 + u(3)
    back = sf.convert.continuous(*sf.convert.discretise(A, B_, dt, method, dense=dense), dt, method, dense=dense)
    for ours, theirs in zip(back, (A, B_), strict=True):
        close(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_the_layers_are_discretised_by_the_same_rules() -> None:
    lssl = layer("lssl")
    system = lssl.system(x())
    A, b = lssl.A, lssl.B
    for h, dt in enumerate(lssl.log_dt.exp().tolist()):
        want = by_hand(A.numpy(), b.numpy()[:, None], dt, "bilinear")
        close(system.transition[h].detach(), want[0])
        close(system.k[h].detach(), want[1][:, 0])


@pytest.mark.parametrize(
    ("Abar", "method", "dense", "said"),
    [
        (-u(4), "zoh", False, "negative eigenvalue"),
        (torch.zeros(4).double(), "zoh", False, "eigenvalue 0"),
        (-torch.eye(3).double(), "zoh", True, "negative eigenvalue"),
        (torch.tensor([[1.0, 1], [0, 1]]).double(), "zoh", True, "condition"),
        (torch.diag(torch.tensor([1.0, 0])).double(), "zoh", True, "eigenvalue 0"),
        (-torch.ones(4).double(), "bilinear", False, "eigenvalue -1"),
        (-torch.eye(3).double(), "bilinear", True, "eigenvalue -1"),
    ],
)
def test_what_no_continuous_system_samples_to(Abar: Tensor, method: Any, dense: bool, said: str) -> None:
    Bbar = torch.ones(len(Abar), 1).double() if dense else torch.ones(len(Abar)).double()
    with pytest.raises(sf.StateformError, match=said):
        sf.convert.continuous(Abar, Bbar, 0.1, method, dense=dense)


# -- kernels ------------------------------------------------------------------------------------------------------

CONSTANT: dict[str, Callable[[], sf.System]] = {
    "complex diagonal": lambda: decay("constant"),
    "dense": lambda: decay("dense constant", d=r(4), b=u(4), eta=1 + u(4)),
    "feedback": lambda: feedback("constant", d=r(4)),
    "dense, feedback, exclusive": lambda: feedback("dense constant", exclusive=True),
    "no decay": CASES["time-invariant"],
    "channels": CASES["channels, constant"],
    "output axis": lambda: replace(decay("constant"), q=r(4, 3, N)),
    "s4": lambda: system_of("s4"),
    "short_conv": lambda: system_of("short_conv"),
}


@pytest.mark.parametrize("make", CONSTANT.values(), ids=CONSTANT)
def test_a_kernel_convolved_is_the_system(make: Callable[[], sf.System]) -> None:
    system = make()
    K, v = sf.convert.kernel(system), system.v
    assert v is not None
    want = sf.run(system, "recurrent")
    y = torch.stack([
        sum(K[:, j, ..., None] * v[:, t - j].expand(-1, system.H, -1).reshape(B, system.H, *[1] * (K.ndim - 2), -1)
            for j in range(t + 1))  # type: ignore[misc]
        for t in range(system.T)
    ], 1)  # fmt: skip
    close(y, want)
    assert sf.convert.kernel(system, 3).shape[1] == 3


@pytest.mark.parametrize("method", METHODS)
def test_s4d_as_recurrence_and_as_vandermonde_kernel(method: Any) -> None:
    s4d = layer("s4d")
    A = torch.complex(-s4d.A_log.exp(), s4d.A_imag).detach()
    C, dt = 2 * torch.view_as_complex(s4d.C.detach()), s4d.log_dt.detach().exp()
    v = r(B, 40, 16, 1)
    found = sf.convert.recurrence(A, torch.ones_like(A), C, dt, v, method=method, d=s4d.D.detach())
    holds_against_kernel(found)
    Abar, Bbar = zip(
        *(by_hand(np.diag(a), np.ones((len(a), 1)), step, method) for a, step in zip(A.numpy(), dt.tolist()))
    )
    K = [[(C_ @ np.linalg.matrix_power(a, t) @ b).real.item() for t in range(12)]
         for C_, a, b in zip(C.numpy(), Abar, Bbar)]  # fmt: skip
    close(sf.convert.kernel(replace(found.system, d=None), 12), K)
    close(found.original[:, :12], K)  # type: ignore[index]
    if method == "zoh":
        want = sf.run(s4d.system(v.squeeze(-1)))
        close(sf.run(found.system), want.detach())  # type: ignore[union-attr]


def holds_against_kernel(found: sf.convert.Conversion) -> None:
    assert found.ok and found.exact and found.error < 1e-11
    wrong = replace(found.system, q=1.001 * found.system.q)  # type: ignore[operator]
    assert not sf.equivalent(wrong, found.system)


def test_a_recurrence_of_real_modes_stays_real() -> None:
    A, B_, C, v = -u(4, 3), r(4, 3), r(4, 3), r(B, T, 4, 1)
    assert not sf.convert.recurrence(A, B_, C, 0.5, v).system.is_complex
    found = sf.convert.recurrence(4 * A - 2, B_, C, 0.5, v, method="euler")  # 1 + dt A changes sign
    holds_against_kernel(found)
    assert found.system.is_complex


def test_a_sum_of_exponentials_is_realised_by_as_many_modes() -> None:
    lam, weight = torch.tensor([0.9, -0.5, 0.3]).double(), r(4, 3)
    K = (weight[..., None] * lam[:, None] ** torch.arange(30)).sum(1)
    v = r(B, 30, 4, 2)
    found = sf.convert.realise(K, v)
    holds_against_kernel(found)
    assert found.system.n == 3
    close(found.system.spectrum()[0, 0, 0].real.sort().values, lam.sort().values, 1e-8)
    coarse = sf.convert.realise(K, v, order=2, rtol=0.5)
    assert not coarse.exact and coarse.error > 1e-3


# -- the eigenbasis -----------------------------------------------------------------------------------------------

DENSE: dict[str, Callable[[], sf.System]] = {
    "varying q and k": lambda: replace(decay("dense constant"), q=r(B, T, H, N), k=r(B, T, H, N)),
    "feedback, b, d": lambda: feedback("dense constant", b=u(B, T, 4), d=r(B, T, 4)),
    "varying feedback, exclusive": lambda: replace(
        decay("dense constant", exclusive=True), f=0.1 * r(B, T, 4, N), w=0.1 * r(B, T, 4, N)),
    "complex": lambda: decay("identity", transition=c(H, N, N) / N),
    "normalised": lambda: replace(
        decay("identity"), q=u(B, T, H, N), k=u(B, T, H, N), transition=u(H, N, N) / N, eta="sum"),
    "shared transition": lambda: decay("identity", transition=r(1, N, N) / N),
    "shared keys": lambda: sf.System(r(4, N), r(2, N), r(B, T, 1, P), transition=r(4, N, N) / N),
    "output axis": lambda: replace(decay("dense constant"), q=r(B, T, H, 3, N)),
    "constant output axis": lambda: replace(decay("dense constant"), q=r(H, 3, N)),
    "whole state": lambda: sf.System(None, r(B, T, 4, N), None, transition=r(1, N, N) / N),
    "whole matrix": lambda: sf.System(None, r(B, T, 4, N), r(B, T, 4, P), transition=r(4, N, N) / N),
    "w_out": lambda: sf.System(None, r(B, T, 4, N), None, transition=r(4, N, N) / N, w_out=r(5, 4, N)),
    "lssl": lambda: system_of("lssl(d_state=4)"),
}  # fmt: skip


@pytest.mark.parametrize("make", DENSE.values(), ids=DENSE)
def test_a_dense_constant_system_is_a_diagonal_one(make: Callable[[], sf.System]) -> None:
    system = make()
    found = sf.convert.diagonalise(system)
    holds(found)
    assert found.system.transition is None and found.system.state_heads == system.state_heads
    assert system.transition is not None
    if system.f is None:
        values = np.linalg.eigvals(system.transition.numpy())
        got = found.system.spectrum()[0, 0].numpy()[: len(values)]
        close(np.sort_complex(got.round(12)), np.sort_complex(values.round(12)), 1e-10)
    condition = max(np.linalg.cond(np.linalg.eig(A)[1]) for A in system.transition.numpy())
    assert f"condition of the eigenvectors {condition:.3g}" in str(found)


def test_w_in_goes_with_the_eigenbasis() -> None:
    w_in, inputs = r(4, N, 3), r(B, T, 3)
    k = torch.einsum("hni,bti->bthn", w_in, inputs)
    system = sf.System(None, k, None, transition=r(4, N, N) / N, w_in=w_in, w_out=r(2, 4, N))
    found = sf.convert.diagonalise(system)
    holds(found)
    assert found.system.w_in is not None
    close(torch.einsum("hni,bti->bthn", found.system.w_in, inputs + 0j), found.system.k)


def test_a_defective_transition_is_refused_with_its_condition() -> None:
    jordan = torch.tensor([[0.5, 1, 0], [0, 0.5, 1], [0, 0, 0.5]]).double()
    v = r(B, T, 1, 2)
    with pytest.raises(sf.StateformError, match=r"condition .*defective"):
        sf.convert.diagonalise(sf.System(r(1, 3), r(1, 3), v, transition=jordan[None]))
    turned = torch.linalg.qr(r(3, 3))[0]
    near = turned @ (jordan + torch.diag(torch.tensor([0, 1e-5, 2e-5]).double())) @ turned.T
    with pytest.raises(sf.StateformError, match="condition"):
        sf.convert.diagonalise(sf.System(r(1, 3), r(1, 3), v, transition=near[None]))
    assert sf.convert.diagonalise(sf.System(r(1, 3), r(1, 3), v, transition=near[None]), most=1e12).error > 1e-12


# -- heads --------------------------------------------------------------------------------------------------------


def mimo(modes: int, inputs: int, outputs: int, length: int) -> tuple[sf.System, Tensor]:
    """One head with a dense transition, w_in and w_out, and its input."""
    w_in, w_out, A, given = (
        r(1, modes, inputs),
        r(outputs, 1, modes),
        r(1, modes, modes) / modes**0.5,
        r(B, length, inputs),
    )
    k = torch.einsum("hni,bti->bthn", w_in, given)
    return sf.System(None, k, None, transition=A, w_in=w_in, w_out=w_out), given


@pytest.mark.parametrize(
    ("modes", "inputs", "outputs", "length", "count"),
    [(3, 4, 5, 20, 3), (5, 2, 2, 20, 4), (6, 4, 4, 3, 3), (1, 1, 1, 9, 1)],
)
def test_as_many_heads_as_the_lag_operators_span(
    modes: int, inputs: int, outputs: int, length: int, count: int
) -> None:
    system, given = mimo(modes, inputs, outputs, length)
    found = sf.convert.heads_for_ssm(system)
    assert found.ok
    A, B_, C = (z.numpy() for z in (system.transition[0], system.w_in[0], system.w_out[:, 0]))  # type: ignore[index]
    lags = [C @ np.linalg.matrix_power(A, t) @ B_ for t in range(length)]
    assert found.count == count == np.linalg.matrix_rank(np.stack(lags).reshape(length, -1), tol=1e-9)
    want = [sum(given[:, t - j].numpy() @ lags[j].T for j in range(t + 1)) for t in range(length)]
    close(found.apply(given), np.stack(want, 1), 1e-10)
    close(np.einsum("ht,hoi->toi", found.weights, found.values), lags, 1e-10)
    # one head fewer does not do: the best sum of k - 1 heads misses the last singular value
    fewer = np.einsum("ht,hoi->toi", found.weights[:-1], found.values[:-1])
    assert np.linalg.norm(fewer - lags) == pytest.approx(float(found.singular_values[count - 1]))
    assert float(found.singular_values[count - 1]) > 1e-6


@pytest.mark.parametrize(
    ("spec", "count"), [("short_conv", 3), ("s4d", 16), ("lru(d_state=3)", 6), ("s5(d_state=6)", 6)]
)
def test_the_heads_of_layers(spec: str, count: int) -> None:
    found = sf.convert.heads_for_ssm(system_of(spec))
    assert found.ok and found.count == count
    assert found.attention().shape == (count, 40, 40)
    assert f"{count} heads" in str(found)


def test_too_few_heads_do_not_pass_their_certificate() -> None:
    found = sf.convert.heads_for_ssm(mimo(5, 4, 4, 20)[0], rtol=0.3)
    assert found.count < 5
    assert found.certificate.error > 1e-3


# -- approximations -----------------------------------------------------------------------------------------------


def small_softmax(**more: Any) -> sf.System:
    """Softmax with logits of moderate size and few keys."""
    return replace(softmax(**more), q=0.6 * r(B, T, 4, 3), k=0.6 * r(B, T, more.get("kv_heads", 4), 3))


SOFT: dict[str, Callable[[], sf.System]] = {
    "plain": small_softmax,
    "grouped": lambda: small_softmax(kv_heads=2),
    "rotary": lambda: phases(phase=3 * r(B, T, 4, 3)).map(lambda name, z: 0.4 * z if name in "qk" else z),
    "distance penalty": lambda: small_softmax(forget=-u(4)),
    "forgetting": lambda: small_softmax(forget=-u(B, T, 4)),
    "b, direct": lambda: small_softmax(b=u(B, T, 4), d=u(B, T, 4)),
    "not normalised": lambda: small_softmax(eta=None),
    "floor": lambda: small_softmax(eta_floor=3.0),
}


def polynomial(system: sf.System, degree: int) -> np.ndarray:
    """Attention with sum_{p<=P} x^p / p! in the place of exp(x), for one scalar decay or phases."""
    q, k, v = (z.numpy().repeat(4 // z.shape[2], 2) for z in (system.q, system.k, system.v))  # type: ignore[union-attr]
    full = np.zeros((B, T, 4))
    g = full + system.parts["forget"].numpy() if "forget" in system.parts else full
    b = full + 1 if system.b is None else system.b.numpy()
    d = full if system.d is None else system.d.numpy()
    y = np.zeros((B, T, 4, P))
    for i in range(T):
        above, below = d[:, i, :, None] * v[:, i], d[:, i]
        for j in range(i + 1):
            turn = 1 if system.phase is None else np.exp(1j * system.phase.numpy()[:, j + 1 : i + 1].sum(1))
            logit = (q[:, i] * turn * k[:, j]).sum(-1).real * b[:, j]
            weight = sum(logit**p / math.factorial(p) for p in range(degree + 1)) * np.exp(g[:, j + 1 : i + 1].sum(1))
            above, below = above + weight[..., None] * v[:, j], below + weight
        if system.eta_floor is not None:
            below = np.maximum(np.abs(below), system.eta_floor)
        y[:, i] = above / below[..., None] if system.eta == "sum" else above
    return y


@pytest.mark.parametrize("make", SOFT.values(), ids=SOFT)
@pytest.mark.drawn(0.5)
def test_taylor_is_attention_with_a_polynomial(make: Callable[[], sf.System]) -> None:
    system = make()
    found = sf.convert.taylor(system, 3, rtol=0.5)
    assert not found.exact and found.system.readout.linear
    want = polynomial(system, 3)
    close(sf.run(found.system), want)
    close(sf.run(system), polynomial(system, 40))
    reads = sf.run(system)
    assert isinstance(reads, Tensor)
    assert found.error == pytest.approx(np.abs(want - reads.numpy()).max() / np.abs(reads.numpy()).max())
    heads = [np.abs(want - reads.numpy())[:, :, h].max() / np.abs(reads.numpy())[:, :, h].max() for h in range(4)]
    assert found.errors == pytest.approx(heads)


@pytest.mark.parametrize("make", SOFT.values(), ids=SOFT)
def test_the_degree_needed_is_the_least_even_one(make: Callable[[], sf.System]) -> None:
    system = make()
    degree = sf.convert.degree_needed(system, 1e-3)
    assert degree % 2 == 0
    found = sf.convert.taylor(system, degree, rtol=1e-3)
    assert found.ok and max(found.errors) <= 1e-3
    assert max(sf.convert.taylor(system, degree - 2).errors) > 1e-3


def test_an_approximation_that_is_too_coarse_says_so() -> None:
    found = sf.convert.taylor(small_softmax(), 2, rtol=1e-6)
    assert not found.ok
    assert "approximation" in str(found) and "allowed 1e-06" in str(found)
    with pytest.raises(sf.StateformError, match="largest logit"):
        sf.convert.degree_needed(replace(softmax(), q=30 * r(B, T, 4, N)), 0.1, most=8)


def test_random_features_converge_and_are_reproducible() -> None:
    system = small_softmax(forget=-0.1 * u(4)).map(lambda name, z: 0.6 * z if name in "qk" else z)
    want = sf.run(system)
    assert isinstance(want, Tensor)

    def distance(m: int, seed: int) -> float:
        got = sf.run(sf.convert.random_features(system, m, seed=seed).system)
        assert isinstance(got, Tensor)
        return float((got - want).norm() / want.norm())

    errors = [np.mean([distance(m, seed) for seed in range(4)]) for m in (16, 256, 4096)]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]  # as 1 / sqrt(m), a factor of 4 each time
    one, same = (sf.convert.random_features(system, 64, seed=3) for _ in range(2))
    drawn = sf.convert.random_features(system, 64, generator=torch.Generator().manual_seed(3))
    assert one.error == same.error == drawn.error != sf.convert.random_features(system, 64, seed=4).error
    assert sf.convert.random_features(phases().map(lambda n, z: 0.3 * z if n in "qk" else z), 4096, rtol=0.2).ok


# -- special cases ------------------------------------------------------------------------------------------------

OPTIONS = {
    "softmax": ["", "(n_heads=2, d_state=6)", "(positions='none')"],
    "qlstm": ["(reversed=True)", "(reversed=True, expand=2)"],
    "deltanet": ["", "(d_conv=2, allow_negative_eigenvalues=True)"],
    "gated_deltanet": ["", "(n_heads=2, d_state=4, d_conv=3)", "(allow_negative_eigenvalues=True)"],
    "retention": ["", "(expand=1, d_state=6)"],
    "mamba2": ["", "(d_head=8, d_state=5, d_conv=3)"],
    "gla": ["", "(gate_temperature=1.0, d_state=5)"],
    "linear": ["", "(d_state=3)"],
    "lightning": ["", "(slope_scale=0.3)"],
    "s5": ["", "(d_state=10)"],
    "rg_lru": ["", "(expand=2, c=3.0)"],
    "min_gru": ["", "(expand=2)"],
}


@pytest.mark.parametrize(
    ("relation", "options"),
    [pytest.param(each, options, id=f"{each.general}-{each.special}{options}")
     for each in RELATIONS for options in OPTIONS.get(each.special, [""])],
)  # fmt: skip
def test_a_special_case_is_equal_and_a_general_layer_is_not(relation: Relation, options: str) -> None:
    special, given = layer(f"{relation.special}{options}"), x()
    before = copy.deepcopy(special.state_dict())
    drawn = torch.get_rng_state()
    found = relation.verify(special, given)
    assert found, found
    assert found.tolerance < 1e-12
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), special.state_dict().values(), strict=True))
    sentence = special_case(special, layer(relation.general), given)
    assert sentence is not None and relation.setting in sentence and "verified" in sentence
    assert special_case(layer(relation.general), special, given) == sentence
    # with the same weights but without the setting, they differ
    general = share_weights(special, sf.build(relation.general, d_model=16).double()).b
    ours, theirs = (net.system(given).detach() for net in (general, special))
    if relation.compared == "transitions":
        a, b = ours.spectrum(), theirs.spectrum()
    else:
        a, b = sf.run(ours).flatten(2), sf.run(theirs).flatten(2)  # type: ignore[union-attr]
    assert a.shape != b.shape or not sf.equivalent(a, b)


@pytest.mark.parametrize(
    ("general", "special"),
    [
        ("gla", "hgrn2(lower_bound=0.3)"),
        ("gated_deltanet2", "kda(allow_negative_eigenvalues=True)"),
        ("gated_deltanet2", "kda(least_log_decay=-5.0)"),
        ("normalized", "mamba2(allow_negative_eigenvalues=True)"),
        ("mamba", "qlstm"),
        ("mamba", "mamba2(n_groups=2, d_head=8)"),
        ("hopfield", "softmax(n_kv_heads=2)"),
        ("softmax", "mamba"),
        ("gla", "gla"),
    ],
)
def test_no_claim_where_it_does_not_hold(general: str, special: str) -> None:
    assert special_case(layer(general), layer(special), x()) is None


def test_a_wrong_setting_is_found_out() -> None:
    """A relation that is not true on this input is not named."""
    known = next(each for each in RELATIONS if each.special == "gated_deltanet")

    def wrong(special: Any, given: Tensor) -> Any:
        ours, theirs = known.systems(special, given)
        return replace(ours, log_decay=ours.log_decay * (1 + 1e-6)), theirs

    assert known.verify(layer("gated_deltanet"), x())
    assert not replace(known, systems=wrong).verify(layer("gated_deltanet"), x())


def test_compare_names_special_cases_with_their_setting(tmp_path: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 3)
    names = ["kda", "gated_deltanet", "qlstm(reversed=True)", "mamba", "lightning"]
    found = sf.compare(names, text=text, d_model=16, max_length=24, repeats=1)
    named = {(p["a"], p["b"]): p["special"] for p in found.result["pairs"] if p["special"]}
    assert set(named) == {("kda", "gated_deltanet"), ("qlstm(reversed=True)", "mamba")}
    assert "equal decays for all keys" in named["kda", "gated_deltanet"]
    assert "the transition of qlstm" in named["qlstm(reversed=True)", "mamba"]
    printed = " ".join(str(found).split())
    assert "gated_deltanet is kda with equal decays for all keys of a head" in printed
    assert "2 of 10 pairs" in printed
    assert "gated_deltanet is kda with equal decays for all keys of a head" in found.html()


def test_the_report_shows_special_cases_as_plain_text() -> None:
    pair = {"a": "x", "b": "y", "equal": False, "error": 1.0, "special": "y is x\x1b[31m with z"}
    grid = pairs.table({"layers": [{"name": "x"}, {"name": "y"}], "pairs": [pair]})
    assert grid is not None
    assert any("y is x\\x1b[31m with z" in note for note in grid.notes)


# -- what is refused ----------------------------------------------------------------------------------------------

CONVERT = sf.convert
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "ssd: a tensor": (lambda: CONVERT.ssd_to_linear_attention(r(2, 3)), "takes a System"),
    "ssd: diagonal": (
        lambda: CONVERT.ssd_to_linear_attention(decay("diagonal")),
        "a diagonal decay; expected a scalar",
    ),
    "ssd: no decay": (lambda: CONVERT.ssd_to_linear_attention(decay("identity")), "has no decay"),
    "ssd: complex": (lambda: CONVERT.ssd_to_linear_attention(decay("scalar", phase=u(4))), "complex or signed"),
    "ssd: softmax": (lambda: CONVERT.ssd_to_linear_attention(softmax()), 'the readout is "exp"'),
    "ssd: exclusive": (lambda: CONVERT.ssd_to_linear_attention(decay("scalar", exclusive=True)), "after the write"),
    "ssd: log_b": (lambda: CONVERT.ssd_to_linear_attention(decay("scalar", log_b=u(B, T, 4))), "stabilise"),
    "linear: decay": (lambda: CONVERT.linear_attention_to_ssd(decay("scalar", eta=u(4))), "expected no decay"),
    "linear: no eta": (lambda: CONVERT.linear_attention_to_ssd(decay("identity")), "has no eta"),
    "linear: sum": (lambda: CONVERT.linear_attention_to_ssd(decay("identity", eta="sum")), "depends on the state"),
    "linear: eta < 0": (lambda: CONVERT.linear_attention_to_ssd(decay("identity", eta=-u(4))), "above 0"),
    "discretise: method": (lambda: CONVERT.discretise(r(3), r(3), 0.1, "rk4"), "'zoh', 'bilinear' or 'euler'"),
    "discretise: dt": (lambda: CONVERT.discretise(r(3), r(3), 0.0), "steps above 0"),
    "discretise: nan": (lambda: CONVERT.discretise(r(3), r(3), math.nan), "steps above 0"),
    "discretise: B": (lambda: CONVERT.discretise(r(3), r(4), 0.1), r"B \[4\]; expected"),
    "discretise: dense": (lambda: CONVERT.discretise(r(3, 3), r(3), 0.1, dense=True), r"B \[\.\.\., n, i\]"),
    "discretise: axes": (lambda: CONVERT.discretise(r(3, 2), r(3, 2), u(4)), "broadcast"),
    "kernel: varying": (lambda: CONVERT.kernel(decay("scalar")), "varying in time: log_decay, q, k|varying"),
    "kernel: softmax": (lambda: CONVERT.kernel(softmax()), "time-invariant"),
    "kernel: sum": (lambda: CONVERT.kernel(decay("constant", eta="sum")), "sum"),
    "kernel: no v": (lambda: CONVERT.kernel(CASES["modes"]()), "v = None"),
    "kernel: length": (lambda: CONVERT.kernel(decay("constant"), 0), "1 or more"),
    "recurrence: shapes": (lambda: CONVERT.recurrence(c(2, 3), c(2, 3), c(2, 4), 0.1, r(1, 5, 2, 1)), "one shape"),
    "recurrence: v": (lambda: CONVERT.recurrence(c(2, 3), c(2, 3), c(2, 3), 0.1, r(1, 5, 2)), r"\[B,T,H,p\]"),
    "realise: length": (lambda: CONVERT.realise(r(2, 5), r(1, 9, 2, 1)), "T <= L"),
    "realise: order": (lambda: CONVERT.realise(r(2, 9), r(1, 9, 2, 1), order=7), "shows 1 to 4"),
    "diagonalise: diagonal": (lambda: CONVERT.diagonalise(decay("diagonal")), "no constant dense transition"),
    "diagonalise: varying": (lambda: CONVERT.diagonalise(decay("dense")), "no constant dense transition"),
    "heads: varying": (lambda: CONVERT.heads_for_ssm(decay("scalar")), "varying in time"),
    "heads: softmax": (lambda: CONVERT.heads_for_ssm(softmax()), 'the readout is "exp"'),
    "heads: whole state": (lambda: CONVERT.heads_for_ssm(CASES["whole state"]()), "w_in and w_out"),
    "heads: output axis": (
        lambda: CONVERT.heads_for_ssm(replace(decay("constant"), q=r(4, 3, N))),
        "real output a head",
    ),
    "heads: input": (lambda: CONVERT.heads_for_ssm(mimo(2, 2, 2, 9)[0]).apply(r(1, 9, 3)), r"expected \[B,t,2\]"),
    "taylor: linear": (lambda: CONVERT.taylor(decay("scalar"), 2), '"linear" already'),
    "taylor: window": (lambda: CONVERT.taylor(softmax(window=7), 2), "window of 7"),
    "taylor: not causal": (lambda: CONVERT.taylor(softmax(causal=False), 2), "causal"),
    "taylor: degree": (lambda: CONVERT.taylor(softmax(), -1), "degree is -1"),
    "taylor: size": (lambda: CONVERT.taylor(softmax(), 30), "the limit is 1 GB"),
    "features: none": (lambda: CONVERT.random_features(softmax(), 0), "1 or more"),
    "features: size": (lambda: CONVERT.random_features(softmax(), 8, limit=100), "limit"),
    "degree: rtol": (lambda: CONVERT.degree_needed(softmax(), 0.0), "above 0"),
    "degree: size": (lambda: CONVERT.degree_needed(softmax(), 0.1, limit=100), "logits"),
}


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_converted_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(sf.StateformError, match=said):
        call()


def test_a_certificate_compares_with_the_original() -> None:
    system = decay("scalar")
    found = certify(replace(system, d=torch.full((4,), 1e-9).double()), system, "almost the same")
    assert not found.ok and 1e-11 < found.error < 1e-8
    assert certify(system, system, "the same").ok


def test_float32_certificates_are_measured_against_float64() -> None:
    system = decay("scalar", log_decay=-0.1 * u(B, T, 4)).to(torch.float32)
    found = sf.convert.ssd_to_linear_attention(system)
    assert found.ok and 1e-9 < found.error < found.tolerance
    assert found.system.dtype == torch.float32


@torch.no_grad()
def test_the_decay_of_ssd_is_the_reversed_sigmoid_to_the_power_a() -> None:
    """exp(-a softplus(z)) = sigmoid(-z)^a (arXiv 2405.15731, eq. 23): not the gate sigmoid(z) of a qLSTM."""
    torch.manual_seed(0)
    ssd = sf.build("mamba2", d_model=8, expand=1, d_head=1).double()
    u = 3 * torch.randn(1, 20, 8, dtype=torch.float64)
    gates = {x: sf.build("qlstm", d_model=8, reversed=x).double() for x in (True, False)}
    for layer in gates.values():
        layer.f_proj.weight.copy_(ssd.dt_proj.weight)
        layer.f_proj.bias.copy_(ssd.dt_bias)
    gates[True].log_a.copy_(ssd.A_log)

    def decays(layer: sf.Layer) -> torch.Tensor:
        return fold(layer.system(u)).decay_log().exp().flatten(2)

    z = ssd.dt_proj(u) + ssd.dt_bias
    torch.testing.assert_close(decays(ssd), torch.sigmoid(-z) ** ssd.A_log.exp())
    torch.testing.assert_close(decays(ssd), decays(gates[True]))
    assert float((decays(ssd) - decays(gates[False])).abs().max()) > 0.1


@pytest.mark.parametrize(("name", "given"), [("lstm", "vector states"), ("deltaproduct", "2 writes a token")])
def test_what_cannot_be_reduced_is_told_in_the_words_of_the_field(name: str, given: str) -> None:
    system = sf.build(name, d_model=8).system(torch.randn(1, 6, 8))
    with pytest.raises(sf.StateformError, match=f"varies in time is reduced by its weights .* this one has {given}"):
        sf.reduce(system, 0.1)
