"""Layers around linear attention and small recurrences against their papers' equations, and against transformers where
it has them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf
from stateform.architectures.attention.taylor import taylor_features

from .helpers import (
    Double,
    assert_close,
    assert_same_function,
    drawn,
    inputs,
    join_heads,
    numbers,
    rms_normalised,
    short_convolution,
    sigmoid,
    silu,
    softplus,
    split_heads,
)

B, T, H, D = 2, 17, 2, 12


def weighted(weights: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal weights [B,H,T,T], normalised by their sums, times values."""
    weights = np.tril(weights)
    return join_heads(weights / weights.sum(-1, keepdims=True) @ v)


def projected(layer: Any, x: np.ndarray, names: str = "qkv") -> list[np.ndarray]:
    w = numbers(layer)
    return [split_heads(x @ w[f"{s}_proj.weight"].T, H) for s in names]


@pytest.mark.parametrize("degree", [2, 4])
def test_taylor_is_the_polynomial_of_the_exponential(degree: int) -> None:
    layer = drawn("taylor", d_model=D, n_heads=H, d_state=3, degree=degree)
    x = inputs(B, T, D)
    q, k, v = projected(layer, x.numpy())
    logits = q @ np.swapaxes(k, -1, -2) / math.sqrt(3)
    weights = sum(logits**p / math.factorial(p) for p in range(degree + 1))
    assert layer.system(x).n == math.comb(3 + degree, degree)
    assert_same_function(layer, x, weighted(weights, v) @ numbers(layer)["out_proj.weight"].T)


def test_taylor_tends_to_softmax_as_the_degree_grows() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 30, 3, dtype=torch.float64)
    errors = []
    for degree in (2, 6, 10, 14, 18):
        features = taylor_features(q, degree) @ taylor_features(k, degree).T
        errors.append(float((features - (q @ k.T).exp()).abs().max() / (q @ k.T).exp().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_performer_is_attention_with_its_features_and_unbiased() -> None:
    layer = drawn("performer", d_model=D, n_heads=H, n_features=7)
    x = inputs(B, T, D)
    q, k, v = projected(layer, x.numpy())
    n = q.shape[-1]
    w = layer.directions.numpy()

    def phi(z: np.ndarray) -> np.ndarray:
        z = z * n**-0.25
        return np.exp(z @ w.T - (z * z).sum(-1, keepdims=True) / 2) / math.sqrt(7)

    weights = phi(q) @ np.swapaxes(phi(k), -1, -2)
    assert_same_function(layer, x, weighted(weights, v) @ numbers(layer)["out_proj.weight"].T)
    torch.manual_seed(0)
    many = sf.build("performer", d_model=8, n_heads=2, n_features=20_000).double()
    a, b = 0.3 * torch.randn(2, 6, 4, dtype=torch.float64)
    exact = (a @ b.T).exp()
    assert float((many.features(a) @ many.features(b).T / exact - 1).abs().max()) < 0.1


# -- features far below what a number can hold ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [-18.0, -300.0, 5.0])
@pytest.mark.parametrize("name", ["linear", "performer"])
def test_one_token_is_its_own_value(name: str, size: float, dtype: torch.dtype) -> None:
    layer = sf.build(name, d_model=4)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(1.0)
        x = torch.full((2, 1, 4), size, dtype=dtype)
        for form in layer.to(dtype).forms(x):
            assert layer(x, form=form).tolist() == (16 * x).tolist(), form
        y, _ = layer.step(x[:, 0], layer.init_state(2))
    assert y.tolist() == (16 * x[:, 0]).tolist()


@pytest.mark.parametrize("name", ["linear", "performer", "taylor"])
def test_large_inputs_keep_their_weights(name: str) -> None:
    """In float32, inputs times 10: against the features' logarithms in float64, step by step and in every form."""
    torch.manual_seed(0)
    layer = sf.build(name, d_model=D, n_heads=H)
    x = 10 * torch.randn(B, 40, D)
    q, k, v = projected(layer.double(), x.double().numpy())
    n = q.shape[-1]

    def log_features(z: np.ndarray) -> np.ndarray:
        if name == "linear":
            return np.where(z > 0, np.log1p(np.maximum(z, 0)), np.minimum(z, 0))
        z = z * n**-0.25
        return z @ layer.directions.numpy().T - (z * z).sum(-1, keepdims=True) / 2

    if name == "taylor":
        weights = np.log(1 + q @ np.swapaxes(k, -1, -2) / n**0.5 + (q @ np.swapaxes(k, -1, -2)) ** 2 / n / 2)
    else:
        weights = np.logaddexp.reduce(log_features(q)[..., :, None, :] + log_features(k)[..., None, :, :], -1)
    weights = np.where(np.tri(40) > 0, weights, -np.inf)
    weights = np.exp(weights - weights.max(-1, keepdims=True))
    want = weighted(weights, v) @ numbers(layer)["out_proj.weight"].T
    layer = layer.float()
    with torch.no_grad():
        for form in layer.forms(x):
            assert_close(layer(x, form=form), want, form, 2e-5)
        first, state = layer(x[:, :23], return_state=True)
        rest = []
        for t in range(23, 40):
            y, state = layer.step(x[:, t], state)
            rest.append(y)
        assert_close(torch.cat([first, torch.stack(rest, 1)], 1), want, "step by step", 2e-5)


@pytest.mark.parametrize("gate", ["head", "value"])
def test_gated_softmax_is_softmax_times_a_gate(gate: str) -> None:
    layer = drawn("gated_softmax", d_model=D, n_heads=H, positions="none", gate=gate)
    x = inputs(B, T, D)
    q, k, v = projected(layer, x.numpy())
    y = weighted(np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])), v)
    w = numbers(layer)
    opened = sigmoid(x.numpy() @ w["gate_proj.weight"].T)
    y = y * (np.repeat(opened, D // H, -1) if gate == "head" else opened)
    assert_same_function(layer, x, y @ w["out_proj.weight"].T)


@pytest.mark.parametrize("window", [1, 4, 40])
def test_a_sliding_window_sees_its_last_tokens(window: int) -> None:
    layer = drawn("sliding_window", d_model=D, n_heads=H, positions="none", window=window)
    x = inputs(B, T, D)
    q, k, v = projected(layer, x.numpy())
    weights = np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]))
    weights *= np.subtract.outer(np.arange(T), np.arange(T)) < window
    assert_same_function(layer, x, weighted(weights, v) @ numbers(layer)["out_proj.weight"].T)
    _, state = layer(x, return_state=True)
    assert state.keys.shape[1] == min(window - 1, T)


