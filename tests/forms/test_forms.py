"""Every form of every structure computes the recurrence; so do the coefficients, and the matrices written out."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.forms import choose
from stateform.forms.cost import calibrate, predict
from stateform.forms.form import FORMS
from stateform.system.core import fold
from stateform.system.precision import tolerance
from tests.systems import CASES, B, N, T, c, decay, r, u

ALLOWED = 10 * tolerance(torch.float64, T)  # outputs may cancel (eta near 0), which costs digits in every form alike


def error(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-300)) if want.numel() else 0.0


def states_differ(a: sf.State, b: sf.State) -> float:
    assert set(a) == set(b)
    return max(error(a[k].to(b[k].dtype), b[k]) for k in a if k != "log_scale")


def run(system: sf.System, form: str, **kwargs: object) -> tuple[Tensor, sf.State]:
    out = sf.run(system, form, return_state=True, **kwargs)  # type: ignore[arg-type]
    assert isinstance(out, tuple)
    return out


@pytest.fixture(params=CASES, autouse=False)
def system(request: pytest.FixtureRequest) -> sf.System:
    torch.manual_seed(0)
    return CASES[request.param]()


def spread_values(system: sf.System) -> Tensor:
    assert system.v is not None
    v = system.v
    return v.repeat_interleave(system.H // v.shape[2], 2)


def test_forms_equal_the_recurrence_whole_and_in_pieces(system: sf.System) -> None:
    want, end = run(system, "recurrent")
    for form, why_not in system.forms().items():
        if why_not is not None:
            with pytest.raises(sf.StateformError, match="does not exist for this system"):
                sf.run(system, form)
            continue
        got, state = run(system, form)
        assert error(got, want) < ALLOWED, form
        assert states_differ(state, end) < ALLOWED, form
        first, middle = run(system[:41], form)
        second, state = run(system[41:], form, initial_state=middle)
        assert error(torch.cat([first, second], 1), want) < ALLOWED, form
        assert states_differ(state, end) < ALLOWED, form


@pytest.mark.drawn(0.5)
def test_packed_sequences_are_as_if_alone(system: sf.System) -> None:
    one = system.gather(lambda x, _: x[:1])
    ends = [0, 13, 13, 40, 53, T]
    for form, why_not in system.forms().items():
        if why_not is not None:
            continue
        got, state = run(one, form, cu_seqlens=torch.tensor(ends))
        again, _ = run(one, form, cu_seqlens=torch.tensor(ends), initial_state=state)
        for row, (low, high) in enumerate(itertools.pairwise(ends)):
            if low == high:
                assert int(state.position[row]) == 0
                continue
            want, end = run(one[low:high], "recurrent")
            assert error(got[:, low:high], want) < ALLOWED, form
            assert error(again[:, low:high], run(one[low:high], "recurrent", initial_state=end)[0]) < ALLOWED, form
            if "S" in end:
                assert error(state.S[row : row + 1], end.S) < ALLOWED, form


def test_coefficients_times_values_are_the_output(system: sf.System) -> None:
    want = sf.run(system, "recurrent")
    if system.v is not None and system.q is not None and system.q.ndim == 4:
        alpha = system.coefficients()
        y = torch.einsum("bhij,bjhp->bihp", alpha, spread_values(system))
        assert error(y.real if y.is_complex() else y, want) < ALLOWED
        some = system.coefficients(heads=[1, 2], queries=[3, 50, T - 1])
        assert error(some, alpha[:, 1:3, [3, 50, T - 1]]) < ALLOWED
    if system.v is None or system.q is None or system.q.ndim in (2, 4):
        assert error(system.contributions().sum(3).movedim(1, 2), want) < ALLOWED
        assert error(system.contributions(queries=[5, 6]).sum(3).movedim(1, 2), want[:, [5, 6]]) < ALLOWED


def test_matrices_written_out_compute_the_output(system: sf.System) -> None:
    short = system[:9]
    if system.readout.cached:
        with pytest.raises(sf.StateformError, match="no finite state"):
            short.matrices()
        return
    if system.log_b is not None:
        short = sf.stabilise(short)[0]
    if short.d is not None and short.q is not None and short.q.ndim in (3, 5):
        return
    want = sf.run(system, "recurrent")[:, :9]
    inputs = torch.ones(B, 9 * system.micro, 1, 1, dtype=torch.float64) if system.v is None else spread_values(short)
    inputs = inputs.unflatten(1, (9, system.micro)).movedim(2, 3).flatten(3)
    for normalised in (False, True):
        got = short.matrices(normalised=normalised).run(inputs)
        if system.w_out is not None:
            got = got.sum(2, keepdim=True)  # each head's part of the output
        got = got if want.is_complex() else got.real
        assert error(got.reshape(want.shape), want) < ALLOWED


def test_spectrum_is_that_of_the_matrices(system: sf.System) -> None:
    if system.readout.cached:
        ratios = system.spectrum(normalised=True).real
        assert ratios.shape[:3] == (B, T, system.H)
        return
    values = system[:5].spectrum().expand(B, 5 * system.micro, system.H, system.n)
    dense = fold(system).transition().dense(system.n)
    dense = dense.expand(B, T * system.micro, *fold(system).heads, -1, -1).flatten(2, 3)[:, : 5 * system.micro]
    for power in (1, 2):  # the sums of powers of the eigenvalues are traces
        trace = torch.linalg.matrix_power(dense, power).diagonal(dim1=-2, dim2=-1).sum(-1)
        assert error(values.pow(power).sum(-1).expand_as(trace), trace + 0j) < 1e-9


@pytest.mark.parametrize("shape", [(0, 9), (3, 0), (0, 0)])
def test_no_rows_or_no_tokens(system: sf.System, shape: tuple[int, int]) -> None:
    empty = system.gather(lambda x, m: x.new_zeros(shape[0], shape[1] * m, *x.shape[2:]))
    y, state = run(empty, "auto")
    want = sf.run(system, "recurrent")
    assert y.shape == (*shape, *want.shape[2:])
    assert state.rows == shape[0]


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "product"])
def test_a_hard_reset_in_mid_chunk_keeps_the_digits_of_float32(kind: str) -> None:
    torch.manual_seed(1)
    system = decay(kind)
    near_one = {"scalar": -1e-3 * u(B, T, 4), "diagonal": -1e-3 * u(B, T, 4, N), "product": u(B, T, 4)}[kind]
    near_one[:, 29] = math.inf if kind == "product" else -math.inf
    near_one[:, 30] = 60.0 if kind == "product" else -60.0
    given = (near_one, -1e-3 * (0.5 + u(4, N))) if kind == "product" else near_one
    exact = sf.System(system.q, system.k, system.v, log_decay=given)
    single = exact.to(torch.float32)
    with sf.validate(False):  # a step of infinite length is refused elsewhere
        want = sf.run(single.to(torch.float64), "recurrent")
    for form, why_not in single.forms().items():
        if why_not is None:
            with sf.validate(False):
                got = sf.run(single, form).double()
            assert error(got, want) < tolerance(torch.float32, T), form


@pytest.mark.parametrize("form", ["chunkwise", "matrix"])
def test_growing_and_shrinking_decays_that_cancel_stay_finite(form: str) -> None:
    torch.manual_seed(2)
    g = torch.where(torch.arange(T) % 2 == 0, 80.0, -80.0).double().view(1, T, 1, 1).expand(B, T, 4, N).float()
    system = sf.System(r(B, T, 4, N).float(), r(B, T, 4, N).float(), r(B, T, 4, 3).float(), log_decay=g)
    want = sf.run(system.to(torch.float64), "recurrent")
    assert error(sf.run(system, form).double(), want) < tolerance(torch.float32, T)


def test_long_phases_do_not_drift_in_float32() -> None:
    torch.manual_seed(3)
    length = 4096
    system = sf.System(
        c(1, length, 2, 4), c(1, length, 2, 4), r(1, length, 2, 3), log_decay=-1e-3 * u(2, 4), phase=3 * r(2, 4)
    )
    single = system.to(torch.float32)
    want = sf.run(single.to(torch.float64), "recurrent")
    assert error(sf.run(single, "chunkwise").double(), want) < tolerance(torch.float32, length)


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_constant_turn_is_rounded_once(name: Literal["auto", "torch"]) -> None:
    """What is wrong with it is wrong at every step: it adds up, to half a rounding a step at most."""
    T, H, n = 1000, 8, 64
    draw = torch.Generator().manual_seed(0)
    log, phase = (torch.rand(H, n, generator=draw) * x - y for x, y in ((1e-3, 0.0), (2 * math.pi, math.pi)))
    k, v = torch.randn(H, n, generator=draw), torch.zeros(1, T, H, 1)
    v[:, 0] = 1.0
    system = sf.System(torch.ones(H, n), k, v, log_decay=log, phase=phase)
    with sf.backend("torch"):
        _, want = run(system.to(torch.float64), "recurrent")
    with sf.backend(name):
        _, got = run(system, "recurrent")
    wrong = ((got["S"] - want["S"]).abs() / want["S"].abs()).max()
    assert float(wrong) < (T + 8 * T**0.5) * 2.0**-24  # each step's own roundings are a random walk


def test_each_form_is_forced_and_calls_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name, form in FORMS.items():
        plain = form.compute

        def counted(core: object, S: Tensor, name: str = name, plain: object = plain) -> tuple[Tensor, Tensor]:
            calls.append(name)
            return plain(core, S)  # type: ignore[operator]

        monkeypatch.setattr(form, "compute", counted)
    torch.manual_seed(0)
    for case, make in CASES.items():
        system = make()
        if system.readout.cached:
            continue
        for form, why_not in system.forms().items():
            if why_not is None:
                calls.clear()
                sf.run(system, form)
                once = not system.readout.gram  # the equations of a ridge readout are runs of their own
                assert calls == [form] if once else set(calls) == {form}, case


def test_a_non_causal_softmax_sees_the_future() -> None:
    torch.manual_seed(0)
    q, k, v = r(B, 9, 2, N), r(B, 9, 2, N), r(B, 9, 2, 3)
    for window in (None, 1, 3, 9):
        system = sf.System(q, k, v, readout="exp", eta="sum", causal=False, window=window)
        logits = torch.einsum("bihn,bjhn->bhij", q, k)
        away = (torch.arange(9)[:, None] - torch.arange(9)).abs()
        alpha = logits.masked_fill(away >= (window or 9), -torch.inf).softmax(-1)
        assert error(system.coefficients(), alpha) < ALLOWED
        assert error(system.coefficients(queries=[7, 2]), alpha[:, :, [7, 2]]) < ALLOWED
        assert error(sf.run(system), torch.einsum("bhij,bjhp->bihp", alpha, v)) < ALLOWED
    for form in ("recurrent", "chunkwise"):
        with pytest.raises(sf.StateformError, match="non-causal"):
            sf.run(system, form)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    q, k, v = r(1, 5, 2, 3), r(1, 5, 2, 3), r(1, 5, 2, 2)
    g, f, w, S = -u(1, 5, 2, 3), -0.3 * r(1, 5, 2, 3), r(1, 5, 2, 3), r(1, 2, 3, 2)
    inputs = tuple(x.requires_grad_() for x in (q, k, v, g, f, w, S))
    for form in ("recurrent", "chunkwise", "matrix"):

        def compute(
            q: Tensor, k: Tensor, v: Tensor, g: Tensor, f: Tensor, w: Tensor, S: Tensor, form: str = form
        ) -> tuple[Tensor, Tensor]:
            y, state = run(sf.System(q, k, v, log_decay=g, f=f, w=w), form, initial_state=S)
            return y, state.S

        assert torch.autograd.gradcheck(compute, inputs)


EQUAL = {way: (1.0, 0.0, 0.0, 0.0) for way in ("recurrent", "chunkwise", "scan", "matrix", "convolution", "compiled")}


def test_auto_takes_what_is_predicted_fastest_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    system = CASES["scalar"]()
    for way in ("recurrent", "chunkwise", "matrix"):
        table = EQUAL | {way: (0.5, 0.0, 0.0, 0.0)}
        monkeypatch.setattr(predict, "constants", lambda *_, table=table: (table, "a test"))
        with sf.backend("torch"):
            y, choice = sf.run(system, explain=True)
            assert torch.equal(y, sf.run(system, way))
        assert (choice.form, choice.backend) == (way, "torch")
        assert choice.seconds[way] == 0.5 and "compiled" not in choice.seconds
        assert "a test" in str(choice)


def test_auto_leaves_out_what_needs_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "constants", lambda *_: (EQUAL | {"matrix": (0.5, 0.0, 0.0, 0.0)}, "a test"))
    monkeypatch.setattr(predict, "ROOM", {"cpu": 1.0})
    q = torch.zeros(1, 4000, 1, 2)
    assert choose(sf.System(q, q, q)) != "matrix"


def test_gradients_have_constants_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def constants(device: str, training: bool) -> tuple[dict[str, predict.Constants], str]:
        asked.append(training)
        return EQUAL, ""

    monkeypatch.setattr(predict, "constants", constants)
    system = CASES["scalar"]()
    choose(system)
    choose(system.map(lambda _, x: x.requires_grad_()))
    with torch.no_grad():
        choose(system.map(lambda _, x: x.requires_grad_()))
    assert asked == [False, True, False]


def test_a_form_that_was_asked_for_is_explained_as_such() -> None:
    _, state, choice = sf.run(CASES["scalar"](), "chunkwise", return_state=True, explain=True)
    assert isinstance(state, sf.State)
    assert str(choice) == "form chunkwise, torch: it was asked for"


def test_calibration_is_kept_and_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATEFORM_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "LENGTHS", (8,))

    def still(jobs: dict[Any, Any], repeats: int, times: dict[Any, list[float]], pace: Any) -> None:
        times.update({key: [1e-3] for key in jobs})

    monkeypatch.setattr(calibrate, "take_turns", still)  # tests time nothing
    predict.stored_in.cache_clear()
    with pytest.raises(sf.StateformError, match="expected cpu or cuda"):
        calibrate.calibrate("tpu")
    seen: list[str] = []
    path = calibrate.calibrate(on_progress=lambda what, done, total: seen.append(what))
    assert path.parent == tmp_path and "elementwise, 8 tokens" in seen
    table, source = predict.constants("cpu", False)
    assert source.startswith("this machine")
    assert all(c >= 0 for three in table.values() for c in three)
    path.write_text("{}")
    predict.stored_in.cache_clear()
    assert not predict.constants("cpu", False)[1].startswith("this machine")  # a broken file is no obstacle
    predict.stored_in.cache_clear()
