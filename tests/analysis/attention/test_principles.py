"""The six principles of coefficient dynamics, interaction rank, and the certificates of expressivity."""

from __future__ import annotations

import json
import math

import pytest
import torch

import stateform as sf
from stateform import analysis
from stateform.analysis import condition, cost, expressivity, interaction_rank, principles, reach, variance_exponent
from tests.systems import CASES, B, N, P, T, c, decay, feedback, phases, r, softmax, u, unit


def linear(n: int = N, **more: object) -> sf.System:
    return sf.System(r(B, T, 4, n), r(B, T, 4, n), r(B, T, 4, P), **more)  # type: ignore[arg-type]


def measured(system: sf.System, name: str) -> list[float]:
    return list(principles(system)[name].measured.values())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_only_a_linear_phi_has_a_finite_memory() -> None:
    assert principles(linear())["memory"].holds
    assert measured(linear(), "memory") == [4 * N * P]
    assert not principles(softmax())["memory"].holds
    assert principles(softmax(window=7))["memory"].holds
    assert measured(softmax(window=7), "memory") == [7 * 4 * (N + P)]


def test_the_zero_set_of_phi() -> None:
    """Scores drawn ten times as large leave most tokens out of a softmax, and none out of linear attention."""
    q, k, v = 10 * r(B, T, 4, N), r(B, T, 4, N), r(B, T, 4, P)
    exp = sf.System(q, k, v, readout="exp", eta="sum")
    share, *_ = measured(exp, "selectivity")
    alpha = exp.coefficients()
    past = torch.ones(T, T).tril().bool()
    past[0] = False
    want = (alpha <= 1e-3 * alpha.amax(-1, keepdim=True))[..., past].double().mean()
    assert share == pytest.approx(float(want))
    assert share > 0.5
    share, negative = measured(sf.System(q, k, v), "selectivity")
    assert share < 0.01
    assert negative == pytest.approx(0.5, abs=0.05)
    assert principles(exp)["selectivity"].holds
    assert not principles(sf.System(q, k, v))["selectivity"].holds


@pytest.mark.parametrize(
    ("make", "sees"),
    [
        (linear, False),
        (softmax, False),
        (lambda: linear(eta="sum", b=u(B, T, 4)), False),
        (lambda: CASES["ridge, no decay, exclusive"](), False),
        (lambda: linear(log_decay=-u(B, T, 4)), True),
        (phases, True),
        (lambda: feedback("identity"), True),
        (lambda: softmax(forget=-u(4)), True),
        (lambda: softmax(window=7), True),
        (lambda: decay("dense"), True),
    ],
)
def test_identity_transitions_see_no_order(make: object, sees: bool) -> None:
    system = make()  # type: ignore[operator]
    found = principles(system)["position"]
    (change,) = found.measured.values()
    assert found.holds == sees
    assert (change > 1e-3) if sees else (change < 1e-10)


@pytest.mark.parametrize(
    ("make", "turns", "least"),
    [
        (linear, False, 1.0),
        (lambda: linear(log_decay=-u(B, T, 4)), False, 1.0),
        (lambda: linear(log_decay=-5 * u(B, T, 4, N)), False, None),
        (lambda: feedback("identity"), True, None),
        (lambda: softmax(forget=-u(4)), False, 1.0),
        (phases, True, None),
        (lambda: decay("dense"), True, None),
    ],
)
def test_the_transition_bounds_what_becomes_of_keys(make: object, turns: bool, least: float | None) -> None:
    found = principles(make())["geometry"]  # type: ignore[operator]
    (cosine,) = found.measured.values()
    assert found.holds == turns
    assert cosine == pytest.approx(1.0, abs=1e-9) if least else cosine < 0.99


def test_the_cosine_of_a_turn_in_a_complex_axis() -> None:
    """Times e^{i theta}, a key of one complex axis turns by theta in its plane."""
    k = c(1, 9, 1, 1)
    system = sf.System(k, k, r(1, 9, 1, 1), phase=torch.tensor([0.7], dtype=torch.float64))
    assert measured(system, "geometry") == pytest.approx([math.cos(0.7)])


def test_of_a_linearisation_the_premise_is_not_met() -> None:
    found = principles(decay("dense"), nonlinear=True)
    assert all("not met" in x.premises for x in found.items)
    assert not any("not met" in x.premises for x in principles(decay("dense")).items)


