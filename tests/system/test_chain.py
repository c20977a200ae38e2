"""A chain: a System made of what another read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

import stateform as sf
from stateform.layer import Past
from stateform.system import Chain, System

B, T, H, N, P = 2, 9, 2, 3, 4


def chain(T: int = T, dtype: torch.dtype = torch.float64) -> Chain:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))

    first = System(draw(B, T, H, N), draw(B, T, H, N), draw(B, T, 3 * H, 1), log_decay=-draw(B, T, 3 * H).abs())
    z = sf.run(first).squeeze(-1).unflatten(2, (H, 3))
    return Chain(z.softmax(-1), draw(B, T, H, 3), draw(B, T, H, P), before=(first,))


def test_a_chain_is_its_last_system_with_those_before() -> None:
    found = chain()
    assert isinstance(found, System)
    assert len(found.systems) == 2
    assert type(found.last) is System
    torch.testing.assert_close(sf.run(found), sf.run(found.last), rtol=0, atol=0)
    torch.testing.assert_close(found.coefficients(), found.last.coefficients(), rtol=0, atol=0)
    assert found.held == 3 * H * N + H * 3 * P
    assert found.growth == 0
    assert repr(found).count("System(") == 2


def test_parts_of_a_chain_are_taken_of_each() -> None:
    found = chain()
    assert [x.T for x in found[2:6].systems] == [4, 4]
    assert [x.H for x in found.select_heads(1).systems] == [3, 1]
    chosen = found.select_heads([1]).before[0]
    assert chosen.v is not None
    assert found.before[0].v is not None
    torch.testing.assert_close(chosen.v, found.before[0].v[:, :, 3:], rtol=0, atol=0)
    assert {x.dtype for x in found.to(torch.float32).systems} == {torch.float32}
    leaf = found.map(lambda _, x: x.requires_grad_())
    assert not any(x.requires_grad for s in leaf.detach().systems for x in s.tensors().values())
    again = replace(found, d=torch.ones(H, dtype=torch.float64))
    assert again.before == found.before


def test_a_chain_is_a_node_of_trees() -> None:
    found = chain()
    leaves, tree = pytree.tree_flatten(found)
    assert len(leaves) == sum(len(x.tensors()) for x in found.systems)
    again = pytree.tree_unflatten(leaves, tree)
    assert isinstance(again, Chain)
    torch.testing.assert_close(sf.run(again), sf.run(found), rtol=0, atol=0)


def test_what_does_not_meet_is_refused() -> None:
    one, short = chain(), chain(T - 1)
    with pytest.raises(sf.StateformError, match="before and the last System differ in their length, 8 and 9"):
        replace(one, before=short.before)
    with pytest.raises(sf.StateformError, match="differ in their batch size, 1 and 2"):
        replace(one, before=(one.before[0].gather(lambda x, r: x[:1]),))
    with pytest.raises(sf.StateformError, match="number 0 of before is a Tensor; expected a System"):
        replace(one, before=(torch.ones(1),))
    with pytest.raises(sf.StateformError, match="v holds nan"):
        sf.run(one.each(lambda s: s.map(lambda n, x: x * torch.nan if s.H > H and n == "v" else x)))


class Twice(sf.Layer):
    """Softmax over what softmax reads: a chain of caches."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.proj = torch.nn.Linear(d_model, d_model, bias=False)

    def system(self, u: torch.Tensor, past: Past | None = None) -> System:
        past = past or Past()
        x = self.proj(u).unflatten(-1, (2, -1))
        first = System(x, x, x, readout="exp", eta="sum")
        return Chain(past.read("first", first), x, x, readout="exp", eta="sum", before=(first,))


def test_a_chain_of_caches_keeps_the_contract() -> None:
    report = sf.check(Twice(8))
    assert report.ok, str(report)
    state = Twice(8).init_state(3)
    assert {name: list(x.shape) for name, x in state.tensors.items()} == {
        "keys": [3, 0, 2, 4], "values": [3, 0, 2, 4], "position": [3], "first.keys": [3, 0, 2, 4],
        "first.values": [3, 0, 2, 4],
    }  # fmt: skip
    found = Twice(8).system(torch.randn(1, 5, 8))
    assert (found.held, found.growth) == (0, 2 * 2 * 8)


def test_the_state_of_a_chain_is_joined_saved_and_opened(tmp_path) -> None:  # type: ignore[no-untyped-def]
    layer = sf.build("gsa", d_model=8)
    x = torch.randn(2, 5, 8)
    _, state = layer(x, return_state=True)
    state.save(tmp_path / "state.safetensors")
    opened = sf.State.load(tmp_path / "state.safetensors")
    both = sf.State.cat([opened.select([1]), layer.init_state(1)])
    y, _ = layer(torch.cat([x[1:], x[1:]]), initial_state=both, return_state=True)
    torch.testing.assert_close(y[1:], layer(x[1:]))