def test_gateloop_multiplies_by_complex_gates() -> None:
    layer = drawn("gateloop", d_model=D, n_heads=H, d_state=3)
    x = inputs(B, T, D).numpy()
    w = numbers(layer)
    q, k, v = projected(layer, x)
    modulus, angle = (split_heads(x @ w[f"{s}_proj.weight"].T + w[f"{s}_proj.bias"], H) for s in ("modulus", "phase"))
    a = sigmoid(modulus) * np.exp(1j * angle)
    y = np.zeros(v.shape)
    for t in range(T):
        for j in range(t + 1):
            kept = a[:, :, j + 1 : t + 1].prod(2)
            y[:, :, t] += (q[:, :, t] * kept * k[:, :, j]).sum(-1).real[..., None] * v[:, :, j]
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) * silu(x @ w["gate_proj.weight"].T)
    assert_same_function(layer, torch.from_numpy(x), y @ w["out_proj.weight"].T)


@pytest.mark.parametrize("lower_bound", [0.0, 0.4])
def test_hgrn2_writes_what_it_lets_go(lower_bound: float) -> None:
    layer = drawn("hgrn2", d_model=D, n_heads=H, d_state=3, lower_bound=lower_bound)
    x = inputs(B, T, D).numpy()
    w = numbers(layer)
    o, f, i = projected(layer, x, "ofi")
    f = lower_bound + (1 - lower_bound) * sigmoid(f)
    y, S = np.zeros(i.shape), np.zeros((B, H, 3, i.shape[-1]))
    for t in range(T):
        S = f[:, :, t, :, None] * S + (1 - f[:, :, t])[..., None] * i[:, :, t, None]
        y[:, :, t] = np.einsum("bhn,bhnp->bhp", silu(o[:, :, t]), S)
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) @ w["out_proj.weight"].T
    assert_same_function(layer, torch.from_numpy(x), y, lambda state: state["S"], S)


def test_lightning_is_minimax_attention() -> None:
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H, head_dim=D // H, block_size=5, num_hidden_layers=2,
        hidden_act="silu", layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    torch.set_default_dtype(torch.float64)  # its slopes are made as it is built
    try:
        theirs = MiniMaxLightningAttention(config, layer_idx=0)
    finally:
        torch.set_default_dtype(torch.float32)
    scale = float(theirs.slope_rate.flatten()[0] / 2.0 ** (-8 / H))
    layer = drawn("lightning", d_model=D, n_heads=H, slope_scale=scale)
    layer.norm.eps = theirs.norm.variance_epsilon
    ours = layer.state_dict()
    with torch.no_grad():
        q, k, v = (ours[f"{s}_proj.weight"].unflatten(0, (H, -1)) for s in "qkv")
        theirs.qkv_proj.weight.copy_(torch.cat([q, k, v], 1).flatten(0, 1))
        theirs.out_proj.weight.copy_(ours["out_proj.weight"])
        theirs.output_gate.weight.copy_(ours["gate_proj.weight"])
        theirs.norm.weight.copy_(ours["norm.weight"])
    x = inputs(B, T, D)
    with Double(), torch.no_grad():
        y = theirs(x, position_embeddings=None, attention_mask=None)[0]
    assert_same_function(layer, x, y)


