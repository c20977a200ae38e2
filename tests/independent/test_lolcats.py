"""LoLCATs against its two sums, written as a plain loop over tokens in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .helpers import assert_same_function, drawn, inputs

B, T, D, H = 2, 21, 16, 4


def turned(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate x [B,T,H,n] by its position: halves are pairs."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None, None] * base ** (-torch.arange(half).double() / half)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def features(x: Tensor, W: Tensor) -> Tensor:
    z = torch.einsum("...hn,hmn->...hm", x, W)
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rope", "none"])
@pytest.mark.parametrize("window", [1, 5, 30])
def test_lolcats_is_two_sums_under_one_normaliser(window: int, positions: str) -> None:
    layer = drawn("lolcats", d_model=D, n_heads=H, n_kv_heads=2, d_state=6, window=window, positions=positions)
    u = inputs(B, T, D)
    q, k, v = (f(u).unflatten(-1, (h, -1)) for f, h in ((layer.q_proj, H), (layer.k_proj, 2), (layer.v_proj, 2)))
    W_k = layer.k_map.repeat_interleave(2, 0)
    k, v = (x.repeat_interleave(2, 2) for x in (k, v))
    if positions == "rope":
        q, k = turned(q), turned(k)
    phi_q, phi_k, gamma = features(q, layer.q_map), features(k, W_k), torch.sigmoid(layer.gamma)
    y = []
    for t in range(T):
        near, far = slice(max(0, t - window + 1), t + 1), slice(0, max(0, t - window + 1))
        weights = gamma[:, None] * torch.einsum("bhn,bjhn->bhj", q[:, t], k[:, near] / 6**0.5).exp()
        others = torch.einsum("bhn,bjhn->bhj", phi_q[:, t], phi_k[:, far])
        above = torch.einsum("bhj,bjhp->bhp", weights, v[:, near]) + torch.einsum("bhj,bjhp->bhp", others, v[:, far])
        y.append(above / (weights.sum(-1) + others.sum(-1)).unsqueeze(-1))
    assert_same_function(layer, u, layer.out_proj(torch.stack(y, 1).flatten(2)))
