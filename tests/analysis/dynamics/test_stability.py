"""Lyapunov exponents, norm bounds, perturbations and gradients against direct computation and published values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform import StateformError
from stateform.analysis import (
    effective_rank,
    gradient_paths,
    horizon,
    lyapunov,
    perturbation,
    receptive_fields,
    representation,
    spectrum,
    stability,
    token_dynamics,
    token_transitions,
)
from stateform.analysis.attention.representation import spectral_decay
from stateform.analysis.structure import token_steps
from tests.systems import CASES, decay, feedback, r, softmax

LINEAR = sorted(name for name, make in CASES.items() if not make().readout.cached)


def constant(A: Tensor, length: int) -> sf.System:
    """A vector state with the transition A [n,n]."""
    return sf.System(None, r(1, length, 1, len(A)), None, transition=A[None])


def model(layers: str, **options: object) -> sf.LanguageModel:
    torch.manual_seed(0)
    return sf.LanguageModel(layers, d_model=16, vocab_size=64, **options).double().eval()


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(1))


# -- Lyapunov exponents ----------------------------------------------------------------------------------------------


def with_moduli(moduli: list[float], angles: list[float | None]) -> Tensor:
    """A matrix with real eigenvalues and conjugate pairs of these moduli, in no special basis."""
    blocks = []
    for m, angle in zip(moduli, angles, strict=True):
        c, s = (1.0, 0.0) if angle is None else (math.cos(angle), math.sin(angle))
        block = [[c]] if angle is None else [[c, -s], [s, c]]
        blocks.append(m * torch.tensor(block, dtype=torch.float64))
    D = torch.block_diag(*blocks)
    V = torch.eye(len(D), dtype=torch.float64) + 0.3 * r(*D.shape)
    return V @ D @ torch.linalg.inv(V)


def test_a_constant_system_has_the_logarithms_of_its_eigenvalues() -> None:
    """By QR: the mean over eigenvalues of one modulus to 1e-6 after burn-in, each one within 10 / T."""
    torch.manual_seed(0)
    A = with_moduli([1.05, 0.9, -0.7, 0.5, 0.2], [None, 0.7, None, 2.0, None])
    length = 1200
    found = lyapunov(constant(A, length), method="qr", burn_in=200)
    want = torch.linalg.eigvals(A).abs().log().sort(descending=True).values
    got = found.exponents[0, 0]
    assert float((got - want).abs().max()) < 10 / length
    for group in ([0], [1, 2], [3], [4, 5], [6]):
        assert abs(float(got[group].mean() - want[group].mean())) < 1e-6
    exact = lyapunov(constant(A, 3))
    assert exact.method == "eigenvalues"
    assert exact.largest == pytest.approx(math.log(1.05), abs=1e-12)
    torch.testing.assert_close(exact.exponents[0, 0], want)
    assert lyapunov(constant(A, length), method="qr", k=2).exponents.shape == (1, 1, 2)


@pytest.mark.parametrize("name", LINEAR)
def test_all_exponents_together_are_the_mean_log_determinant(name: str) -> None:
    """Of every structure: feedback, micro-steps, complex, dense, shared heads."""
    torch.manual_seed(0)
    system = CASES[name]()
    found = lyapunov(system, method="qr", burn_in=0)
    A = token_transitions(system.to(torch.float64))
    A = A.expand(system.B, system.T, -1, -1, -1)
    A = A.repeat_interleave(system.H // A.shape[2], 2)
    want = torch.linalg.det(A).abs().log().mean(1)
    want = want.masked_fill(torch.linalg.cond(A).amax(1) > 1e15, -torch.inf)  # a reset, but for rounding
    torch.testing.assert_close(found.exponents.sum(-1), want, rtol=1e-8, atol=1e-8)
    if not torch.isinf(want).any():  # the largest is that of the product: no stretching is lost
        P = A[:, 0]
        for t in range(1, system.T):
            P = A[:, t] @ P
        top = torch.linalg.matrix_norm(P, ord=2).log() / system.T
        assert float((found.exponents[..., 0] - top).abs().max()) < 10 / system.T


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "product", "complex", "signed", "identity"])
def test_exponents_of_diagonal_transitions_are_the_mean_log_decays(kind: str) -> None:
    torch.manual_seed(0)
    system = decay(kind)
    exact, by_qr = lyapunov(system), lyapunov(system, method="qr", burn_in=0)
    assert exact.method == ("eigenvalues" if kind == "identity" else "diagonal")
    torch.testing.assert_close(exact.exponents.sum(-1), by_qr.exponents.sum(-1))
    logs = spectrum(system, tokens=range(system.T)).eigenvalues.abs().log().mean(1)
    want = logs.sort(-1, descending=True).values.expand_as(exact.exponents)
    torch.testing.assert_close(exact.exponents, want, atol=1e-12, rtol=1e-9)


def test_a_hard_reset_forgets_everything() -> None:
    assert lyapunov(decay("reset")).largest == -math.inf


class Logistic(sf.Cell):
    """x -> 4 x (1 - x): its exponent is ln 2, by the conjugacy with the tent map."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def start(self) -> Tensor:
        return torch.full((1, 1), 0.1234)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        s = s + x.unsqueeze(-2)
        return 4 * s * (1 - s)