def test_the_cosine_of_a_reflection() -> None:
    """(I - 2 w w^T) k for w at 60 degrees to k turns it by 180 - 120 degrees."""
    k = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 5, 1, 2)
    w = torch.tensor([0.5, math.sqrt(0.75)], dtype=torch.float64).expand(1, 5, 1, 2)
    system = sf.System(k, k, r(1, 5, 1, 1), f=-2 * w, w=w)
    assert measured(system, "geometry") == pytest.approx([0.5])


def test_the_variance_of_scores_against_n() -> None:
    """Var(q^T k) = n for independent standard normal q and k; b = 1/sqrt n makes it 1."""

    def plain(n: int) -> sf.System:
        return linear(n)

    def scaled(n: int) -> sf.System:
        return linear(n, b=torch.full((4,), n**-0.5, dtype=torch.float64))

    grows, still = variance_exponent(plain, (8, 32, 128)), variance_exponent(scaled, (8, 32, 128))
    assert grows.exponent == pytest.approx(1, abs=0.15)  # of 560 draws a size the standard error is about 0.04
    assert still.exponent == pytest.approx(0, abs=0.15)
    assert still.variances == pytest.approx([1, 1, 1], abs=0.3)
    inside = variance_exponent(
        lambda n: sf.System(r(B, T, 4, n), r(B, T, 4, n), r(B, T, 4, P), readout="exp", eta="sum")
    )
    assert inside.exponent == pytest.approx(1, abs=0.25)
    assert "n^" in str(still)
    assert still.to_dict()["n"] == [8, 32, 128]


def test_eta_bounds_the_coefficients() -> None:
    """Positive weights: the gain is 1 with eta = sum, and without it grows like the number of tokens."""
    bounded = principles(linear_positive(eta="sum"))["stability"].measured
    assert bounded["largest gain"] == pytest.approx(1)
    assert bounded["growth"] == pytest.approx(0, abs=1e-9)
    assert bounded["growth without eta"] == pytest.approx(1, abs=0.05)
    bare = principles(linear_positive())["stability"].measured
    assert bare["largest gain"] == pytest.approx(bare["without eta"])
    assert bare["growth"] == pytest.approx(1, abs=0.05)
    kept = principles(softmax())["stability"]
    assert kept.holds
    assert kept.measured["largest gain"] == pytest.approx(1)
    weights = softmax(eta=None)
    assert principles(weights)["stability"].measured["largest gain"] == pytest.approx(
        float(weights.coefficients().sum(-1).max())
    )


def linear_positive(**more: object) -> sf.System:
    """The same query at every token: what grows is the sum over the keys alone."""
    q = torch.ones(1, 200, 2, N, dtype=torch.float64)
    return sf.System(q, 0.5 + u(1, 200, 2, N), r(1, 200, 2, P), **more)  # type: ignore[arg-type]


def test_softmax_without_its_normaliser() -> None:
    system = softmax()
    bare = sf.System(system.q, system.k, system.v, readout="exp").coefficients().sum(-1).max()
    assert principles(system)["stability"].measured["without eta"] == pytest.approx(float(bare))


@pytest.mark.parametrize("case", CASES)
def test_the_principles_of_every_structure(case: str) -> None:
    system = CASES[case]()
    if system.v is not None and system.q is not None and system.q.ndim == 5:
        with pytest.raises(sf.StateformError, match="without an output axis"):
            principles(system)
        return
    found = principles(system)
    assert all(math.isfinite(v) for x in found.items for v in x.measured.values())


def test_the_variance_of_complex_arguments() -> None:
    """Of both parts together, Var(z) = E |z - E z|^2."""
    q, k = c(1, 50, 2, N), c(1, 50, 2, N)
    z = (q * k).sum(-1)[0, 1:].T.flatten()
    want = float((z - z.mean()).abs().square().sum()) / (len(z) - 1)
    measured_, n = measured(sf.System(q, k, c(1, 50, 2, P)), "scale")
    assert (measured_, n) == (pytest.approx(want), N)


@pytest.mark.parametrize("name", sf.names())
@torch.no_grad()
def test_the_principles_of_every_layer(name: str) -> None:
    layer = sf.build(name, d_model=16).double()
    found = principles(layer.system(r(1, 24, 16)))
    assert [x.name for x in found.items] == ["memory", "selectivity", "position", "geometry", "scale", "stability"]
    assert all(math.isfinite(v) for x in found.items for v in x.measured.values())
    json.dumps(found.to_dict(), allow_nan=False)
    assert [x.source for x in found.items] == [f"arXiv 2510.09389, principle {k}" for k in range(1, 7)]
    assert all(x.premises for x in found.items)
    assert set(found.to_dict()["scale"]) == {"statement", "holds", "why", "measured", "source", "premises"}
    assert len(str(found).splitlines()) == 6


