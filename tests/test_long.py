"""Long inputs: computed stretch by stretch in memory that does not grow, the state carried, to the same result."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.analysis import peak_bytes
from stateform.layers import Convolved, Layer, base
from stateform.tolerances import relative_error, tolerance, wide

D = 16


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of more than seven tokens are long."""
    monkeypatch.setattr(base, "LEAST", 7)
    monkeypatch.setattr(base, "TILE", {"cpu": 1})


def finite(name: str) -> bool:
    system = sf.build(name, d_model=D).system(torch.zeros(1, 1, D))
    return system.readout != "exp" or system.window is not None


FINITE = [name for name in sf.names() if finite(name)]


def lengths(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the stretches that the layer computes from now on."""
    seen: list[int] = []
    plain = layer._run

    def counted(x: Tensor, *args: Any) -> Any:
        seen.append(x.shape[1])
        return plain(x, *args)

    monkeypatch.setattr(layer, "_run", counted)
    return seen


def same(got: Tensor, want: Tensor, length: int, dtype: torch.dtype = torch.float64) -> bool:
    got, want = wide(got), wide(want)
    return got.shape == want.shape and float(relative_error(got, want).max()) < tolerance(dtype, length)


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.usefixtures("short_stretches")
def test_stretches_give_what_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = sf.build(name, d_model=D).double(), torch.randn(2, 40, D, dtype=torch.float64)
    _, begun = layer(torch.randn(2, 3, D, dtype=torch.float64), return_state=True)
    mask = torch.ones(2, 40)
    mask[0, :9], mask[1, 37:] = 0, 0
    packs: list[dict[str, Any]] = [{}, {"initial_state": begun}, {"attention_mask": mask, "initial_state": begun}]
    wholes = [layer(x, return_state=True, **call) for call in packs]
    seen = lengths(layer, monkeypatch)
    with torch.no_grad():
        for (want, end), call in zip(wholes, packs, strict=True):
            seen.clear()
            y, state = layer(x, return_state=True, **call)
            assert (max(seen) == 7) is (name in FINITE), seen
            assert same(y, want.detach(), 40)
            for key, z in end.tensors.items():
                assert z.shape == state[key].shape
                assert z.dtype == state[key].dtype
                assert same(state[key], z.detach(), 40)


@pytest.mark.usefixtures("short_stretches")
def test_what_needs_the_whole_gets_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = sf.build("retention", d_model=D), torch.randn(1, 40, D)
    seen = lengths(layer, monkeypatch)
    with torch.no_grad():
        for form in ("matrix", "chunkwise"):
            layer(x, form=form)
    assert seen == [40, *[7] * 5, 5]
    seen.clear()
    layer(x)  # for gradients of the weights
    layer.requires_grad_(False)(x.requires_grad_())
    _, state = layer(x[:, :1], return_state=True)
    layer(x.detach(), initial_state=state)
    assert seen == [40, 40, 1, 40]
    seen.clear()
    layer(x.detach())  # nothing asks for a gradient
    torch.func.vmap(lambda u: layer(u))(x.detach()[None])
    assert seen == [*[7] * 5, 5, 40]
    seen.clear()
    lstm = sf.build("lstm", d_model=D)
    seen = lengths(lstm, monkeypatch)
    with torch.no_grad():
        lstm(x, form="newton")
        lstm(x)
    assert seen == [40, *[7] * 5, 5]


@pytest.mark.usefixtures("short_stretches")
def test_what_layers_hand_on_is_whole() -> None:
    torch.manual_seed(0)
    first, second = (Convolved(sf.build("rwkv7", d_model=D), 3).double() for _ in range(2))
    x = torch.randn(2, 30, D, dtype=torch.float64)
    mask = torch.ones(2, 30)
    mask[0, :4] = 0
    for call in ({}, {"attention_mask": mask}):
        shared: list[dict[str, Tensor]] = [{}, {}]
        want = second(first(x, shared=shared[0], **call), shared=shared[0], **call)
        with torch.no_grad():
            got = second(first(x, shared=shared[1], **call), shared=shared[1], **call)
        assert set(shared[1]) == {"v_first"}
        assert same(shared[1]["v_first"], shared[0]["v_first"].detach(), 30)
        assert same(got, want.detach(), 30)


@pytest.mark.usefixtures("short_stretches")
def test_stretches_under_autocast_keep_its_dtype() -> None:
    torch.manual_seed(0)
    layer, x = sf.build("mamba2", d_model=D), torch.randn(2, 40, D)
    with torch.autocast("cpu", torch.bfloat16):
        want, end = layer(x, return_state=True)
        with torch.no_grad():
            y, state = layer(x, return_state=True)
    assert y.dtype == want.dtype
    assert {k: z.dtype for k, z in state.tensors.items()} == {k: z.dtype for k, z in end.tensors.items()}
    assert float(relative_error(y.float(), want.detach().float()).max()) < tolerance(torch.bfloat16, 40, rounded=8)


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINITE)
def test_only_the_output_grows_with_the_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "TILE", {"cpu": 1})
    layer = sf.build(name, d_model=D)
    x = torch.randn(1, 5 * base.LEAST, D)

    def peak(length: int) -> int:
        with torch.no_grad():
            return peak_bytes(lambda: layer(x[:, :length], return_state=True))

    assert peak(5 * base.LEAST) - peak(3 * base.LEAST) == 2 * base.LEAST * D * x.element_size()


@pytest.mark.parametrize("name", FINITE)
def test_a_state_keeps_nothing_but_itself(name: str) -> None:
    layer = sf.build(name, d_model=D)
    _, state = layer(torch.randn(2, 100, D), return_state=True)
    for z in state.tensors.values():
        assert z.untyped_storage().nbytes() <= 2 * z.numel() * z.element_size()


@pytest.mark.usefixtures("short_stretches")
def test_a_thousand_calls_take_the_memory_of_one() -> None:
    layer, x = sf.build("short_conv", d_model=D), torch.randn(1, 8, D)

    def calls(n: int) -> None:
        for _ in range(n):
            layer(x, return_state=True)

    def held() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        return len(objects), sum(z.untyped_storage().nbytes() for z in objects if issubclass(type(z), Tensor))

    with torch.no_grad():
        assert peak_bytes(lambda: calls(10)) == peak_bytes(lambda: calls(1))
        before = held()
        calls(1000)
        after = held()
    assert after[0] < before[0] + 100
    assert after[1] == before[1]
