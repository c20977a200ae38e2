"""Attention units with one head and gates, each against its equations as a plain loop over tokens, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .helpers import assert_same_function, drawn, inputs

B, T, D, N = 2, 21, 6, 4


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention token by token, all [B,T,.]."""
    ys = []
    for t in range(q.shape[1]):
        weights = (torch.einsum("bn,bjn->bj", q[:, t], k[:, : t + 1]) / math.sqrt(q.shape[-1])).softmax(-1)
        ys.append(torch.einsum("bj,bjp->bp", weights, v[:, : t + 1]))
    return torch.stack(ys, 1)


def rotated(x: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+n/2}) of the token t by t 10000^(-2i/n)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rope", "none"])
def test_gau_is_attention_with_one_head_and_a_gate(positions: Any) -> None:
    layer, x = drawn("gau", d_model=D, d_state=N, positions=positions), inputs(B, T, D)
    z, v, u = (F.silu(f(x)) for f in (layer.z_proj, layer.v_proj, layer.gate_proj))
    q, k = (layer.gamma[i] * z + layer.beta[i] for i in range(2))
    if positions == "rope":
        q, k = rotated(q), rotated(k)
    assert_same_function(layer, x, layer.out_proj(u * attended(q, k, v)))


@torch.no_grad()
def test_mega_attends_by_moving_averages() -> None:
    m = 3
    layer, x = drawn("mega", d_model=D, d_state=N, n_averages=m), inputs(B, T, D)
    alpha, delta = torch.sigmoid(layer.alpha), torch.sigmoid(layer.delta)
    h, moved = torch.zeros(B, D, m, dtype=x.dtype), []
    for t in range(T):
        h = alpha * layer.beta * x[:, t, :, None] + (1 - alpha * delta) * h
        moved.append(F.silu((layer.gamma * h).sum(-1) / math.sqrt(m) + layer.omega * x[:, t]))
    xs = torch.stack(moved, 1)
    z, v, gamma = F.silu(layer.z_proj(xs)), F.silu(layer.v_proj(x)), F.silu(layer.r_proj(xs))
    q, k = (layer.kappa[i] * z + layer.mu[i] for i in range(2))
    candidate = F.silu(layer.h_proj(xs) + layer.out_proj(gamma * attended(q, k, v)))
    phi = torch.sigmoid(layer.phi_proj(xs))
    assert_same_function(
        layer, x, phi * candidate + (1 - phi) * x,
        lambda state: state["averages.S"].reshape(B, D, m), h,
    )  # fmt: skip
