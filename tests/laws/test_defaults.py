"""torch's default dtype and default device: a layer takes them, or goes on where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import stateform as sf

D = 8
ALL = pytest.mark.parametrize("name", sf.names())
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])


@contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def calls(m: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """A whole sequence, a step from its state, one from a blank state, and behind padding."""
    y, state = m(x, return_state=True)
    step, _ = m.step(x[:, 0], state)  # type: ignore[operator]
    first, _ = m.step(x[:, 0], m.init_state(len(x)))  # type: ignore[operator]
    padded = [] if x.is_meta else [m(x, attention_mask=torch.ones(*x.shape[:2], device=x.device))]
    return [y, step, first, *padded]


@ALL
@DTYPES
@torch.no_grad()
def test_a_default_dtype_is_that_of_the_layer(name: str, dtype: torch.dtype) -> None:
    """Equal, to the bit, to a layer of these weights made under the usual default and cast."""
    torch.manual_seed(0)
    with by_default(dtype):
        m = sf.build(name, d_model=D).eval()
        x = torch.randn(2, 3, D)
        found = calls(m, x)
    assert {z.dtype for z in (*m.state_dict().values(), *found) if z.is_floating_point()} == {dtype}
    assert all(bool(p.isfinite().all()) for p in m.parameters())
    other = sf.build(name, d_model=D).to(dtype).eval()
    other.load_state_dict(m.state_dict())
    for got, want in zip(found, calls(other, x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["mamba", "rwkv7", "lru", "performer"])
def test_half_precision_rounds_what_float32_draws(name: str) -> None:
    torch.manual_seed(0)
    full = sf.build(name, d_model=D)
    torch.manual_seed(0)
    with by_default(torch.bfloat16):
        half = sf.build(name, d_model=D)
    for got, want in zip(half.state_dict().values(), full.state_dict().values(), strict=True):
        assert torch.equal(got, want.bfloat16())


@ALL
@torch.no_grad()
def test_a_default_device_is_that_of_the_layer(name: str) -> None:
    with torch.device("meta"):
        m = sf.build(name, d_model=D)
        found = calls(m, torch.randn(2, 3, D))
        for given in ({"attention_mask": torch.ones(1, 3)}, {"cu_seqlens": torch.tensor([0, 3])}):
            with pytest.raises(sf.StateformError, match="is on the device meta"):
                m(torch.randn(1, 3, D), **given)
    assert all(z.is_meta for z in (*m.state_dict().values(), *found))


@ALL
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, at its first vmap on a device
def test_a_default_device_is_not_that_of_what_is_elsewhere(name: str) -> None:
    m = sf.build(name, d_model=D).eval()
    x = torch.randn(2, 3, D)
    want, pack = calls(m, x), torch.tensor([0, 1, 3])
    with torch.device("meta"):
        found = calls(m, x)
        m(x[:1], cu_seqlens=pack)
        m.system(x).forms()
    assert all(torch.equal(got, z) for got, z in zip(found, want, strict=True))


@DTYPES
def test_models_take_both(dtype: torch.dtype) -> None:
    with by_default(dtype), torch.device("meta"):
        m = sf.LanguageModel("softmax mamba rwkv7 s4d", d_model=D, vocab_size=11, n_layers=4)
        loss = m(torch.zeros(2, 3, dtype=torch.long), labels=torch.zeros(2, 3, dtype=torch.long)).loss
        assert loss is not None and loss.is_meta
    assert {p.dtype for p in m.parameters()} == {dtype}
    with by_default(dtype):
        m = sf.LanguageModel("softmax mamba rwkv7 s4d", d_model=D, vocab_size=11, n_layers=4)
        out = m(torch.zeros(2, 3, dtype=torch.long), return_state=True)
    assert out.logits.dtype == dtype and bool(out.logits.isfinite().all())
