"""Rank collapse: the two-token threshold, the lambda-skip condition and what is measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform import StateformError
from stateform.analysis import collapse, skip_bound
from stateform.analysis.attention.collapse import lambda_skip, spread, sufficient_skip, two_tokens
from tests.systems import c, r


def ssm(Y: Tensor, a: float = 1.0) -> sf.System:
    """The selective SSM with B_t = C_t = y_t and A_t = a (y_t of norm one; `lambda_skip` has rows of norm sqrt(d))."""
    y = Y.unsqueeze(2) / math.sqrt(Y.shape[-1])
    return sf.System(y, y, Y.unsqueeze(2), log_decay=torch.tensor([a]).to(Y).log())


def attention(Y: Tensor) -> sf.System:
    """Softmax over all tokens, with values as they are."""
    y = Y.unsqueeze(2)
    return sf.System(y / Y.shape[-1] ** 0.5, y, y, readout="exp", eta="sum", causal=False)


def two(theta: float) -> Tensor:
    return torch.tensor([[[1.0, 0.0], [math.cos(theta), math.sin(theta)]]], dtype=torch.float64)


def angle(Y: Tensor) -> float:
    """Between the lines of two tokens."""
    y = Y[0] / Y[0].norm(dim=-1, keepdim=True)
    cross = y[0, 0] * y[1, 1] - y[0, 1] * y[1, 0]
    return math.atan2(abs(float(cross)), abs(float(y[0] @ y[1])))


@pytest.mark.parametrize("a", [1.0, 0.5])
@pytest.mark.parametrize("skip", [-3.0, -1.7, -1.55, -1.45, -1.2, -0.5, 0.0, 1.0])
def test_two_tokens_follow_the_formula(skip: float, a: float) -> None:
    """tan theta -> (1 + lambda) / (1 + a + lambda) tan theta."""
    Ys = lambda_skip([lambda Y: ssm(Y, a)] * 12, two(1.0), skip)
    for depth, Y in enumerate(Ys):
        assert angle(Y) == pytest.approx(two_tokens(1.0, skip, depth, a), abs=1e-10)


@pytest.mark.parametrize("a", [1.0, 0.5])
def test_the_threshold_is_minus_one_minus_half_a(a: float) -> None:
    """-3/2 for a = 1: above it two tokens come to lie on a line, below they become orthogonal."""
    threshold = -1 - a / 2
    layers = [lambda Y: ssm(Y, a)] * 400
    assert angle(lambda_skip(layers, two(1.0), threshold + 0.02)[-1]) < 1e-6
    assert angle(lambda_skip(layers, two(1.0), threshold - 0.02)[-1]) > math.pi / 2 - 1e-6
    assert angle(lambda_skip(layers, two(1.0), threshold)[-1]) == pytest.approx(1.0)


def test_on_a_line_is_not_yet_the_same_token() -> None:
    """mu -> 0 only for lambda > -1 and tokens that begin at an acute angle."""
    layers = [ssm] * 100
    assert float(spread(lambda_skip(layers, two(1.0), -0.5)[-1])) < 1e-9
    assert float(spread(lambda_skip(layers, two(2.0), -0.5)[-1])) == pytest.approx(1)  # opposite tokens
    alternating = [float(spread(Y)) for Y in lambda_skip(layers, two(1.0), -1.2)[-2:]]
    assert min(alternating) < 1e-9
    assert max(alternating) == pytest.approx(1)


def test_attention_collapses_without_skips_and_not_with_strong_ones() -> None:
    torch.manual_seed(0)
    Y = r(2, 16, 8)
    weak, strong = collapse([attention] * 30, Y, skip=0.5), collapse([attention] * 30, Y, skip=20.0)
    assert float(weak.without_skip[:, -1].max()) < 1e-9
    assert float(weak.with_skip[:, -1].max()) < 1e-3
    assert float(strong.with_skip[:, -1].min()) > 0.5
    assert float(spread(torch.ones(1, 5, 3))) == 0
    assert float(spread(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))) == pytest.approx(1)
    assert "without skips" in str(weak)


def test_complex_tokens_are_as_far_from_their_mean_as_their_parts() -> None:
    """Both parts side by side are the same tokens, in twice the width."""
    torch.manual_seed(0)
    Y = c(2, 16, 4)

    def mixes(y: Tensor) -> Tensor:
        return y.cumsum(1)

    found = collapse([mixes] * 3, Y, skip=0.3)
    apart = collapse([mixes] * 3, torch.cat([Y.real, Y.imag], -1), skip=0.3)
    torch.testing.assert_close(found.with_skip, apart.with_skip)
    torch.testing.assert_close(found.without_skip, apart.without_skip)


def test_collapse_of_a_model_is_that_of_its_residual_stream() -> None:
    torch.manual_seed(0)
    m = sf.LanguageModel("softmax*3", d_model=16, vocab_size=64).double().eval()
    ids = torch.randint(0, 64, (2, 32))
    found = collapse(m, ids)
    assert found.with_skip.shape == found.without_skip.shape == (2, 4)
    with torch.no_grad():
        x = m.embedding(ids)  # type: ignore[misc]
        torch.testing.assert_close(found.with_skip[:, 0], spread(x))
        block = m.blocks[0]
        bare = block.mlp(block.mlp_norm(block.mixer(block.mixer_norm(x))))  # type: ignore[operator,union-attr]
        torch.testing.assert_close(found.without_skip[:, 1], spread(bare))
    deep = collapse(sf.LanguageModel("softmax*8", d_model=16, vocab_size=64, mlp_ratio=None).double().eval(), ids)
    assert float(deep.without_skip[:, -1].max()) < 0.1 < float(deep.with_skip[:, -1].min())


def test_the_sufficient_condition_is_where_its_inequality_turns() -> None:
    """lambda^2 - a (S C_M + |lambda|)^2 > 0 iff |lambda| > (a + sqrt a) / (1 - a) S C_M."""
    for a in (0.1, 0.25, 0.9):
        K = 3.0
        edge = sufficient_skip(a, 1.0, K)
        assert edge**2 - a * (K + edge) ** 2 == pytest.approx(0, abs=1e-6)
    assert sufficient_skip(0.25, 1.0, 1.0) == pytest.approx(1.0)
    assert sufficient_skip(0.5, 1.0, 1.0) == pytest.approx(2.414, abs=1e-3)
    assert sufficient_skip(0.9, 1.0, 1.0) == pytest.approx(18.49, abs=1e-2)
    with pytest.raises(StateformError, match="between 0 and 1"):
        sufficient_skip(1.0, 1.0, 1.0)


def test_what_the_theorem_promises_is_so_and_the_measured_lambda_is_far_smaller() -> None:
    torch.manual_seed(0)
    Y = r(2, 16, 8)
    found = skip_bound([attention], Y, a=0.5, skip=2000.0, S=8**0.5)
    assert found.holds
    K, N, d = 8**0.5 * found.C_M, 16, 8
    want = (1 / 0.5) * 2 * 2000 * N * d * K / (2000**2 - 0.5 * (K + 2000) ** 2)  # b of Theorem 4.1, one layer
    assert found.least == pytest.approx(want)
    Ys = lambda_skip([attention], Y, 2000.0)
    mu = [(y - y.mean(1, keepdim=True)).norm(dim=(1, 2)).square() for y in Ys]
    assert bool((mu[1] >= 0.5 * mu[0]).all())
    assert found.measured < found.needed
    assert "conservative" in str(found)
    assert found.to_dict()["holds"] is True
    assert not skip_bound([attention], Y, a=0.5, skip=1.0, S=8**0.5).holds


@pytest.mark.parametrize("layers", [1, 3])
def test_both_conditions_of_the_theorem_hold_from_one_lambda_on(layers: int) -> None:
    """The second one asks for far more, the deeper the stack: there is 1 / a^K in it."""
    torch.manual_seed(0)
    Y = r(2, 16, 8)
    found_at = {x: skip_bound([attention] * layers, Y, a=0.5, skip=x, S=8**0.5) for x in (1.0, 30.0, 300.0, 3000.0)}
    for skip, found in found_at.items():
        assert found.holds == (skip > found.enough > found.needed)
    assert [x.holds for x in found_at.values()] == [False, False, True, True]

    def fading(y: Tensor) -> sf.System:  # weights that do not depend on the tokens: the same C_M for every skip
        ones = torch.ones(*y.shape[:2], 1, 1, dtype=y.dtype)
        return sf.System(ones, ones, y.unsqueeze(2), log_decay=torch.tensor([-0.3], dtype=y.dtype))

    edge = skip_bound([fading] * layers, Y, a=0.5, S=8**0.5).enough
    for share in (0.999, 1.001):
        assert skip_bound([fading] * layers, Y, a=0.5, skip=share * edge, S=8**0.5).holds == (share > 1)


def test_the_measured_lambda_is_where_the_stack_stops_collapsing() -> None:
    torch.manual_seed(0)
    Y, layers = r(1, 16, 8), [attention] * 8

    def kept(skip: float) -> bool:
        Ys = lambda_skip(layers, Y, skip)
        mu = [float((y - y.mean(1, keepdim=True)).norm()) ** 2 for y in (Ys[0], Ys[-1])]
        return mu[1] >= 0.7**8 * mu[0]

    found = skip_bound(layers, Y, a=0.7, S=1.0, tolerance=1e-4)
    assert 0 < found.measured < found.needed
    assert kept(found.measured)
    assert not kept(found.measured - 2e-4)
    # C_M against the weights written out: rows of a softmax sum to one.
    M = attention(lambda_skip(layers, Y, 1.0)[0]).coefficients()
    assert float(torch.linalg.matrix_norm(M).max()) - 1e-12 <= found.C_M
    assert found.C_M <= 16**0.5


def test_what_cannot_collapse_says_so() -> None:
    with pytest.raises(StateformError, match="two"):
        collapse([attention], r(1, 1, 4))
    with pytest.raises(StateformError, match="scalar coefficients"):
        skip_bound(sf.build("lru", d_model=8).double(), r(1, 5, 8))
    with pytest.raises(StateformError, match="same shape"):
        collapse([lambda y: y[..., :2]], r(1, 5, 4))
    with pytest.raises(StateformError, match="lambda = -1"):
        two_tokens(1.0, -1.0, 3)
