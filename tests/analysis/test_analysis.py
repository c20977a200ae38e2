"""The analysis against direct computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.analysis import cost, has_weights, horizon, influence, peak_bytes, spectrum
from stateform.system.core import fold
from tests.systems import CASES, N, T, decay, feedback, softmax, u


def system_of(name: str, length: int = 60, **options: object) -> tuple[nn.Module, sf.System, Tensor]:
    torch.manual_seed(0)
    layer = sf.build(name, d_model=16, **options).double()
    x = torch.randn(1, length, 16, dtype=torch.float64)
    with torch.no_grad():
        return layer, layer.system(x), x


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.drawn(0.4)
def test_influence_is_the_jacobian_of_the_reads(name: str) -> None:
    """With k, q, decays and gates held, y_i depends on v_j through alpha_ij alone."""
    _, system, _ = system_of(name, 12)
    found = influence(system, queries=[5, 11])
    if not has_weights(system):
        assert found.shape == (1, 1 if system.w_out is not None else system.H, 2, 12)
        return
    assert system.v is not None
    v = system.v

    def y(values: Tensor) -> Tensor:
        parts = {"v": values}
        other = system.map(lambda key, x: parts.get(key, x))
        return sf.run(other, "recurrent")  # type: ignore[return-value]

    jacobian = torch.autograd.functional.jacobian(y, v)  # [1,T,H,p,1,T,Hv,p]
    for query, i in enumerate([5, 11]):
        for h in range(system.H):
            hv = h * v.shape[2] // system.H
            per_step = jacobian[0, i, h, 0, 0, :, hv, 0]
            torch.testing.assert_close(found[0, h, query], per_step.unflatten(0, (12, system.micro)).sum(1))


def test_the_horizon_holds_its_share_and_no_shorter_one_does() -> None:
    torch.manual_seed(0)
    system = decay("diagonal")
    found = horizon(system, share=0.9)
    mass = system.coefficients(queries=found.queries).abs()
    for query, i in enumerate(found.queries):
        for b in range(system.B):
            for h in range(system.H):
                d, row = int(found.tokens[b, h, query]), mass[b, h, query, : i + 1]
                assert row[i + 1 - d :].sum() >= 0.9 * row.sum() * (1 - 1e-9)
                assert d == 1 or row[i + 2 - d :].sum() < 0.9 * row.sum()


def test_the_horizon_of_a_known_decay() -> None:
    """With alpha_ij = a^(i-j) the last d tokens hold 1 - a^d of the mass."""
    a, length = 0.9, 400
    ones = torch.ones(1, length, 1, 1, dtype=torch.float64)
    system = sf.System(ones, ones, ones, log_decay=torch.tensor([a], dtype=torch.float64).log())
    found = horizon(system, share=0.95, queries=[length - 1])
    assert found.per_head() == [29.0]  # ln 0.05 / ln 0.9 = 28.4
    assert found.quantile(0.5) == 29.0
    assert found.to_dict()["by_position"] == {"t": [length - 1], "median": [29.0]}


def test_softmax_over_equal_keys_remembers_everything() -> None:
    zeros = torch.zeros(1, 100, 1, 2, dtype=torch.float64)
    system = sf.System(zeros, zeros, zeros, readout="exp", eta="sum")
    assert horizon(system, queries=[99]).per_head() == [95.0]


@pytest.mark.parametrize("make", [decay, feedback])
@pytest.mark.parametrize("kind", ["identity", "scalar", "diagonal", "complex", "dense", "constant"])
def test_spectrum_and_norm_are_those_of_dense_matrices(kind: str, make: object) -> None:
    torch.manual_seed(0)
    system = make(kind)  # type: ignore[operator]
    found = spectrum(system, tokens=[0, 7, T - 1])
    dense = fold(system).transition().dense(N)
    dense = dense.expand(system.B, T, *dense.shape[2:])[:, [0, 7, T - 1]]
    assert found.norm == pytest.approx(float(torch.linalg.svdvals(dense).max()), rel=1e-9)
    assert found.radius == pytest.approx(float(torch.linalg.eigvals(dense).abs().max()), rel=1e-9)
    assert found.smallest == pytest.approx(float(torch.linalg.eigvals(dense).abs().min()), rel=1e-6)
    assert found.is_complex == bool((torch.linalg.eigvals(dense).imag.abs() > 1e-6).any())
    assert len(found.sample(5)) == 5


def test_the_eigenvalue_of_softmax_is_the_ratio_of_normalisers() -> None:
    torch.manual_seed(0)
    system = softmax()
    assert system.q is not None
    weights = torch.einsum("bihn,bjhn->bhij", system.q, system.k).exp().tril()
    eta = weights.sum(-1).transpose(1, 2)
    want = eta[:, :-1] / eta[:, 1:]
    got = spectrum(system, tokens=range(T)).eigenvalues
    torch.testing.assert_close(got.real[:, 1:, :, 0], want)


def test_normalised_spectrum_and_matrices_are_in_the_coordinates_of_the_dsf() -> None:
    """Linear attention: Lambda_i = eta_{i-1}/eta_i I (arXiv 2405.15731, eq. 15a)."""
    torch.manual_seed(0)
    system = CASES["eta sum"]()[:9]
    plain = sf.System(system.q, system.k, system.v, eta="sum")
    assert plain.q is not None
    eta = torch.einsum("bthn,bthn->bth", plain.q, plain.k.cumsum(1))
    got = plain.spectrum(normalised=True)
    torch.testing.assert_close(got.real[:, 1:], (eta[:, :-1] / eta[:, 1:])[..., None].expand_as(got.real[:, 1:]))
    Lambda = plain.matrices(normalised=True).Lambda
    torch.testing.assert_close(Lambda.diagonal(dim1=-2, dim2=-1)[:, 1:, :, :1], got.real[:, 1:, :, :1])


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.drawn(0.3)
def test_counted_work_and_estimated_memory_are_near_the_truth(name: str) -> None:
    _, system, _ = system_of(name, 512)
    system = system.to(torch.float32)
    with torch.no_grad():
        for form, why_not in system.forms().items():
            if why_not is not None or form == "recurrent":  # whose memory is its output
                continue
            measured = peak_bytes(lambda form=form: sf.run(system, form))  # type: ignore[misc]
            estimate = cost(system, form)
            assert 0.4 * measured < estimate.bytes < 40 * max(measured, 1e5), form
            assert estimate.flops > 0


def test_work_grows_as_the_form_says() -> None:
    torch.manual_seed(0)

    def flops(form: str, length: int) -> float:
        q = torch.zeros(1, length, 2, 8)
        return cost(sf.System(q, q, q, log_decay=-torch.zeros(1, length, 2)), form).flops

    for form in ("recurrent", "chunkwise"):
        assert flops(form, 4096) == pytest.approx(4 * flops(form, 1024), rel=1e-6)
    assert flops("matrix", 4096) / flops("matrix", 1024) == pytest.approx(16, rel=0.1)
    q = torch.zeros(1, 1024, 2, 8)
    # q k^T and weights times values, half of the square each: 2 * 2 * T^2/2 * (n + p) per head.
    assert cost(sf.System(q, q, q, readout="exp", eta="sum"), "matrix").flops == 2 * 2 * 1024**2 / 2 * 16


def test_peak_memory_counts_what_lives_at_once() -> None:
    a = torch.randn(1000, 1000)

    def chain() -> Tensor:
        b = a + 1
        c = b + 1
        del b
        return c + 1

    assert peak_bytes(chain) == 2 * 4_000_000
    assert peak_bytes(lambda: a.T) == 0


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    torch.manual_seed(0)
    with pytest.raises(sf.StateformError, match="share"):
        horizon(decay("scalar"), share=share)


def test_results_serialise() -> None:
    torch.manual_seed(0)
    system = sf.System(u(1, 9, 2, 3), u(1, 9, 2, 3), u(1, 9, 2, 3))
    assert set(spectrum(system).to_dict()) == {"abs_min", "abs_max", "real_min", "real_max", "complex"}
    keys = {"heads", "quantiles", "by_position", "share", "limited", "sinks", "rest", "window"}
    assert set(horizon(system).to_dict()) == keys
