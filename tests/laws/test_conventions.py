"""What every layer and system promises besides the contract: precision, copies, transforms, compilation, threads."""

from __future__ import annotations

import copy
import dataclasses
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import stateform as sf
from stateform.architectures import REGISTRY, accepted
from stateform.system.precision import relative_error, wide
from stateform.system.state import PRECISE
from tests.systems import CASES

B, T, D = 2, 9, 16
DOUBLE = (torch.float64, torch.complex128)
ALL = pytest.mark.parametrize("name", sf.names())
SOME = pytest.mark.parametrize("name", ["softmax", "linear", "gated_deltanet", "mamba", "s4d", "mlstm", "kalmanet"])
"""A layer of each structure: cache, normaliser, feedback and convolutions, product decay, complex, scaled, ridge."""
SYSTEMS = pytest.mark.parametrize("name", CASES)


def layer(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    small = {"d_state": 4} if "d_state" in accepted(REGISTRY[name].cls) else {}
    return sf.build(name, d_model=D, **{**small, **options}).eval()


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, T)), D)


def equal(a: sf.State, b: sf.State) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def off(got: Tensor, want: Tensor) -> float:
    return float(relative_error(wide(got.detach()), wide(want.detach())).max())


# -- precision ----------------------------------------------------------------------------------------------------


@ALL
@torch.no_grad()
def test_autocast(name: str) -> None:
    m, u = layer(name), x()
    want, kept = m(u, return_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = m(u, return_state=True)
        again, _ = m(u.bfloat16(), return_state=True)
        step, _ = m.step(u[:, 0], state)
        masked = m(u, attention_mask=torch.ones(B, T))
        from_blank = m(u, initial_state=kept.map(torch.zeros_like) if "values" not in kept else m.init_state(B))
    for out in (again, step, masked, from_blank):
        assert out.dtype == y.dtype or out.dtype == torch.bfloat16
    assert y.dtype in (torch.bfloat16, torch.float32)
    assert all(state[k].dtype == kept[k].dtype for k in kept if k in ("S", "log_scale", "angle"))
    assert off(y, want) < 0.2
    assert off(masked, want) < 0.2
    # Into autocast and out of it with one state.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = m(u, initial_state=kept)
    outside = m(u, initial_state=state)
    assert off(inside, outside) < 0.2


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    exact, m = layer(name), layer(name).to(dtype)
    u = x().to(dtype)
    want, precise = exact(u.float(), return_state=True)
    y, state = m(u, return_state=True)
    assert y.dtype == dtype
    assert off(y, want) < 0.2
    for given in (state, m.init_state(B)):
        for k in given:
            if k.rpartition(".")[2] in (*PRECISE, "angle", "position"):
                assert given[k].dtype == precise[k].dtype  # float32, complex64 or exact
            else:
                assert given[k].dtype == dtype
        step, after = m.step(u[:, 0], given)
        assert step.dtype == dtype
        assert {k: after[k].dtype for k in after} == {k: given[k].dtype for k in given}
    for form, why_not in m.system(u).forms().items():
        if why_not is None:
            assert m(u, form=form).dtype == dtype


@ALL
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        m = sf.build(name, d_model=D)
    assert all(p.is_meta for p in m.parameters())
    y, state = m(x().to("meta"), return_state=True)
    assert y.is_meta and y.shape == (B, T, D)
    assert all(t.is_meta for t in state.tensors.values())
    with sf.validate(True):
        m(x().to("meta"))
    real = sf.build(name, d_model=D).eval()
    m.eval().load_state_dict(real.state_dict(), assign=True)
    u = x()
    assert torch.equal(m(u), real(u))


# -- copies -------------------------------------------------------------------------------------------------------


@ALL
@torch.no_grad()
def test_copies_and_weights(name: str) -> None:
    m, u = layer(name), x()
    y, state = m(u, return_state=True)
    twin = copy.deepcopy(m)
    assert torch.equal(twin(u, initial_state=state), m(u, initial_state=state))
    for p in twin.parameters():
        p.zero_()
    assert torch.equal(m(u), y)
    fresh = layer(name)
    for p in fresh.parameters():
        p.normal_()
    fresh.load_state_dict(load(save(m.state_dict())))  # no pickle
    assert torch.equal(fresh(u, initial_state=state), m(u, initial_state=state))


# -- gradients ----------------------------------------------------------------------------------------------------


@ALL
def test_activation_checkpointing(name: str) -> None:
    m, u = layer(name), x().requires_grad_()
    leaves = [u, *m.parameters()]
    want = torch.autograd.grad(m(u).square().sum(), leaves)
    got = torch.autograd.grad(checkpoint(m, u, use_reentrant=False).square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@ALL
def test_gradients_flow_through_states(name: str) -> None:
    """Through two calls from the first state to the last; cut by detach; none where nothing asks for any."""
    m, u = layer(name), x()
    _, first = m(x(B, 3), return_state=True)
    leaves = {
        k: t.detach().requires_grad_() for k, t in first.tensors.items() if t.is_floating_point() or t.is_complex()
    }
    leaves.pop("angle", None)
    state = sf.State({**first.tensors, **leaves}, first.fingerprint)
    for i in range(2):
        _, state = m(u[:, i : i + 1], initial_state=state, return_state=True)
    total = sum(state[k].abs().square().sum() for k in leaves)
    found = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True))
    assert any(g is not None and bool(g.abs().max() > 0) for g in found.values())

    cut = state.detach()
    assert not any(t.requires_grad for t in cut.tensors.values())
    y = m(u, initial_state=cut)
    y.sum().backward()  # reaches no further than this call
    m.requires_grad_(False)
    y, state = m(u, initial_state=cut, return_state=True)
    assert not y.requires_grad
    assert not any(t.requires_grad for t in state.tensors.values())


