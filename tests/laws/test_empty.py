"""Batches without a token: their gradients are zero, for the input and every parameter (a rank of DDP may have one)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stateform as sf

D = 8
ALL = pytest.mark.parametrize("name", sf.names())


def all_zero(m: nn.Module, *inputs: Tensor) -> bool:
    """True if each has a gradient, and it is zero."""
    leaves = [*inputs, *m.parameters()]
    return all(p.grad is not None and not p.grad.any() for p in leaves)


@ALL
@pytest.mark.parametrize("what", ["no rows", "no tokens", "all masked", "packs of nothing"])
def test_a_layer_has_zero_gradients(name: str, what: str) -> None:
    m = sf.build(name, d_model=D)
    shape = {"no rows": (0, 3), "no tokens": (2, 0), "all masked": (2, 3), "packs of nothing": (1, 0)}[what]
    x = torch.randn(*shape, D).fill_(torch.nan if what == "all masked" else 1.0).requires_grad_()
    call: dict[str, Any] = {}
    if what == "all masked":
        call = {"attention_mask": torch.zeros(shape)}
    elif what == "packs of nothing":
        call = {"cu_seqlens": torch.tensor([0, 0, 0])}
    y, _ = m(x, return_state=True, **call)
    assert y.shape == x.shape and not y.any()
    y.sum().backward()
    assert all_zero(m, x)


@pytest.mark.parametrize("mixer", ["softmax", "mamba2", "lstm", "rwkv7", "s4d*1 kalmanet"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_a_model_has_zero_gradients(mixer: str, shape: tuple[int, int]) -> None:
    mask = torch.zeros(shape) if 0 not in shape else None
    ids = torch.zeros(shape, dtype=torch.long)
    m = sf.LanguageModel(mixer, d_model=D, vocab_size=11, conv=2, tie_embeddings=False)
    loss = m(ids, mask, labels=ids).loss
    assert loss is not None and float(loss.detach()) == 0
    loss.backward()
    assert all_zero(m)
    if shape[0] == 0:
        c = sf.Classifier(mixer, d_model=D, vocab_size=11, n_classes=3)
        loss = c(ids, labels=ids[:, 0]).loss
        assert loss is not None and float(loss.detach()) == 0
        loss.backward()
        assert all_zero(c)


@pytest.mark.parametrize("readout", ["linear", "exp", "ridge"])
def test_a_system_has_zero_gradients(readout: Any) -> None:
    q, k, v = (torch.randn(0, 3, 2, 4).requires_grad_() for _ in range(3))
    g = torch.zeros(2, requires_grad=True)
    more = {"ridge": torch.ones(2)} if readout == "ridge" else {}
    decay: dict[str, Any] = {"forget" if readout == "exp" else "log_decay": g}
    y = sf.run(sf.System(q, k, v, readout=readout, **decay, **more))
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert g.grad is not None and not g.grad.any()
    assert all(x.grad is not None for x in (q, k, v))