def test_kda_is_the_delta_rule_behind_a_decay_per_key() -> None:
    layer = drawn("kda", d_model=D, n_heads=H, d_state=5)
    x = inputs(B, T, D).numpy()
    w = numbers(layer)
    q, k, v = (
        split_heads(silu(short_convolution(x @ w[f"{s}_proj.weight"].T, w[f"{s}_conv.weight"])), H) for s in "qkv"
    )
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    beta = sigmoid(x @ w["beta_proj.weight"].T)
    dt = softplus(x @ w["a_proj.0.weight"].T @ w["a_proj.1.weight"].T + w["dt_bias"])
    a = np.exp(-np.exp(w["A_log"])[:, None, None] * split_heads(dt, H))
    y, S = np.zeros(v.shape), np.zeros((B, H, 5, v.shape[-1]))
    for t in range(T):
        key, strength = k[:, :, t, :, None], beta[:, t, :, None, None]
        S = a[:, :, t, :, None] * S
        S = S - strength * key @ (np.swapaxes(key, -1, -2) @ S) + strength * key * v[:, :, t, None]
        y[:, :, t] = np.einsum("bhn,bhnp->bhp", q[:, :, t], S) / math.sqrt(5)
    gate = sigmoid(x @ w["gate_proj.0.weight"].T @ w["gate_proj.1.weight"].T + w["gate_proj.1.bias"])
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) * gate @ w["out_proj.weight"].T
    assert_same_function(layer, torch.from_numpy(x), y, lambda state: state["S"], S)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("n_h", [1, 3])
def test_deltaproduct_multiplies_householder_factors(n_h: int, gated: bool) -> None:
    layer = drawn("deltaproduct", d_model=D, n_heads=H, d_state=5, n_h=n_h, gated=gated)
    x = inputs(B, T, D).numpy()
    w = numbers(layer)

    def stepwise(z: np.ndarray) -> np.ndarray:  # [B,T,n_h*H*c] to [B,T,n_h,H,c]
        return z.reshape(B, T, n_h, H, -1)

    convolved = {s: silu(short_convolution(x @ w[f"{s}_proj.weight"].T, w[f"{s}_conv.weight"])) for s in "qkv"}
    q, k, v = convolved["q"].reshape(B, T, H, -1), stepwise(convolved["k"]), stepwise(convolved["v"])
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    beta = 2 * sigmoid(stepwise(x @ w["beta_proj.weight"].T))[..., 0]
    a = sigmoid(x @ w["a_proj.weight"].T + w["a_proj.bias"]) if gated else np.ones((B, T, H))
    y, S = np.zeros((B, T, H, v.shape[-1])), np.zeros((B, H, 5, v.shape[-1]))
    for t in range(T):
        S = a[:, t, :, None, None] * S
        for j in range(n_h):
            key = k[:, t, j, :, :, None]
            reflect = np.eye(5) - beta[:, t, j, :, None, None] * key * np.swapaxes(key, -1, -2)
            S = reflect @ S + beta[:, t, j, :, None, None] * key * v[:, t, j, :, None, :]
        y[:, t] = np.einsum("bhn,bhnp->bhp", q[:, t], S) / math.sqrt(5)
    y = (rms_normalised(y, 1e-6) * w["norm.weight"]).reshape(B, T, D) @ w["out_proj.weight"].T
    assert_same_function(layer, torch.from_numpy(x), y, lambda state: state["S"], S)
    if n_h == 1 and not gated:
        plain = sf.build("deltanet", d_model=D, n_heads=H, d_state=5, allow_negative_eigenvalues=True).double()
        plain.load_state_dict(layer.state_dict())
        assert_close(layer(torch.from_numpy(x)), plain(torch.from_numpy(x)), "deltaproduct of one factor is deltanet")


@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_minimal_recurrences(name: str) -> None:
    layer = drawn(name, d_model=D, expand=2)
    x = inputs(B, T, D).numpy()
    w = numbers(layer)
    gates = {s: x @ w[f"{s}_proj.weight"].T + w[f"{s}_proj.bias"] for s in ("zh" if name == "min_gru" else "fih")}
    if name == "min_gru":
        write = sigmoid(gates["z"])
        keep = 1 - write
    else:
        f, i = sigmoid(gates["f"]), sigmoid(gates["i"])
        keep, write = f / (f + i), i / (f + i)
    h, y = np.zeros((B, 2 * D)), []
    for t in range(T):
        h = keep[:, t] * h + write[:, t] * gates["h"][:, t]
        y.append(h)
    out = np.stack(y, 1) @ w["out_proj.weight"].T
    assert_same_function(layer, torch.from_numpy(x), out, lambda state: state["S"].flatten(1), h)