@SOME
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule for fused attention
def test_functional_transforms(name: str) -> None:
    m, u = layer(name).double(), x().double()
    params = {k: p.detach() for k, p in m.named_parameters()}

    def loss(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(m, p, (row.unsqueeze(0),)).square().sum()

    rows = vmap(grad(loss), in_dims=(None, 0))(params, u)
    want = torch.autograd.grad(m(u).square().sum(), list(m.parameters()))
    for (k, p), g in zip(m.named_parameters(), want, strict=True):
        torch.testing.assert_close(rows[k].sum(0), g, rtol=1e-6, atol=1e-8 * float(g.abs().max() + 1)), (k, p.shape)
    # Several layers at once.
    others = [copy.deepcopy(m) for _ in range(2)]
    for p in others[1].parameters():
        p.data.mul_(1.1)
    stacked, buffers = stack_module_state(others)
    both = vmap(lambda p, b: functional_call(m, (p, b), (u,)))(stacked, buffers)
    torch.testing.assert_close(both, torch.stack([o(u) for o in others]))


@SOME
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_a_run(name: str) -> None:
    m = layer(name).double()
    systems = [m.system(x().double()).detach() for _ in range(2)]
    stacked = pytree.tree_map(lambda a, b: torch.stack([a, b]), *systems)
    both = vmap(sf.run)(stacked)
    torch.testing.assert_close(both, torch.stack([sf.run(s) for s in systems]))
    axes = pytree.tree_map(lambda _: 0, stacked)
    torch.testing.assert_close(vmap(sf.run, in_dims=(axes,))(stacked), both)

    s = systems[0]
    v = s.k if s.v is None else s.v
    part = "k" if s.v is None else "v"

    def read(t: Tensor) -> Tensor:
        return sf.run(dataclasses.replace(s, **{part: t}), "recurrent")  # type: ignore[return-value]

    g = grad(lambda t: read(t).sum())(v)
    again = v.clone().requires_grad_()
    torch.testing.assert_close(g, torch.autograd.grad(read(again).sum(), again)[0])
    if s.readout.linear:  # a linear map: the derivative along v is the map itself
        y, along = jvp(read, (v,), (v,))
        torch.testing.assert_close(along, y, rtol=1e-6, atol=1e-9) if s.eta != "sum" else None


# -- compilation --------------------------------------------------------------------------------------------------


@SOME
@pytest.mark.drawn(0.3)
def test_compiled_in_one_graph(name: str) -> None:
    """Whole sequences, continued, and their gradients: fullgraph raises at any graph break."""
    torch._dynamo.reset()
    m, u = layer(name), x(B, 5)

    def both(u: Tensor) -> tuple[Tensor, sf.State]:
        y, state = m(u, return_state=True)
        z, state = m(u, initial_state=state, return_state=True)
        return y + z, state

    y, state = torch.compile(both, backend="eager", fullgraph=True)(u)
    want, end = both(u)
    torch.testing.assert_close(y, want)
    assert set(state) == set(end)
    for k in end:
        torch.testing.assert_close(state[k], end[k])
    got = torch.autograd.grad(y.sum(), list(m.parameters()))
    for g, w in zip(got, torch.autograd.grad(want.sum(), list(m.parameters())), strict=True):
        torch.testing.assert_close(g, w)


@torch.no_grad()
def test_a_compiled_step() -> None:
    torch._dynamo.reset()
    m, u = layer("gated_deltanet"), x()
    state = m.init_state(B)
    y, after = torch.compile(m.step, backend="eager", fullgraph=True)(u[:, 0], state)
    want, end = m.step(u[:, 0], state)
    torch.testing.assert_close(y, want)  # a token in a graph is added up in another order
    for k in end:
        torch.testing.assert_close(after[k], end[k])


# -- threads, bits, memory ----------------------------------------------------------------------------------------


@ALL
@torch.no_grad()
def test_the_same_bits_twice_and_from_two_threads(name: str) -> None:
    m, inputs = layer(name), [x() for _ in range(8)]
    want = [m(u, return_state=True) for u in inputs]
    got: list[Any] = [None] * len(inputs)
    go = threading.Barrier(2)

    def work(rows: range) -> None:
        with torch.no_grad(), sf.validate(rows.start == 0):
            go.wait()
            for i in rows:
                got[i] = m(inputs[i], return_state=True)

    threads = [threading.Thread(target=work, args=(range(k, len(inputs), 2),)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (y, state), (z, end) in zip(got, want, strict=True):
        assert torch.equal(y, z) and equal(state, end)


@SOME
def test_the_same_gradients_twice(name: str) -> None:
    m, u = layer(name), x()
    first, second = (torch.autograd.grad(m(u).square().sum(), list(m.parameters())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("name", ["linear", "gated_deltanet", "mamba", "s4d", "lru", "mlstm"])
@torch.no_grad()
@pytest.mark.drawn(0.25)
def test_a_finite_state_does_not_grow(name: str) -> None:
    m, u = layer(name), x(1, 2)
    state = m.init_state(1)
    size = state.nbytes
    for _ in range(3):
        _, state = m.step(u[:, 0], state)
    before = tensors_alive()
    for i in range(200):
        if i % 10:
            _, state = m.step(u[:, 0], state, inplace=bool(i % 2))
        else:
            _, state = m(u, initial_state=state, return_state=True)
    assert state.nbytes == size
    assert tensors_alive() <= before


def test_training_in_stretches_does_not_grow() -> None:
    m, u = layer("gated_deltanet"), x(1, 4)
    state, before = m.init_state(1), 0
    for i in range(12):
        y, state = m(u, initial_state=state, return_state=True)
        y.sum().backward()
        state = state.detach()
        del y
        before = tensors_alive() if i == 2 else before
    assert tensors_alive() <= before


# -- State --------------------------------------------------------------------------------------------------------


@ALL
@torch.no_grad()
def test_calls_leave_the_given_state_alone(name: str) -> None:
    m, u = layer(name), x()
    _, state = m(u, return_state=True)
    kept = state.clone()
    m(u, initial_state=state, return_state=True)
    m(u, initial_state=state, attention_mask=torch.ones(B, T))
    m(u[:1], initial_state=state, cu_seqlens=torch.tensor([0, 4, T]))
    m(u[:, :0], initial_state=state)
    y, after = m.step(u[:, 0], state)
    assert equal(state, kept)
    place = {k: state[k].data_ptr() for k in state}
    z, same = m.step(u[:, 0], state, inplace=True)
    assert torch.equal(y, z) and equal(same, after)
    if "values" in state:  # a cache that grows is another one
        assert equal(state, kept)
    else:
        assert same is state
        assert {k: state[k].data_ptr() for k in state} == place


@ALL
@torch.no_grad()
def test_operations_on_states(name: str, tmp_path: Path) -> None:
    m, u = layer(name), x()
    _, state = m(u, return_state=True)
    assert state.rows == B
    assert state.nbytes == sum(t.numel() * t.element_size() for t in state.tensors.values())
    assert f"{state.nbytes:,} bytes" in repr(state)
    assert all(k in repr(state) for k in state)
    # Rows, repeated and chosen.
    y = m(u, initial_state=state)
    twice = state.repeat(2)
    assert equal(twice.select([0, 2]), state) and equal(twice.select([1, 3]), state)
    assert equal(state.select([1, 0]).select([1, 0]), state)
    assert equal(state.select(torch.tensor([False, True])), state.select([-1]))
    torch.testing.assert_close(m(u[[1]], initial_state=state.select([1])), y[[1]])
    torch.testing.assert_close(m(u.repeat_interleave(2, 0), initial_state=twice), y.repeat_interleave(2, 0))
    # Copies of every kind.
    for other in (copy.copy(state), copy.deepcopy(state), state.clone(), state.detach(), state.to("cpu")):
        assert equal(other, state) and other.fingerprint == state.fingerprint
    assert all(state.clone()[k].data_ptr() != t.data_ptr() for k, t in state.tensors.items())
    leaves, spec = pytree.tree_flatten(state)
    assert equal(pytree.tree_unflatten(leaves, spec), state)
    # Precision: complex stays complex, counts stay whole.
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = state.to(dtype)
        for k, t in state.tensors.items():
            assert cast[k].is_complex() == t.is_complex()
            kept = k == "angle" or (k.rpartition(".")[2] in PRECISE and dtype != torch.float64)
            assert kept or (cast[k].dtype == dtype) == t.is_floating_point()
            assert k == "angle" or not kept or cast[k].dtype in (torch.float32, torch.complex64)
            assert not t.is_complex() or (cast[k].dtype in DOUBLE) == (dtype == torch.float64)
    # To a file and back, also from views.
    state.save(tmp_path / "state")
    back = sf.State.load(tmp_path / "state")
    assert equal(back, state) and back.fingerprint == m.fingerprint
    assert torch.equal(m(u, initial_state=back), y)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_views_are_saved_as_what_they_show(dtype: torch.dtype, tmp_path: Path) -> None:
    z = torch.randn(3, 4, dtype=dtype)
    views = sf.State({"conj": z.conj(), "imag": z.conj().imag, "same": z, "wide": z[:, :1].expand(3, 5), "t": z.T[:3]})
    views.save(tmp_path / "views")
    back = sf.State.load(tmp_path / "views")
    assert all(torch.equal(back[k], views[k]) and back[k].dtype == views[k].dtype for k in views)


# -- System -------------------------------------------------------------------------------------------------------


def parts(s: sf.System) -> dict[str, Tensor]:
    return s.tensors()


def alike(a: sf.System, b: sf.System) -> bool:
    plain = [f.name for f in dataclasses.fields(a) if f.name not in (*parts(a), "readout")]
    one, other = ({k: x for k, x in vars(s.readout).items() if not isinstance(x, Tensor)} for s in (a, b))
    if type(a.readout) is not type(b.readout) or one != other:
        return False
    same = all(getattr(a, k) == getattr(b, k) for k in plain if not isinstance(getattr(a, k), tuple))
    return same and set(parts(a)) == set(parts(b)) and all(torch.equal(t, parts(b)[k]) for k, t in parts(a).items())


@SYSTEMS
def test_a_system_is_a_frozen_tree(name: str) -> None:
    torch.manual_seed(0)
    s = CASES[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.q = None  # type: ignore[misc]
    leaves, spec = pytree.tree_flatten(s)
    assert len(leaves) == len(parts(s))
    back = pytree.tree_unflatten(leaves, spec)
    assert alike(back, s) and repr(back) == repr(s)
    doubled = pytree.tree_map(lambda t: 2 * t, s)
    assert all(torch.equal(t, 2 * parts(s)[k]) for k, t in parts(doubled).items())
    shapes = pytree.tree_map(lambda t: tuple(t.shape), s)  # leaves need not be tensors
    assert pytree.tree_structure(shapes, is_leaf=lambda t: isinstance(t, tuple)) == spec
    assert alike(copy.deepcopy(s), s)


@SYSTEMS
def test_slices_compose(name: str) -> None:
    torch.manual_seed(0)
    s = CASES[name]()
    assert alike(s[5:50][10:20], s[15:25])
    assert alike(s[:], s)
    assert s[60:1000].T == s.T - 60
    assert s[-3:].T == 3
    assert s[9:3].T == 0
    if s.causal:
        whole = sf.run(s, "recurrent" if s.T < 100 else "auto")
        torch.testing.assert_close(sf.run(s[:20]), whole[:, :20])  # type: ignore[index]
    few = s.select_heads([s.H - 1])
    assert few.H == 1
    assert alike(s.select_heads(-1), few)
    if s.w_out is None:
        torch.testing.assert_close(sf.run(few), sf.run(s)[:, :, -1:])  # type: ignore[index]


@SYSTEMS
def test_casts_and_words(name: str) -> None:
    torch.manual_seed(0)
    s = CASES[name]()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        low = s.to(dtype)
        for k, t in parts(s).items():
            assert parts(low)[k].is_complex() == t.is_complex()
        assert low.is_complex == s.is_complex
        assert not low.k.is_complex() or low.k.dtype == torch.complex64
        y, state = sf.run(low, return_state=True)
        assert not any(t.dtype in DOUBLE for k, t in state.tensors.items() if k != "angle")
        real = y.real.dtype if y.is_complex() else y.dtype
        assert real == (
            dtype if not low.k.is_complex() or (low.v is not None and not low.v.is_complex()) else torch.float32
        )
    assert all(parts(s.to("cpu"))[k] is t for k, t in parts(s).items())
    text = repr(s)
    assert text.startswith("System(") and text.endswith("; float64)") and len(text) < 200
    assert f"B={s.B}, T={s.T}, H={s.H}, n={s.n}, p={s.p}" in text
    assert ("complex" in text) == s.is_complex
    assert ("feedback" in text) == (s.f is not None)


@pytest.mark.parametrize(("q", "k", "v"), [(6, 2, 3), (6, 3, 2), (12, 4, 6), (12, 6, 4), (12, 2, 3), (1, 2, 3)])
def test_heads_of_the_state_are_those_of_keys_and_values_together(q: int, k: int, v: int) -> None:
    """Keys with 2 heads and values with 3 need a state with 6."""
    if q == 1:
        with pytest.raises(sf.StateformError):
            sf.System(torch.randn(B, T, q, 4), torch.randn(B, T, k, 4), torch.randn(B, T, v, 4))
        return
    torch.manual_seed(0)
    s = sf.System(*(torch.randn(B, T, h, 4, dtype=torch.float64) for h in (q, k, v)))
    wide = sf.System(*(t.repeat_interleave(q // t.shape[2], 2) for t in (s.q, s.k, s.v)))  # type: ignore[union-attr]
    want = sf.run(wide)
    for form, why_not in s.forms().items():
        if why_not is None:
            y, state = sf.run(s[:4], form, return_state=True)
            assert state["S"].shape[1] == s.state_heads  # type: ignore[index]
            z = sf.run(s[4:], form, initial_state=state)  # type: ignore[arg-type]
            torch.testing.assert_close(torch.cat([y, z], 1), want)


# -- a layer of one's own -----------------------------------------------------------------------------------------


class Leaky(sf.Layer):
    """The ten lines of a user."""

    def __init__(self, d_model: int, *, memory: float = 10.0) -> None:
        super().__init__(d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.log_decay = nn.Parameter(torch.full((d_model,), -1 / memory))

    def system(self, u: Tensor, past: sf.Past | None = None) -> sf.System:
        one = torch.ones(1, 1, dtype=u.dtype, device=u.device)
        return sf.System(one, one, self.proj(u).unsqueeze(-1), log_decay=self.log_decay)


@pytest.mark.parametrize(
    "test",
    [test_calls_leave_the_given_state_alone, test_activation_checkpointing, test_gradients_flow_through_states,
     test_half_precision, test_copies_and_weights],
)  # fmt: skip
def test_a_layer_of_ones_own(test: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(REGISTRY["linear"], name="leaky", cls=Leaky)
    monkeypatch.setitem(REGISTRY, "leaky", entry)
    test("leaky", **({"dtype": torch.bfloat16} if test is test_half_precision else {}))


def test_states_tell_options_apart() -> None:
    states = [layer("qlstm", reversed=flag).init_state(1) for flag in (False, True)]
    assert states[0].fingerprint != states[1].fingerprint
    assert layer("qlstm").fingerprint == states[0].fingerprint
    assert copy.deepcopy(layer("qlstm")).double().fingerprint == states[0].fingerprint
    with pytest.raises(sf.StateformError, match="same class, options and sizes"):
        layer("qlstm")(x(1, 3), initial_state=states[1])
