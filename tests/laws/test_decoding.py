"""One token at a time: the loops of a single step, and what a step may and may not do."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.forms import compiled as _compiled
from stateform.forms.step import token
from stateform.layer.parts import HeadNorm, gated, unit
from stateform.loops.channel import channel, channel_reference
from stateform.loops.conv import short_conv, short_conv_reference
from stateform.loops.matrix import matrix, matrix_reference
from stateform.loops.ops import call
from stateform.system.precision import tolerance
from tests.loops.test_loops import error, needed
from tests.systems import CASES

pytestmark = pytest.mark.loops


def rows(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 2, 3, 5, 7), (1, 1, 4, 16, 64), (1, 2, 1, 33, 150), (3, 1, 1, 1, 1)], ids=str)
def test_a_step_of_matrix_states(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    B, G, R, n, p = sizes
    torch.manual_seed(0)
    for decay in (None, 1, n):
        for feedback in (False, True):
            for exclusive in (False, True):
                q, k = rows(dtype, B, 1, G, 1, n), rows(dtype, B, 1, 1, R, n)
                v, S = rows(dtype, B, 1, G, R, p), rows(dtype, B, G, R, n, p)
                log = None if decay is None else -rows(dtype, B, 1, G, R, decay).abs()
                f, w = (rows(dtype, B, 1, G, R, n), rows(dtype, 1, 1, G, R, n)) if feedback else (None, None)
                before = S.clone()
                got = call(matrix, q, k, v, log, f, w, S, 1, exclusive, False)
                want = matrix_reference(q, k, v, log, f, w, S, 1, exclusive)
                assert torch.equal(S, before)
                assert max(error(a, b) for a, b in zip(got, want, strict=False)) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 37, 5), (1, 256, 16), (2, 20, 1), (1, 300, 20), (1, 1, 1)], ids=str)
def test_a_step_of_channels(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    B, L, n = sizes
    torch.manual_seed(0)
    for decay in ("none", "varying", "product", "constant"):
        for exclusive in (False, True):
            q, k = (rows(dtype, B, 1, n), rows(dtype, 1, 1, n)) if n > 1 else (None, None)
            v, S, step = rows(dtype, B, 1, L), rows(dtype, B, L, n), rows(dtype, B, 1, L).abs()
            log = {"varying": -step, "product": step}.get(decay)
            rate = -rows(dtype, n, L).abs() if decay in ("product", "constant") else None
            want = channel_reference(q, k, v, log, rate, S, exclusive)
            for laid in (rate, None if rate is None else rate.mT.contiguous().mT):
                got = call(channel, q, k, v, log, laid, S, exclusive, False)
                assert max(error(a, b) for a, b in zip(got, want, strict=False)) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("taps", [2, 4, 7])
def test_a_step_of_short_convolutions(taps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, window, weight, bias = (rows(dtype, *s) for s in ((2, 1, 37), (2, taps - 1, 37), (37, taps), (37,)))
    for b, activate in ((bias, True), (None, False)):
        want = short_conv_reference(x, window, weight.mT, b, activate)
        for laid in (weight.mT, weight.mT.contiguous()):
            assert error(call(short_conv, x, window, laid, b, activate), want) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("name", CASES)
def test_a_token_of_every_system_is_the_same_compiled_or_not(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    if system.readout.cached or _compiled.refused(system) is not None:
        return
    _, state = sf.run(system[:-1], "recurrent", return_state=True)  # type: ignore[misc]
    last = system[system.T - 1 :]
    with sf.backend("torch"):
        want, end = sf.run(last, "recurrent", initial_state=state, return_state=True)  # type: ignore[misc]
    with sf.backend("compiled"):
        got, new = sf.run(last, "recurrent", initial_state=state, return_state=True)  # type: ignore[misc]
    assert error(got, want) < tolerance(torch.float64, system.T)
    assert error(new.S, end.S) < tolerance(torch.float64, system.T)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 5, 3, 7), 1), ((1, 1, 4, 64), 1), ((2, 40, 96), 3), ((1, 3, 600), 1)]
)
def test_normed_and_gated_rows(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = HeadNorm(shape[-1], groups=groups).to(dtype)
    torch.nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    numbers = torch.Size(shape[2:]).numel()
    whole, wider = rows(dtype, *shape), rows(dtype, *shape[:2], 3 * numbers)
    for y in (whole, wider[..., :numbers].view(shape), 1e3 * whole, 0 * whole, whole.transpose(0, 1)):
        gate = rows(dtype, *y.shape[:2], 2 * numbers)[..., numbers:]
        made = [lambda y=y: norm(y), lambda y=y: unit(y, 0.3), lambda y=y, g=gate: gated(y, g)]
        made += [lambda y=y, g=gate: norm(y, g), lambda y=y, g=gate: norm(y, g, "sigmoid")]
        made += [lambda y=y, g=gate: norm(y, g, first=True)] if len(shape) == 3 else []
        for make in made:
            with torch.no_grad():
                got = make()
                with sf.backend("torch"):
                    want = make()
            assert got.shape == want.shape
            assert error(got, want) < tolerance(dtype, 1)


def shared_heads(dtype: torch.dtype, n: int, p: int) -> dict[str, Tensor]:
    """Parts of a token whose head axes are 1, 3 or 6, some of them constant, some not contiguous."""
    names = {"q": (2, 1, 1, n), "k": (2, 1, 3, n), "v": (2, 1, 6, p), "f": (2, 1, 6, n), "w": (6, n), "b": (2, 1, 3),
             "d": (1,)}  # fmt: skip
    parts = {name: rows(dtype, *shape) for name, shape in names.items()}
    return parts | {"q": rows(dtype, 2, 1, n, 1).mT, "b": rows(dtype, 2, 3, 1).mT}


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(("n", "p"), [(5, 7), (16, 64), (33, 150), (1, 20), (20, 1), (1, 1)])
def test_a_token_straight_from_its_parts(n: int, p: int, exclusive: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = shared_heads(dtype, n, p)
    S, each, wide, one = rows(dtype, 2, 6, n, p), rows(dtype, 2, 1, 6), rows(dtype, 2, 1, 3, n), rows(dtype, 1)
    for decay in (
        None,
        -each.abs(),
        -wide.abs(),
        -one.abs(),
        (each.abs(), -wide[0, 0].abs()),
        (each.abs(), -one.abs()),
    ):
        for left_out in ((), ("f", "w"), ("f", "w", "b"), ("d",)):
            given = {name: x for name, x in parts.items() if name not in left_out}
            system = sf.System(**given, log_decay=decay, exclusive=exclusive)  # type: ignore[arg-type]
            before = S.clone()
            got = token(system, S)
            assert got is not None and torch.equal(S, before) and not got[2]
            with sf.backend("torch"):
                assert token(system, S) is None
                y, end = sf.run(system, "recurrent", initial_state=S, return_state=True)  # type: ignore[misc]
            assert got[0].shape == y.shape
            assert max(error(got[0], y), error(got[1], end.S)) < 4 * tolerance(dtype, 1)
    scaled = system.v.clone().requires_grad_()  # type: ignore[union-attr]
    assert token(sf.System(system.q, system.k, scaled), S) is None
    assert token(sf.System(system.q, system.k, scaled.detach()), S[:, :3]) is None


LAYERS = ("mamba", "mamba2", "gated_deltanet", "kda", "rg_lru", "rwkv4", "rwkv7", "mlstm", "lightning", "lstm", "slstm")


def decoder(name: str) -> tuple[sf.Layer, sf.State, Tensor]:
    """A layer, its state after a short prompt, and tokens [B,d_model] to go on with."""
    torch.manual_seed(0)
    layer = sf.build(name, d_model=32).eval()
    x = torch.randn(2, 24, 32)
    _, state = layer(x[:, :8], return_state=True)
    return layer, state, x[:, 8:]


def live() -> int:
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
@pytest.mark.drawn(0.25)
def test_a_thousand_steps_leave_nothing_behind(name: str) -> None:
    layer, state, xs = decoder(name)
    for t in range(20):
        _, state = layer.step(xs[:, t % 16], state)
    sizes, tensors = state.nbytes, live()
    kept = sum(x.untyped_storage().nbytes() for x in state.tensors.values())
    for t in range(1000):
        _, state = layer.step(xs[:, t % 16], state)
    assert state.nbytes == sizes
    assert sum(x.untyped_storage().nbytes() for x in state.tensors.values()) == kept <= 4 * sizes
    assert live() <= tensors


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_step_in_place_writes_into_the_state_and_is_the_same(name: str) -> None:
    layer, state, xs = decoder(name)
    there = state.clone()
    places = {k: x.data_ptr() for k, x in there.tensors.items()}
    for t in range(8):
        before = state.clone()
        want, new = layer.step(xs[:, t], state)
        assert all(torch.equal(state[k], before[k]) for k in state)  # a call leaves its state as it was
        state = new
        got, same = layer.step(xs[:, t], there, inplace=True)
        assert same is there
        assert torch.equal(got, want)
    assert {k: x.data_ptr() for k, x in there.tensors.items()} == places
    assert all(torch.equal(there[k], state[k]) for k in state)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_hundred_thousandth_token_is_a_token_like_the_tenth(name: str) -> None:
    layer, state, xs = decoder(name)
    later = sf.State({**state.tensors, "position": state["position"] + 100_000}, state.fingerprint)
    early, late = layer.step(xs[:, 0], state), layer.step(xs[:, 0], later)
    assert torch.equal(early[0], late[0])
    assert torch.equal(late[1]["position"], early[1]["position"] + 100_000)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_bad_token_is_refused_and_nothing_is_lost(name: str) -> None:
    layer, state, xs = decoder(name)
    want, _ = layer.step(xs[:, 0], state)
    kept, nan, first = state.clone(), xs[:, 0].clone(), xs[:, 0]
    nan[1, 3] = torch.nan
    for bad, match in (
        (nan, "x holds nan"), (first[:1], "rows"), (first[:, :-1], "width"), (first.double(), "dtype"),
        (first.unsqueeze(1), "x_t"),
    ):  # fmt: skip
        for inplace in (False, True):
            with pytest.raises(sf.StateformError, match=match):
                layer.step(bad, state, inplace=inplace)
    other = sf.build(name, d_model=64).init_state(2)
    with pytest.raises(sf.StateformError, match="belongs to"):
        layer.step(first, other)
    assert all(torch.equal(state[k], kept[k]) for k in kept)
    assert torch.equal(layer.step(first, state)[0], want)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "gated_deltanet", "rg_lru", "lightning"])
@torch.no_grad()
def test_a_decay_above_one_is_refused_in_a_step_too(name: str) -> None:
    layer, state, xs = decoder(name)
    of = type(layer).system

    class Growing(type(layer)):  # type: ignore[misc]
        def system(self, u: Tensor, past: object = None) -> sf.System:
            system = of(self, u, past)  # type: ignore[arg-type]
            log = system.log_decay
            bad = (log[0], log[1] * self.factor) if isinstance(log, tuple) else log * self.factor  # type: ignore[operator]
            return replace(system, log_decay=bad)

    layer.__class__ = Growing
    for layer.factor, match in ((-1.0, "promises a contraction"), (torch.nan, "not a number")):  # type: ignore[assignment]
        with pytest.raises(sf.StateformError, match=match):
            layer.step(xs[:, 0], state)
        with sf.validate(False):
            layer.step(xs[:, 0], state)
    layer.factor = 1.0  # type: ignore[assignment]
    layer.step(xs[:, 0], state)


def test_a_system_like_one_that_was_checked_is_no_excuse_for_one_that_is_not() -> None:
    q, v = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 2, 5)
    for _ in range(2):
        sf.System(q, q, v, micro=1)
        for wrong in (
            {"k": q[:, :, :, :3]}, {"v": v[:, :2]}, {"v": v.double()}, {"v": v.long()}, {"micro": True}, {"micro": 2},
            {"eta": "sums"}, {"eta": ["sum"]}, {"exclusive": 1}, {"k": None}, {"log_decay": (v, v, v)},
        ):  # fmt: skip
            with pytest.raises(sf.StateformError):
                sf.System(**{"q": q, "k": q, "v": v, **wrong})  # type: ignore[arg-type]


def test_gradients_go_through_a_step() -> None:
    layer, state, xs = decoder("gated_deltanet")
    y, new = layer.step(xs[:, 0], state)
    with sf.backend("torch"):
        want, end = layer.step(xs[:, 0], state)
    for a, b in ((y, want), (new["S"], end["S"])):
        got, expected = (torch.autograd.grad(z.square().sum(), list(layer.parameters()), retain_graph=True,
                                             allow_unused=True) for z in (a, b))  # fmt: skip
        for g, e in zip(got, expected, strict=True):
            assert (g is None) == (e is None)
            assert g is None or error(g, e) < 100 * tolerance(torch.float32, 10)
