"""State need and the time-varying reduction against dense singular value decompositions of the whole operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.analysis import has_weights, state_need
from stateform.convert import reduce_varying
from tests.systems import CASES, B, N, T, decay, feedback, r, softmax, u

SPLITS = [1, 20, 33, 69]
SCALAR = [name for name in CASES if not any(x in name for x in ("axis", "whole", "modes", "complex values"))]
SLOW = ("ridge, conjugate gradients", "ridge, chebyshev", "ridge, relative, chebyshev")
REDUCED = [
    name
    for name in SCALAR
    if not any(x in name for x in ("micro", "feedback, exclusive", "feedback, b, d")) and name not in SLOW
]


def drawn(name: str) -> sf.System:
    torch.manual_seed(0)
    return CASES[name]()


def operator(system: sf.System) -> Tensor:
    """Phi with its output axis, [B,H,T,o,T*micro], written out."""
    if has_weights(system):
        return system.coefficients().unsqueeze(3)
    if system.v is None:
        return system.contributions().movedim(-1, 3)
    heads = [system.map(lambda name, x, o=o: x[..., o, :] if name == "q" else x) for o in range(system.q.shape[-2])]  # type: ignore[union-attr]
    return torch.stack([head.coefficients() for head in heads], 3)


def block(phi: Tensor, t: int) -> Tensor:
    """H_t, [B,H,(T-t)*o,t*micro]."""
    return phi[:, :, t:, :, : t * (phi.shape[-1] // phi.shape[2])].flatten(2, 3)


def rank(H: Tensor, allowed: Tensor) -> Tensor:
    """The least rank within a squared error, by a dense decomposition."""
    squares = torch.linalg.svdvals(H).square()
    count = [squares[..., k:].sum(-1) <= allowed for k in range(squares.shape[-1] + 1)]
    return torch.stack(count, -1).int().argmax(-1)


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        *((name, "block") for name in CASES),
        *((name, "operator") for name in ("complex", "micro-steps", "softmax, all")),
    ],
)
def test_ranks_norms_and_bounds_are_those_of_the_dense_blocks(name: str, relative: str) -> None:
    """At the splits and, by bounds, at every other token; vector states, micro-steps and complex states included."""
    system = drawn(name)
    phi = operator(system)
    found = state_need(system, 1e-3, relative=relative, splits=SPLITS)  # type: ignore[arg-type]
    total = phi.abs().square().sum((2, 3, 4))
    torch.testing.assert_close(found.total, total)
    (least, most), (low, high) = found.ranks(), found.bounds()
    assert (least <= most).all()
    for t in sorted({*SPLITS, *range(2, T, 9)}):
        H = block(phi, t)
        energy = H.abs().square().sum((-2, -1))
        torch.testing.assert_close(found.energy[..., t - 1], energy, rtol=1e-7, atol=0.0)
        true = rank(H, 1e-6 * (energy if relative == "block" else total))
        assert (low[..., t - 1] <= true).all() and (true <= high[..., t - 1]).all(), t
        if t in SPLITS:
            at = SPLITS.index(t)
            assert (least[..., at] <= true).all() and (true <= most[..., at]).all(), t
            kept, sizes = found.values[:, :, at].square(), torch.linalg.svdvals(H).square()
            # Nothing is lost sight of: what is kept and what is dropped make up the block.
            torch.testing.assert_close(kept.sum(-1) + found.missing[:, :, at], sizes.sum(-1))
            if found.state is not None:  # a linear readout: exact
                width = min(kept.shape[-1], sizes.shape[-1])
                torch.testing.assert_close(
                    kept[..., :width], sizes[..., :width], rtol=1e-6, atol=1e-12 * float(sizes.max())
                )


@pytest.mark.parametrize("name", [name for name in CASES if "softmax" not in name])
def test_a_finite_state_is_never_exceeded(name: str) -> None:
    """n, or 2 n for a complex state of which the real part is read; random systems reach it."""
    system = drawn(name)
    found = state_need(system, 1e-10, relative="block", splits=[35])
    heads = system.H if system.w_out is not None else 1
    real = system.q is not None or system.w_out is not None
    real = real and not (system.v is not None and system.v.is_complex())
    vectors = (system.k, system.q, system.w_out)
    twice = real and (system.is_complex or any(x is not None and x.is_complex() for x in vectors))
    assert found.state == heads * system.n * (2 if twice else 1)
    assert int(found.need.max()) <= found.state
    dense = [system.decay_kind == "dense", "constant" in name, "time-inv" in name, "reset" in name, "modes" in name]
    if not any(dense) and "exponential" not in name:
        assert int(found.need.min()) == found.state


def test_the_rank_of_known_operators() -> None:
    """The mean of the past needs one number, a delay of d tokens d of them, the present alone none."""
    length = 40
    mean = torch.ones(length, length, dtype=torch.float64).tril() / torch.arange(1, length + 1)[:, None]
    assert state_need(mean, 1e-8).per_head() == [1]
    delay = torch.diag(torch.ones(length - 5, dtype=torch.float64), -5)
    assert state_need(delay, 1e-3, relative="block", splits=[20]).per_head() == [5]
    assert state_need(torch.eye(length, dtype=torch.float64)).per_head() == [0]


def test_half_of_an_operator_may_be_left_out() -> None:
    """Two orthogonal parts of known size: the tolerance says at which the second one may go."""
    e = torch.eye(8, dtype=torch.float64)
    alpha = torch.zeros(8, 8, dtype=torch.float64)
    alpha += 2.0 * torch.outer(e[6], e[1]) + 1.0 * torch.outer(e[7], e[2])
    for tol, state in ((0.44, 2), (0.45, 1)):  # 1 / sqrt(5) = 0.447
        assert state_need(alpha, tol, splits=[4]).per_head() == [state]
        assert state_need(alpha, tol, relative="block", splits=[4]).per_head() == [state]


def test_dropped_rows_are_accounted_for() -> None:
    """Where the carried rows are compressed at every split, least and most still enclose the rank."""
    torch.manual_seed(1)
    phi = softmax(forget=-u(4)).coefficients()
    found = state_need(phi, 0.1, splits=range(1, T), relative="block")
    assert float(found.missing.max()) > 0
    least, most = found.ranks()
    for at, t in enumerate(found.splits):
        H = phi[:, :, t:, :t]
        true = rank(H, 0.01 * H.square().sum((-2, -1)))
        assert (least[..., at] <= true).all() and (true <= most[..., at]).all()


def test_softmax_weights_and_the_system_need_the_same_and_heads_can_be_chosen() -> None:
    torch.manual_seed(0)
    system = softmax(2)
    whole, weights = state_need(system), state_need(system.coefficients())
    assert whole.per_head() == weights.per_head()
    assert state_need(system, heads=[2]).per_head() == whole.per_head()[2:3]
    assert state_need(system.coefficients(), heads=2).per_head() == whole.per_head()[2:3]


def test_no_operator_of_the_whole_length_is_made_for_a_linear_readout() -> None:
    """Counted: memory grows with the length, not with its square."""
    from stateform.analysis import peak_bytes

    def peak(length: int) -> int:
        system = sf.System(r(1, length, 1, 4), r(1, length, 1, 4), r(1, length, 1, 4), log_decay=-u(1, length, 1))
        return peak_bytes(lambda: state_need(system, splits=range(64, length, 64)))

    assert peak(2048) < 6 * peak(512)


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.drawn(0.4)
def test_a_reduced_system_is_off_by_what_it_says(name: str) -> None:
    """||Phi - Phi'||_F is the bound itself, within tol; the diagonal is exact; the outputs are within the bound."""
    system = drawn(name)
    found = reduce_varying(system, 0.1)
    phi, new = operator(system).squeeze(3), found.system.coefficients()
    norm = phi.norm(dim=(-2, -1))
    assert (found.relative <= 0.1).all()
    torch.testing.assert_close((phi - new).norm(dim=(-2, -1)) / norm, found.relative, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(new.diagonal(dim1=-2, dim2=-1), phi.diagonal(dim1=-2, dim2=-1), rtol=1e-9, atol=1e-12)
    y, want = sf.run(found.system), sf.run(system, "recurrent")
    assert isinstance(y, Tensor) and isinstance(want, Tensor) and system.v is not None
    size = system.v.repeat_interleave(system.H // system.v.shape[2], 2).norm(dim=1)
    assert ((y - want).norm(dim=1) <= found.bound.unsqueeze(-1) * size * (1 + 1e-6) + 1e-9 * want.abs().max()).all()
    assert found.ok
    if not system.readout.cached:
        assert found.system.n <= system.n * (2 if system.is_complex or system.k.is_complex() else 1)
    # One state fewer would not do.
    fewer = int(found.orders.max()) - 1
    if fewer > 0:
        assert float(reduce_varying(system, order=fewer).relative.max()) > 0.1


def test_no_fewer_states_than_state_need_says() -> None:
    """The constructed orders lie at or above the necessary ones."""
    torch.manual_seed(2)
    for system in (softmax(), decay("complex"), feedback("diagonal")):
        least = state_need(system, 0.1, splits=range(1, T)).ranks()[0].amax(-1)
        assert (reduce_varying(system, 0.1).orders >= least).all()


def test_a_reduced_system_is_contractive() -> None:
    """c^T c + A^T A is a projection, so no state grows."""
    found = reduce_varying(softmax(), 0.1).system
    assert found.transition is not None and found.q is not None
    assert float(torch.linalg.matrix_norm(found.transition, ord=2).max()) <= 1 + 1e-9
    gram = found.q.unsqueeze(-1) * found.q.unsqueeze(-2) + found.transition.mT @ found.transition
    torch.testing.assert_close(gram @ gram, gram)


def test_float32_comes_back_as_float32() -> None:
    system = softmax().to(torch.float32)
    found = reduce_varying(system, 0.1)
    assert found.system.dtype == torch.float32 and found.ok


def test_results_print_and_serialise() -> None:
    import json

    torch.manual_seed(0)
    found = state_need(softmax(), 0.1, splits=5)
    assert "per head" in str(found) and len(found.to_dict()["heads"]) == 4
    json.dumps(found.to_dict())
    reduced = reduce_varying(softmax(), 0.1)
    assert "states for" in str(reduced)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: state_need(torch.ones(4, 4)), "see the future"),
        (lambda: state_need(torch.ones(4, 3)), "expected a System or weights"),
        (lambda: state_need(softmax(), 2.0), "tol is 2.0"),
        (lambda: state_need(softmax(), splits=[0]), "with no past"),
        (lambda: state_need(softmax(), splits=0), "splits is 0"),
        (lambda: state_need(softmax(), relative="most"), "relative is"),  # type: ignore[arg-type]
        (lambda: state_need(softmax(), limit=1e3), "choose heads="),
        (lambda: state_need(decay("scalar"), limit=1e3), "choose heads="),
        (lambda: state_need(softmax(causal=False)), "not causal"),
        (lambda: reduce_varying(CASES["whole state"]()), r"vector states \(v = None\)"),
        (lambda: reduce_varying(CASES["micro-steps"]()), r"one write .* has \d writes a token"),
        (lambda: reduce_varying(CASES["complex values"]()), "values are complex"),
        (lambda: reduce_varying(softmax(), order=0), "order is 0"),
        (lambda: reduce_varying(softmax(), limit=1e3), "shorter stretch"),
        (lambda: reduce_varying(softmax(), 0.0), "tol is 0.0"),
    ],
)
def test_errors_say_what_to_do(call: object, message: str) -> None:
    with pytest.raises(sf.StateformError, match=message):
        call()  # type: ignore[operator]


def test_short_sequences() -> None:
    """One token has no split; two have one."""
    system = sf.System(r(B, 1, 2, N), r(B, 1, 2, N), r(B, 1, 2, 3))
    assert state_need(system).per_head() == [0, 0]
    assert reduce_varying(system, 0.1).ok
    two = sf.System(r(1, 2, 1, N), r(1, 2, 1, N), r(1, 2, 1, 3), readout="exp", eta="sum")
    assert state_need(two).per_head() == [1]
    assert state_need(two).splits == [1]
