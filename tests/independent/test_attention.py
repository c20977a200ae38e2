"""Softmax attention against transformers and torch; linear and normalized attention against their papers' equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from .helpers import (
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    inputs,
    join_heads,
    numbers,
    softplus,
    split_heads,
)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rope_base", [10_000.0, 500.0])
def test_softmax_with_rope_is_llama_attention(n_kv_heads: int, rope_base: float) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import DynamicCache, LlamaConfig

    ours = drawn("softmax", d_model=32, n_heads=4, n_kv_heads=n_kv_heads, rope_base=rope_base, bias=True)
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=n_kv_heads, num_hidden_layers=1, attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": rope_base}, attn_implementation="eager",
    )  # fmt: skip
    x, T = inputs(2, 23, 32), 23
    with Double():
        theirs = llama.LlamaAttention(config, layer_idx=0).double().eval()
        rotary = llama.LlamaRotaryEmbedding(config)
        cos_sin = rotary(x, torch.arange(T)[None])
    theirs.load_state_dict({name.replace("out_proj", "o_proj"): p for name, p in ours.state_dict().items()})
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]

    def attend(u: Tensor) -> Tensor:
        with Double():
            return theirs(u, position_embeddings=cos_sin, attention_mask=mask)[0]

    cache = DynamicCache(config=config)
    with Double(), torch.no_grad():  # a prompt, then token by token
        pieces = []
        for start, stop in [(0, 9)] + [(t, t + 1) for t in range(9, T)]:
            stretch = tuple(c[:, start:stop] for c in cos_sin)
            piece = theirs(x[:, start:stop], stretch, mask[..., start:stop, :stop], past_key_values=cache)
            pieces.append(piece[0])
    assert_close(torch.cat(pieces, 1), attend(x), "their own continuation")
    values = cache.layers[0].values.transpose(1, 2)
    assert_same_function(ours, x, attend(x), lambda state: state["values"], values)
    assert_same_gradient(ours, attend, x)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_softmax_without_positions_is_torch_attention(n_kv_heads: int) -> None:
    layer = drawn("softmax", d_model=32, n_heads=4, n_kv_heads=n_kv_heads, d_state=6, positions="none", bias=True)

    def attend(u: Tensor) -> Tensor:
        q, k, v = (f(u).unflatten(-1, (h, -1)).transpose(1, 2) for f, h in (
            (layer.q_proj, 4), (layer.k_proj, n_kv_heads), (layer.v_proj, n_kv_heads)))  # fmt: skip
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return layer.out_proj(y.transpose(1, 2).flatten(2))

    x = inputs(2, 29, 32)
    assert_same_function(layer, x, attend(x))
    assert_same_gradient(layer, attend, x)


def test_rotary_scores_are_the_papers_rotation_matrices() -> None:
    """q_m^T R(m)^T R(n) k_n with R made of plain 2 x 2 rotations (arXiv 2104.09864, eq. 15), T x T softmax in numpy."""
    layer, T, n = drawn("softmax", d_model=24, n_heads=2, d_state=6, rope_base=100.0), 11, 6
    x, w = inputs(2, T, 24), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{name}_proj.weight"].T, 2) for name in "qkv")
    rotations = np.zeros((T, n, n))
    for t in range(T):
        for i in range(n // 2):  # the pair (i, i + n/2) turns by t * base^(-2i/n)
            angle = t * 100.0 ** (-2 * i / n)
            rows = np.ix_([i, i + n // 2], [i, i + n // 2])
            rotations[t][rows] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    y = np.zeros((2, 2, T, 12))
    for i in range(T):
        scores = np.stack([
            np.einsum("bhn,mn,ml,bhl->bh", q[:, :, i], rotations[i], rotations[j], k[:, :, j]) / np.sqrt(n)
            for j in range(i + 1)
        ])  # fmt: skip
        weights = np.exp(scores) / np.exp(scores).sum(0)
        y[:, :, i] = np.einsum("jbh,bhjp->bhp", weights, v[:, :, : i + 1])
    assert_same_function(layer, x, join_heads(y) @ w["out_proj.weight"].T)


@pytest.mark.parametrize("forget", [False, True])
def test_path_is_the_papers_product_of_reflections(forget: bool) -> None:
    """Scores q_i^T H_i ... H_{j+1} k_j with every H_t written out (arXiv 2505.16381), T x T softmax in numpy."""
    layer, T, n, H = drawn("path", d_model=24, n_heads=2, d_state=6, forget=forget), 13, 6, 2
    x, w = inputs(2, T, 24), numbers(layer)
    u = x.numpy()
    q, k, v = (split_heads(u @ w[f"{name}_proj.weight"].T, H) for name in "qkv")
    narrow = np.pad(u @ w["w_proj.0.weight"].T @ w["w_proj.1.weight"].T, ((0, 0), (2, 0), (0, 0)))
    taps = w["w_conv.weight"][:, 0]
    conv = sum(narrow[:, i : i + T] * taps[:, i] for i in range(3))
    unit = split_heads(conv / (1 + np.exp(-conv)), H)
    unit = unit / np.sqrt((unit**2).sum(-1, keepdims=True) + 1e-6)
    beta = 2 / (1 + np.exp(-(u @ w["b_proj.weight"].T + w["b_proj.bias"]))).swapaxes(1, 2)
    reflections = np.eye(n) - beta[..., None, None] * unit[..., :, None] * unit[..., None, :]
    gate = np.zeros((2, H, T))
    if forget:
        gate = -softplus(-(u @ w["forget_proj.weight"].T + w["forget_proj.bias"])).swapaxes(1, 2)
    y = np.zeros(v.shape)
    for i in range(T):
        back, scores, forgotten = q[:, :, i], np.zeros((2, H, i + 1)), 0.0
        for j in range(i, -1, -1):
            scores[..., j] = (back * k[:, :, j]).sum(-1) / np.sqrt(n) + forgotten
            back = np.einsum("bhm,bhmn->bhn", back, reflections[:, :, j])
            forgotten = forgotten + gate[:, :, j]
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        y[:, :, i] = np.einsum("bhj,bhjp->bhp", weights, v[:, :, : i + 1])
    assert_same_function(layer, x, join_heads(y) @ w["out_proj.weight"].T)


def test_linear_attention_is_the_papers_sum() -> None:
    """y_i = sum_j phi(q_i)^T phi(k_j) v_j / sum_j phi(q_i)^T phi(k_j), phi = elu + 1 (arXiv 2006.16236, eq. 9)."""
    layer = drawn("linear", d_model=16, n_heads=4, d_state=5)
    x, w = inputs(2, 19, 16), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{name}_proj.weight"].T, 4) for name in "qkv")
    q, k = (np.where(z > 0, z + 1, np.exp(z)) for z in (q, k))
    weights = np.tril(np.einsum("bhin,bhjn->bhij", q, k))
    y = (weights / weights.sum(-1, keepdims=True)) @ v
    S = np.einsum("bhjn,bhjp->bhnp", k, np.concatenate([v, np.ones_like(v[..., :1])], -1))
    assert_same_function(layer, x, join_heads(y) @ w["out_proj.weight"].T, lambda state: state["S"], S)


@pytest.mark.parametrize("eta", ["exp", "softplus", "sigmoid"])
def test_normalized_attention_is_the_papers_sum(eta: str) -> None:
    """y_i = sum_j q_i^T k_j v_j / eta(W u_i), the three eta of the paper (arXiv 2405.15731, eq. 22, 29, 30)."""
    layer = drawn("normalized", d_model=16, n_heads=4, d_state=5, eta=eta)
    x, w = inputs(2, 19, 16), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{name}_proj.weight"].T, 4) for name in "qkv")
    z = x.numpy() @ w["eta_proj.weight"].T + w["eta_proj.bias"]
    divisor = {"exp": np.exp(z), "softplus": softplus(z), "sigmoid": 1 / (1 + np.exp(-z))}[eta]
    y = np.zeros(v.shape)
    for i in range(19):
        for j in range(i + 1):
            weight = (q[:, :, i] * k[:, :, j]).sum(-1) / divisor[:, i]
            y[:, :, i] += weight[..., None] * v[:, :, j]
    S = sum(k[:, :, j, :, None] * v[:, :, j, None, :] for j in range(19))
    assert_same_function(layer, x, join_heads(y) @ w["out_proj.weight"].T, lambda state: state["S"], S)