# -- interaction rank -----------------------------------------------------------------------------------------------


def modes(states: int, d: int, length: int, complex_modes: bool = False) -> sf.System:
    """x_t = diag(a) x_{t-1} + B u_t, y_t = Re(C x_t), each mode a head."""
    draw = c if complex_modes else r
    w_in, w_out = draw(states, 1, d), draw(d, states, 1)
    k = torch.einsum("hni,bti->bthn", w_in, r(1, length, d).to(w_in.dtype))
    turn = {"phase": 3 * u(states)} if complex_modes else {}
    return sf.System(None, k, None, log_decay=-u(states), w_in=w_in, w_out=w_out, **turn)


@pytest.mark.parametrize(
    ("states", "d", "length", "rank"),
    [(5, 3, 20, 5), (12, 3, 30, 9), (5, 3, 4, 4), (2, 1, 20, 1), (3, 2, 40, 3)],
)
def test_the_heads_of_a_random_linear_system(states: int, d: int, length: int, rank: int) -> None:
    """dim span{C A^t B, t < T} = min(N, T, d^2) for generic real modes; the conversion to heads needs as many."""
    system = modes(states, d, length)
    found = interaction_rank(system)
    assert found.rank == rank == min(states, length, d * d)
    assert found.exact
    assert sf.convert.heads_for_ssm(system).count == rank


def test_a_complex_mode_counts_twice() -> None:
    """Re(c a^t b^T) spans two real dimensions."""
    system = modes(3, 4, 30, complex_modes=True)
    assert interaction_rank(system).rank == 6 == sf.convert.heads_for_ssm(system).count


def test_channels_that_share_a_kernel_share_a_head() -> None:
    q, k, v = r(1, N).expand(4, N).clone(), r(1, N).expand(4, N), r(1, T, 4, 1)
    g = -u(1, N).expand(4, N)
    assert interaction_rank(sf.System(q, k, v, log_decay=g)).rank == 1
    q[3] = r(N)
    found = sf.System(q, k, v, log_decay=g)
    assert interaction_rank(found).rank == 2 == sf.convert.heads_for_ssm(found).count


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["softmax", "linear", "delta"])
def test_heads_of_attention_span_as_many_dimensions(kind: str, heads: int) -> None:
    q, k, v = r(1, T, heads, N), unit(1, T, heads, N), r(1, T, heads, P)
    more = {"softmax": {"readout": "exp", "eta": "sum"}, "linear": {}, "delta": {"f": -0.5 * k, "w": k}}[kind]
    found = interaction_rank(sf.System(q, k, v, **more))
    assert found.rank == heads
    assert not found.exact
    assert "constant systems" in found.premises


def test_maps_that_are_the_same_make_heads_of_one_dimension() -> None:
    """sum_h alpha^h M with one M for all heads is one head of weights sum_h alpha^h."""
    M = r(1, 2, 2).expand(4, 2, 2)
    assert interaction_rank(softmax(), maps=M).rank == 1
    assert interaction_rank(softmax(), maps=r(4, 2, 2)).rank == 4
    assert interaction_rank(softmax(), maps=r(4, 1, 3)).rank == 3  # of 4 maps in 3 dimensions


def test_complex_values_are_mapped_before_the_real_part_is_taken() -> None:
    """y_i = Re sum_j alpha_ij M u_j with complex alpha and M: a head spans Re M and Im M, and nothing if M is 0."""
    system = CASES["complex values"]()
    alpha = system.coefficients()
    assert alpha.is_complex()
    M = c(4, 2, 3)
    written = torch.einsum("bhij,hoe->bijoe", alpha, M).real.flatten(0, 2).flatten(1)
    for maps, rank in ((M, 6), (M[:1].expand(4, 2, 3), 2), (M.real, 4), (M.real.to(M.dtype), 4)):
        found = interaction_rank(system, maps=maps, queries=range(system.T))
        assert found.rank == rank
    found = interaction_rank(system, maps=M, queries=range(system.T))
    torch.testing.assert_close(found.singular_values, torch.linalg.svdvals(written))
    assert interaction_rank(system).rank == 8  # two for each of four heads, if all maps are independent


