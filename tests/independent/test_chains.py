"""Architectures that are chains, each against its equations as a plain loop over tokens, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import assert_close, assert_same_function, drawn, inputs

B, T, D, H = 2, 21, 16, 4


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, -1))


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attended(layer: Any, u: Tensor, a: Tensor, write: Tensor) -> Tensor:
    """The slots K [B,H,m,n] and V [B,H,m,p] step by step, from the gates a and what is written [B,T,H,m]."""
    q, k = (F.silu(split(f(u))) for f in (layer.q_proj, layer.k_proj))
    v, ys = split(layer.v_proj(u)), []
    K, V = u.new_zeros(B, H, a.shape[-1], q.shape[-1]), u.new_zeros(B, H, a.shape[-1], v.shape[-1])
    for t in range(T):
        K = a[:, t, ..., None] * K + write[:, t, ..., None] * k[:, t, :, None]
        V = a[:, t, ..., None] * V + write[:, t, ..., None] * v[:, t, :, None]
        weights = torch.einsum("bhmn,bhn->bhm", K, q[:, t]).softmax(-1)
        ys.append(torch.einsum("bhmp,bhm->bhp", V, weights))
    y = F.silu(rms(torch.stack(ys, 1)) * layer.norm.weight)
    return layer.out_proj(y.flatten(2))  # type: ignore[no-any-return]


@torch.no_grad()
def test_gated_slot_attention_attends_to_slots_that_fade() -> None:
    layer, u = drawn("gsa", d_model=D, n_heads=H, d_state=3, n_slots=5), inputs(B, T, D)
    a = torch.sigmoid(split(layer.a_proj(u))) ** (1 / 8)
    assert_same_function(layer, u, attended(layer, u, a, 1 - a))


@torch.no_grad()
def test_abc_attends_to_slots_that_are_weighted_means() -> None:
    layer, u = drawn("abc", d_model=D, n_heads=H, d_state=3, n_slots=5), inputs(B, T, D)
    total = split(layer.a_proj(u)).exp().cumsum(1)
    before = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1]], 1)
    assert_same_function(layer, u, attended(layer, u, before / total, 1 - before / total))


@torch.no_grad()
def test_abc_is_of_any_scale() -> None:
    """Weights whose exponentials no precision holds."""
    layer = sf.build("abc", d_model=8).double()
    layer.a_proj.weight.mul_(1e4)
    y, u = [], inputs(1, 50, 8)
    state = layer.init_state(1)
    for t in range(50):
        out, state = layer.step(u[:, t], state)
        y.append(out)
    assert torch.stack(y, 1).isfinite().all()
    assert_close(layer(u), torch.stack(y, 1), "outputs")


@torch.no_grad()
@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_hla_is_a_product_of_masked_matrices(asymmetric: bool, decay: float) -> None:
    layer = drawn("hla", d_model=D, n_heads=H, d_state=3, asymmetric=asymmetric, decay=decay)
    u, at = inputs(B, T, D), torch.arange(T)
    q, k, v = (split(f(u)).transpose(1, 2) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    fading = (decay ** (at[:, None] - at).double()).tril()
    M = q @ k.mT / 3 * fading
    if asymmetric:
        weights = M @ M
    else:  # S_j fades until j, what is written at j until t
        plain = (q @ k.mT / 3).tril()
        weights = torch.einsum("bhti,bhji,ji->bhtj", q @ k.mT / 3, plain, fading) * fading
    y = rms((weights @ v).transpose(1, 2)) * layer.norm.weight
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))
