"""A module with the weights of a layer of ours is that layer; so is what its adapter says of it and of its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor

from stateform.contract.draws import redraw
from stateform.hub import FAMILIES
from stateform.hub.lifted import ADAPTERS, Call
from stateform.hub.twin import TWINS
from stateform.hub.widen import widened
from tests.independent.helpers import EXACT, assert_close

D, T, CUT = 32, 21, 9


@pytest.fixture
def in_double() -> Iterator[None]:
    with widened(torch.float64):
        yield


def made(pair: str) -> tuple[Any, Any, Tensor]:
    """A layer, its twin, and an input of one row: what all modules take steps of."""
    generator = torch.Generator().manual_seed(0)
    layer = TWINS[pair].layer(D).double()
    redraw(layer, generator, "own")
    return layer, TWINS[pair](layer), torch.randn(1, T, D, generator=generator, dtype=torch.float64)


@contextmanager
def listening(twin: Any, act: Callable[[Call], None]) -> Iterator[None]:
    """Let something be done with what the adapter takes each call of the module for."""

    def hear(module: Any, args: Any, kwargs: Any) -> None:
        act(ADAPTERS[twin.kind()].arguments(module, args, dict(kwargs)))

    hook = twin.module.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("pair", sorted(TWINS))
@torch.no_grad()
def test_the_layer_the_module_and_its_adapter_are_one_function(pair: str) -> None:
    layer, twin, x = made(pair)
    want, calls = layer(x), []
    with listening(twin, calls.append):
        assert_close(twin.call(x), want, "module", EXACT)
    lifted = ADAPTERS[twin.kind()].called(twin.module, calls[0].rest)
    assert_close(lifted(calls[0].u), want, "adapter", EXACT)
    cache = twin.begin(x)
    assert_close(twin.call(x[:, :CUT], cache), want[:, :CUT], "module, into a cache", EXACT)
    assert_close(twin.call(x[:, CUT : CUT + 1], cache, CUT), want[:, CUT : CUT + 1], "module, from a cache", EXACT)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("pair", [name for name in sorted(TWINS) if ADAPTERS[TWINS[name].kind()].finite])
@torch.no_grad()
def test_the_adapter_goes_on_from_the_cache_of_the_module(pair: str) -> None:
    layer, twin, x = made(pair)
    want, cache, states = layer(x), twin.begin(x), []
    lifted = ADAPTERS[twin.kind()](twin.module)
    twin.call(x[:, :CUT], cache)
    with listening(twin, lambda call: states.append(lifted.read(call.cache).clone())):  # the module changes it in place
        twin.call(x[:, CUT : CUT + 1], cache, CUT)
    y = lifted(x[:, CUT:], initial_state=states[0].to(torch.float64))  # some caches are float32
    assert_close(y, want[:, CUT:], "adapter", EXACT)


def test_every_twin_is_of_a_type_that_is_known() -> None:
    assert len(TWINS) >= 11
    for name, twin in TWINS.items():
        assert twin.pair == name and twin.model in FAMILIES
        assert len({way.behind for way in twin.ways}) == len(twin.ways)
