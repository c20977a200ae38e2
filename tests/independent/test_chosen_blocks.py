"""MoBA and NSA against their equations, query by query and key by key, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .helpers import assert_same_function, drawn, inputs
from .test_lolcats import turned

B, T, D, H = 2, 41, 16, 4


def split(layer: Any, u: Tensor, heads: dict[str, int]) -> list[Tensor]:
    return [getattr(layer, f"{name}_proj")(u).unflatten(-1, (h, -1)) for name, h in heads.items()]


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query [n], keys [j,n] and values [j,p]; nothing is 0."""
    return ((k @ q) / q.shape[0] ** 0.5).softmax(0) @ v if len(k) else v.new_zeros(v.shape[1])


@torch.no_grad()
@pytest.mark.parametrize(("block", "n_blocks"), [(4, 3), (7, 2), (5, 1), (50, 3)])
def test_moba_sees_its_block_and_those_with_the_nearest_means(block: int, n_blocks: int) -> None:
    layer = drawn("moba", d_model=D, n_heads=H, n_kv_heads=2, d_state=6, block=block, n_blocks=n_blocks)
    u = inputs(B, T, D)
    q, k, v = split(layer, u, {"q": H, "k": 2, "v": 2})
    q, k, y = turned(q), turned(k), torch.zeros(B, T, H, D // H, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            keys, values = k[b, :, h // 2], v[b, :, h // 2]
            for t in range(T):
                own = t // block
                scores = {i: float(q[b, t, h] @ keys[i * block : (i + 1) * block].mean(0)) for i in range(own)}
                best = sorted(scores, key=lambda i, s=scores: -s[i])[: n_blocks - 1]  # type: ignore[misc]
                seen = [j for j in range(t + 1) if j // block in {own, *best}]
                y[b, t, h] = attended(q[b, t, h], keys[seen], values[seen])
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
@pytest.mark.parametrize(("block", "n_blocks", "window"), [(4, 4, 6), (3, 5, 1), (8, 3, 60)])
def test_nsa_has_three_views_of_the_past(block: int, n_blocks: int, window: int) -> None:
    layer = drawn("nsa", d_model=D, n_heads=H, n_kv_heads=2, d_state=6, block=block, n_blocks=n_blocks, window=window)
    u = inputs(B, T, D)
    q, k, v = split(layer, u, {"q": H, "k": 6, "v": 6})
    gate = torch.sigmoid(layer.gate_proj(u)).unflatten(-1, (3, H))
    n, whole = 6, T // block
    cut = [x[:, : whole * block, :2].unflatten(1, (whole, block)) for x in (k, v)]
    kc, vc = (torch.einsum("bmihc,ihc->bmhc", x, c) for x, c in zip(cut, layer.compress.split([n, 4], -1), strict=True))
    at_ends = torch.zeros_like(k[:, :, :2])
    at_ends[:, block - 1 : whole * block : block] = kc
    kc = turned(at_ends)[:, block - 1 : whole * block : block]  # each at the place of its block's last token
    q, k = turned(q), turned(k)
    y = torch.zeros(B, T, H, D // H, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            done, own = (t + 1) // block, t // block
            for group in range(2):
                mine = range(2 * group, 2 * group + 2)
                weights = sum(((kc[b, :done, group] @ q[b, t, h]) / n**0.5).softmax(0) for h in mine)
                assert isinstance(weights, Tensor)
                sure = {0, own, max(0, own - 1)}
                others = sorted((i for i in range(done) if i not in sure), key=lambda i, w=weights: -float(w[i]))  # type: ignore[misc]
                # Shown are the best n_blocks, with those that always are first.
                seen = [j for j in range(t + 1) if j // block in {*sure, *others[: max(0, n_blocks - len(sure))]}]
                near = range(max(0, t - window + 1), t + 1)
                for h in mine:
                    views = (
                        (kc[b, :done, group], vc[b, :done, group]),
                        (k[b, seen, 2 + group], v[b, seen, 2 + group]),
                        (k[b, near, 4 + group], v[b, near, 4 + group]),
                    )
                    y[b, t, h] = sum(gate[b, t, i, h] * attended(q[b, t, h], *view) for i, view in enumerate(views))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))