class Henon(sf.Cell):
    """(x, y) -> (1 - 1.4 x^2 + y, 0.3 x): largest exponent 0.419 (Sprott, Chaos and Time-Series Analysis, 2003)."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        s = s + x.unsqueeze(-2)
        return torch.stack([1 - 1.4 * s[..., 0] ** 2 + s[..., 1], 0.3 * s[..., 0]], -1)


@pytest.mark.parametrize(("cell", "rows", "largest"), [(Logistic, 8, math.log(2)), (Henon, 64, 0.419)])
def test_chaotic_maps_have_their_published_exponents(cell: type[sf.Cell], rows: int, largest: float) -> None:
    """Rows start apart, by what the first input adds to the state; within 2%."""
    layer = cell()
    u = torch.zeros(rows, 2000, layer.d_model, dtype=torch.float64)
    u[:, 0, 0] = torch.linspace(0, 0.3, rows)
    found = lyapunov(layer.double(), u)
    assert float(found.exponents[..., 0].mean()) == pytest.approx(largest, rel=0.02)
    assert float(found.error[..., 0].mean()) < 0.05  # and knows what a single row is worth
    if cell is Henon:  # the determinant is -0.3 everywhere
        torch.testing.assert_close(found.exponents.sum(-1), torch.full((rows, 1), math.log(0.3), dtype=torch.float64))


def test_the_exponents_of_a_model_are_those_of_its_layers() -> None:
    """The joint Jacobian is block triangular: the volume that it keeps is what its layers keep, at every token."""
    torch.manual_seed(0)
    m = sf.LanguageModel("gru qlstm", d_model=4, vocab_size=64).double().eval()
    size = sum(x[0].numel() for name, x in m.init_state().tensors.items() if name.endswith("S"))
    found = lyapunov(m, tokens(2, 8), k=size, burn_in=0)
    assert set(found.layers) == {"blocks.0.mixer", "blocks.1.mixer"}
    alone = torch.cat([x.exponents.flatten(1) for x in found.layers.values()], 1)
    assert found.exponents.shape == (2, 1, size) == (2, 1, alone.shape[1])
    torch.testing.assert_close(found.exponents.sum((1, 2)), alone.sum(1), rtol=1e-9, atol=1e-9)
    got, want = found.exponents[:, 0, 0], alone.amax(1)
    assert float((got - want).abs().max()) < 10 / 8
    assert "blocks.0.mixer" in str(found)
    assert found.to_dict()["method"] == "jvp"


def test_a_cache_of_keys_keeps_differences() -> None:
    """A softmax layer adds exponents 0: what its cache holds is kept."""
    found = lyapunov(model("softmax gla"), tokens(1, 25), k=2)
    assert set(found.layers) == {"blocks.1.mixer"}
    assert found.layers["blocks.1.mixer"].largest < -0.02
    assert -0.005 < float(found.exponents.min()) <= found.largest < 0.1


def test_what_has_no_exponents_says_so() -> None:
    with pytest.raises(StateformError, match="state grows"):
        lyapunov(softmax())
    with pytest.raises(StateformError, match="k is 9"):
        lyapunov(decay("scalar"), k=9)
    with pytest.raises(StateformError, match="tokens"):
        lyapunov(model("gla"))
    with pytest.raises(StateformError, match="scale that moves"):
        lyapunov(model("mlstm"), tokens(1, 5))
    with pytest.raises(StateformError, match="burn_in"):
        lyapunov(decay("scalar"), burn_in=70)


# -- norm bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
def test_norms_growth_and_gain_against_dense_matrices(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    found = stability(system)
    A = token_steps(system.to(torch.float64))
    steps = system.T * system.micro
    A = A.expand(-1, steps, -1, -1, -1).repeat_interleave(system.H // A.shape[2], 2)
    norms = torch.linalg.matrix_norm(A, ord=2)
    got = found.log_norms.exp().expand(norms.shape[0], steps, -1)
    torch.testing.assert_close(got, norms.expand_as(got), rtol=1e-7, atol=1e-9)
    worst = 1.0
    for start in range(0, steps, 7):
        P = norms[:, start:].cumprod(1)
        worst = max(worst, float(P.max()))
    assert found.growth >= worst * (1 - 1e-9)
    if system.readout.linear and system.v is not None and system.log_b is None and system.eta is None:
        _, state = sf.run(system, "recurrent", return_state=True)
        size = float(torch.linalg.matrix_norm(state["S"]).max())
        assert size <= found.gain * float(system.v.norm(dim=-1).max()) * (1 + 1e-9)


def test_growth_is_the_worst_stretch() -> None:
    log = torch.tensor([-1.0, 0.5, 0.25, -0.1, 0.3, -2.0, 0.6]).double()
    found = stability(sf.System(r(1, 7, 1, 3), r(1, 7, 1, 3), r(1, 7, 1, 2), log_decay=log[None, :, None]))
    assert found.growth == pytest.approx(math.exp(0.95))
    assert not found.contractive
    assert "amplify" in str(found)


def test_a_quadratic_lyapunov_function_bounds_powers_that_grow_first() -> None:
    A = torch.tensor([[0.9, 5.0], [0.0, 0.8]]).double()
    found = stability(constant(A, 10))
    assert found.quadratic is not None
    rate, c = found.quadratic
    powers = [float(torch.linalg.matrix_norm(torch.linalg.matrix_power(A, t), ord=2)) for t in range(200)]
    assert max(powers) > 5  # the transient that eigenvalues do not show
    assert all(p <= c * rate**t * (1 + 1e-9) for t, p in enumerate(powers))
    assert 0.9 <= rate < 1
    assert found.scope == "every input"
    normal = stability(constant(torch.diag(torch.tensor([0.9, -0.5]).double()), 5)).quadratic
    assert normal == pytest.approx((0.9, math.sqrt(0.75 / 0.19)), rel=1e-6)  # P = diag(1 / (1 - a^2))
    assert stability(constant(1.2 * torch.eye(2).double(), 5)).quadratic is None


def test_scopes_of_certificates() -> None:
    assert stability(decay("identity")).scope == "every input"
    assert stability(decay("diagonal")).scope == "this input"
    assert stability(decay("diagonal"), promised=True).scope == "every input"
    assert stability(decay("product")).scope == "every input"
    torch.manual_seed(0)
    for name in ("deltanet", "gated_deltanet", "kda"):
        with torch.no_grad():
            found = stability(sf.build(name, d_model=16).system(torch.randn(1, 30, 16)))
        assert found.scope == "this input"
        assert found.contractive
        assert ("decay (I - c w w^T)" in found.why and "between 0 and 2" in found.why) == (name != "kda")
    with pytest.raises(StateformError, match="finite state"):
        stability(softmax())


# -- a perturbation, and gradients -----------------------------------------------------------------------------------


def test_a_perturbation_of_a_decay_fades_as_the_decay() -> None:
    a, length = 0.9, 60

    def layer(x: Tensor) -> Tensor:
        ones = torch.ones(1, 1).double()
        y = sf.run(sf.System(ones, ones, x.unsqueeze(2), log_decay=torch.tensor([a], dtype=torch.float64).log()))
        return y.squeeze(2)  # type: ignore[union-attr]

    x = r(2, length, 4)
    found = perturbation(layer, x, at=10, eps=1e-3)
    want = a ** torch.arange(length - 10).double()
    torch.testing.assert_close(found.sizes[1], want, rtol=1e-8, atol=1e-10)
    assert found.per_token == pytest.approx(math.log(a), rel=1e-6)
    assert found.nonlinearity < 1e-6
    two = perturbation([layer, layer], x, at=10)
    torch.testing.assert_close(two.sizes[2], want * torch.arange(1, length - 9), rtol=1e-8, atol=1e-9)
    with pytest.raises(StateformError, match="tokens 0"):
        perturbation(layer, x, at=60)


def test_a_perturbation_of_a_model_is_its_derivative() -> None:
    m, ids = model("mamba2 softmax"), tokens(1, 20)
    found = perturbation(m, ids, at=3, eps=1e-6)
    assert found.sizes.shape == (3, 17)
    assert found.nonlinearity < 1e-3
    bound = gradient_paths(m, ids, queries=range(3, 20)).norms[0, 0, :, 3]
    assert bool((found.sizes[-1] <= bound * 1.001).all())
    with pytest.raises(StateformError, match="dropout"):
        perturbation(model("gla", dropout=0.5).train(), ids)


def test_gradients_of_a_layer_are_its_jacobian() -> None:
    torch.manual_seed(0)
    layer, x = sf.build("gated_deltanet", d_model=8).double(), r(1, 12, 8)
    found = gradient_paths(layer, x, queries=[4, 11])
    J = torch.autograd.functional.jacobian(layer, x)[0, :, :, 0]  # [T,d,T,d]
    for row, i in enumerate([4, 11]):
        want = torch.linalg.matrix_norm(J[i].transpose(0, 1), ord=2)
        torch.testing.assert_close(found.norms[0, 0, row], want)


def test_the_law_of_a_known_decay_is_found() -> None:
    a, length = 0.9, 200
    ones = torch.ones(1, length, 1, 1).double()
    fading = gradient_paths(
        sf.System(ones, ones, ones, log_decay=torch.tensor([a], dtype=torch.float64).log()), name="decay"
    )
    assert fading.law == "exponential"
    assert fading.exponential.value == pytest.approx(-1 / math.log(a), rel=1e-9)
    assert fading.exponential.r2 == pytest.approx(1)
    t = torch.arange(1, length + 1).double()
    drift = (-0.5 * (t + 1).log() + 0.5 * t.log())[None, :, None]  # a product of ((j+1)/(i+1))^0.5: no law in i - j
    slow = gradient_paths(sf.System(ones, ones, ones, log_decay=drift), queries=[length - 1])
    assert slow.exponential.value > 30
    zeros = torch.zeros(1, length, 1, 1).double()
    flat = gradient_paths(sf.System(zeros, zeros, ones, readout="exp", eta="sum"), queries=[length - 1])
    assert abs(1 / flat.exponential.value) < 1e-9  # attention to equal keys knows no distance
    assert flat.receptive_field() == 0.95 * length
    assert "tau" in fading.to_dict()


@pytest.mark.parametrize("model", [False, True])
def test_the_size_of_gradients_is_estimated_before_the_layer_runs(model: bool) -> None:
    thing = sf.LanguageModel("linear", d_model=16, vocab_size=9).eval() if model else sf.build("linear", d_model=16)
    seen: list[int] = []
    mixer = thing.blocks[0].mixer if model else thing  # type: ignore[index,union-attr]
    mixer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    u = torch.zeros(1, 500, dtype=torch.long) if model else torch.zeros(1, 500, 16)
    with pytest.raises(StateformError, match="fewer queries"):
        gradient_paths(thing, u, limit=1e6)
    assert sum(seen) <= 1


def test_a_power_law_is_told_from_an_exponential() -> None:
    d = torch.arange(200).double().flip(0)
    norms = torch.where(d > 0, d.clamp_min(1) ** -1.5, 1.0)[None, None, None]
    from stateform.analysis import GradientPaths

    found = GradientPaths(norms, [199])
    assert found.law == "power"
    assert found.power.value == pytest.approx(1.5, rel=1e-9)


def test_measured_and_predicted_receptive_fields() -> None:
    """Without gates, keys or convolutions from the input the two are the same; a convolution adds to the Jacobian."""
    torch.manual_seed(0)
    x = r(1, 100, 16)
    plain = receptive_fields(sf.build("retention", d_model=16).double(), x, queries=[99])
    assert abs(plain.measured - plain.predicted) <= 15
    layer = sf.build("mamba2", d_model=16).double()
    found = receptive_fields(layer, x, queries=[99])
    assert found.measured >= 1
    with torch.no_grad():
        assert found.predicted == horizon(layer.system(x), queries=[99]).quantile(0.5)
    with pytest.raises(StateformError, match="GB"):
        gradient_paths(layer, x, limit=10)
    with pytest.raises(StateformError, match="causal"):
        gradient_paths(softmax(causal=False))


# -- token dynamics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "verdict"), [(-1.0, "converge"), (1.0, "diverge")])
def test_tokens_of_a_deep_selective_ssm_go_where_their_parameters_say(mu: float, verdict: str) -> None:
    """Width 1, depth as time: dx_i/dtau = sum_j (S_C x_i) A^.. (S_B x_j) Delta_j x_j."""
    S_B, S_C = torch.tensor([[1.0]]).double(), torch.tensor([[mu]]).double()
    assert token_dynamics(S_B, S_C).verdict == verdict
    x = torch.tensor([0.5, -0.8, 0.3, 1.0]).double()[None, :, None]
    start = float(x.abs().max())
    for _ in range(1200):
        dt = torch.nn.functional.softplus(x)
        system = sf.System(
            (x @ S_C.T).unsqueeze(2), (x @ S_B.T).unsqueeze(2), x.unsqueeze(2),
            log_decay=(dt, -torch.ones(1, 1).double()), b=dt,
        )  # fmt: skip
        y = sf.run(system, "recurrent")
        x = x + 0.05 * y.squeeze(2)  # type: ignore[union-attr]
        if float(x.abs().max()) > 100:
            break
    assert float(x.abs().max()) < 0.4 * start if verdict == "converge" else float(x.abs().max()) > 100


def test_token_dynamics_are_those_of_real_maps() -> None:
    with pytest.raises(StateformError, match="complex"):
        token_dynamics(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.complex64))


def test_token_dynamics_in_more_dimensions() -> None:
    eye = torch.eye(3)
    assert token_dynamics(eye, torch.diag(torch.tensor([-1.0, -2.0, 0.5]))).verdict == "diverge"
    assert token_dynamics(eye, -eye).verdict == "converge"
    assert token_dynamics(eye, torch.zeros(3, 3)).verdict == "undecided"
    found = token_dynamics(sf.build("mamba", d_model=8))
    assert found.eigenvalues.shape == (16,)
    assert "premises" in str(found)
    with pytest.raises(StateformError, match="x_proj"):
        token_dynamics(sf.build("gla", d_model=8))
    with pytest.raises(StateformError, match="expected two"):
        token_dynamics(eye, torch.zeros(2, 3))


# -- representation --------------------------------------------------------------------------------------------------


def test_effective_rank_and_spectral_decay_of_known_spectra() -> None:
    torch.manual_seed(0)
    Q = torch.linalg.qr(r(200, 20))[0]
    assert float(effective_rank(Q)) == pytest.approx(20)
    assert float(effective_rank(r(200, 1) @ r(1, 20))) == pytest.approx(1)
    Q = torch.linalg.qr(torch.cat([torch.ones(200, 1).double(), r(200, 20)], 1))[0][:, 1:]  # columns of mean 0
    k = torch.arange(1, 21).double()
    alpha, error = spectral_decay(Q * k**-0.75)
    assert float(alpha) == pytest.approx(1.5, rel=1e-9)
    assert float(error) < 1e-9


def test_a_turn_of_features_in_the_complex_plane_changes_no_rank() -> None:
    Y = r(40, 6)
    turned = Y * torch.polar(torch.ones(6, dtype=torch.float64), 3 * torch.rand(6, dtype=torch.float64))
    torch.testing.assert_close(effective_rank(turned), effective_rank(Y))
    torch.testing.assert_close(spectral_decay(turned), spectral_decay(Y))


def test_representation_of_a_model_layer_by_layer() -> None:
    m, ids = model("mamba2 softmax"), tokens(2, 64)
    found = representation(m, ids)
    assert len(found.ranks) == 3
    assert all(1 <= rank <= 16 + 1e-9 for rank in found.ranks)
    x = m.embedding(ids).flatten(0, 1).detach()  # type: ignore[misc]
    assert found.ranks[0] == pytest.approx(float(effective_rank(x)))
    assert (found.tokens, found.width) == (128, 16)
    assert "layer 2" in str(found)
    assert found.to_dict()["width"] == 16


def test_the_last_of_the_stream_is_what_the_final_norm_sees() -> None:
    from stateform.analysis.attention.stream import stream

    m, ids = model("gla retention"), tokens(2, 10)
    with torch.no_grad():
        torch.testing.assert_close(m.norm(stream(m, ids)[-1]), m.hidden(ids)[0])


def test_feedback_with_the_same_direction_is_recognised() -> None:
    torch.manual_seed(0)
    assert "between 0 and" in stability(feedback("identity")).why