def test_a_whole_complex_state_counts_its_real_and_imaginary_outputs() -> None:
    """S_t = a S_{t-1} + w u_t read as it is: the operators a^t w, as pairs of real numbers."""
    w = c(1, 1, 1)
    a = torch.polar(torch.tensor(0.9, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    k = w[..., 0] * r(1, 12, 1, 1)
    turned = sf.System(None, k, None, log_decay=a.abs().log()[None], phase=a.angle()[None], w_in=w)
    found = interaction_rank(turned, queries=range(12))
    lags = torch.stack([a**t * w.flatten() for t in range(12)])
    assert found.rank == 2 == int(torch.linalg.matrix_rank(torch.cat([lags.real, lags.imag], -1)))
    still = sf.System(None, k, None, log_decay=a.abs().log()[None], w_in=w)
    assert interaction_rank(still).rank == 1  # all lags in one direction of the plane


@torch.no_grad()
@pytest.mark.parametrize("name", ["lru", "s5", "s4d"])
def test_interaction_rank_of_a_layer_is_its_head_count(name: str) -> None:
    system = sf.build(name, d_model=4).double().system(r(1, 24, 4))
    assert interaction_rank(system).rank == sf.convert.heads_for_ssm(system).count


def test_a_rank_that_rounding_decides_says_so() -> None:
    """Sixty modes near each other: what each adds to the span fades into rounding; of five far apart it does not."""
    system = sf.System(None, r(1, 80, 60, 1), None, log_decay=-torch.linspace(0.1, 0.2, 60, dtype=torch.float64),
                       w_in=r(60, 1, 20), w_out=r(20, 60, 1))  # fmt: skip
    found = interaction_rank(system)
    assert found.rank < 60
    assert "without a gap" in found.premises
    assert "without a gap" not in interaction_rank(modes(5, 3, 20)).premises


def test_a_vector_state_needs_its_map() -> None:
    with pytest.raises(sf.StateformError, match="w_in"):
        interaction_rank(CASES["whole state"]())
    with pytest.raises(sf.StateformError, match="expected"):
        interaction_rank(softmax(), maps=r(3, 2, 2))


def test_interaction_prints_and_serialises() -> None:
    found = interaction_rank(modes(5, 3, 20))
    assert "5 heads of attention are necessary and sufficient" in str(found)
    assert found.to_dict()["rank"] == 5


# -- certificates ---------------------------------------------------------------------------------------------------


def delta(most: float) -> sf.System:
    """A delta rule with beta in (0, most)."""
    k, beta = unit(1, 40, 2, N), most * (0.001 + 0.998 * u(1, 40, 2, 1))
    return sf.System(r(1, 40, 2, N), k, r(1, 40, 2, P), f=-beta * k, w=k)


def test_parity_separates_beta_up_to_1_from_up_to_2() -> None:
    """1 - beta is the eigenvalue along k: negative for beta > 1 alone (arXiv 2411.12537, theorem 1)."""
    one, two = (expressivity([delta(x)]).parity for x in (1.0, 2.0))
    assert (one.word, two.word) == ("open", "reached")
    assert one.source == two.source == "arXiv 2411.12537, theorem 1"


@pytest.mark.parametrize(
    "name", ["identity", "scalar", "diagonal + feedback", "softmax", "softmax, window", "constant"]
)
def test_verdicts_cite_their_theorem(name: str) -> None:
    found = expressivity([CASES[name]()])
    assert found.memory.holds == (name != "softmax")
    assert found.memory.source == "arXiv 2510.09389, principle 1"
    if name.startswith("softmax"):
        assert "not met" in found.parity.premises
    assert all(found.verdicts()[x].source for x in ("parity", "counting", "permutations"))
    assert set(found.to_dict()["memory"]) == {"verdict", "why", "source", "premises"}
    assert "memory" in str(found)


def test_what_every_function_gives_prints_and_serialises() -> None:
    """Results that are not asked of them elsewhere: of cost, condition and reach."""
    ridge = CASES["ridge"]()
    for found in (cost(linear(), "chunkwise"), condition(ridge), reach([delta(2.0)])):
        assert str(found)
        assert "object at" not in str(found)
        json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", sorted(x for x in analysis.__all__ if isinstance(getattr(analysis, x), type)))
def test_every_result_has_a_text_and_a_dict(name: str) -> None:
    parts = {"Verdict", "Principle", "StateSpace"}  # of a result; matrices
    made = getattr(analysis, name)
    for x in () if name in parts else ("__str__", "to_dict"):
        assert any(x in vars(base) for base in made.__mro__[:-1]), x


def test_the_premises_of_a_nonlinear_recurrence_are_not_met() -> None:
    found = expressivity([decay("dense")], nonlinear=True)
    assert "not linear in its state" in found.parity.premises
