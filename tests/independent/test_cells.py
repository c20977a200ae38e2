"""Nonlinear cells of later papers, each against its equations as a plain loop over tokens, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf

from .helpers import assert_close, assert_same_function, drawn, inputs, numbers, sigmoid

B, T = 2, 21


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


def test_srwm_rewrites_itself() -> None:
    """Four matrices that are rewritten by the delta rule, each with its own step."""
    layer, x, H, d = drawn("srwm", d_model=6, n_heads=2), inputs(B, T, 6), 2, 3
    w = numbers(layer)
    ys, final = np.zeros((B, T, H, d)), np.zeros((B, H, d * (3 * d + 4) + d))
    for b in range(B):
        for h in range(H):
            W = dict(zip("yqkb", np.split(w["W"][h], [d, 2 * d, 3 * d], axis=1), strict=True))
            first = {name: M.copy() for name, M in W.items()}
            for t in range(T):
                token = softmax(x[b, t].numpy().reshape(H, d)[h])
                y, q, k, beta = (token @ W[name] for name in "yqkb")
                q, k, beta = softmax(q), softmax(k), sigmoid(beta)
                W = {name: M + beta[i] * np.outer(k, q @ M - k @ M) for i, (name, M) in enumerate(W.items())}
                ys[b, t, h] = y
            shift = np.concatenate([W[name] - first[name] for name in "yqkb"], 1)
            final[b, h] = np.concatenate([shift.ravel(), y])
    assert_same_function(layer, x, ys.reshape(B, T, -1) @ w["out_proj.weight"].T, lambda s: s["S"].squeeze(-1), final)


def test_egru_is_heard_above_its_threshold() -> None:
    layer, x, d = drawn("egru", d_model=6, d_state=5), inputs(B, T, 6), 5
    w = numbers(layer)
    W, R, b, a = (np.split(w[n], 3) for n in ("x_proj.weight", "h_proj.weight", "x_proj.bias", "h_proj.bias"))
    theta, c, y, out, events = sigmoid(w["theta"]), np.zeros((B, d)), np.zeros((B, d)), [], 0
    event = np.zeros((B, d))
    for t in range(T):
        token = x[:, t].numpy()
        u = sigmoid(token @ W[0].T + b[0] + y @ R[0].T + a[0])
        r = sigmoid(token @ W[1].T + b[1] + y @ R[1].T + a[1])
        z = np.tanh(token @ W[2].T + b[2] + r * (y @ R[2].T + a[2]))
        c = u * (c - event * theta) + (1 - u) * z
        event = np.heaviside(c - theta, 0.0)
        y, events = event * c, events + event.sum()
        out.append(y @ w["out_proj.weight"].T)
    assert 0 < events < B * T * d / 2, "some units are heard, most are not"
    final = np.concatenate([y, c - event * theta], -1)
    assert_same_function(layer, x, np.stack(out, 1), lambda s: s["S"].flatten(1), final)


def reservoir(layer: Any, x: np.ndarray, leak: float) -> np.ndarray:
    """The states [B,T,d] of an echo state network."""
    W, W_in, b = (getattr(layer, name).numpy() for name in ("W", "W_in", "b"))
    h, states = np.zeros((x.shape[0], W.shape[0])), []
    for t in range(x.shape[1]):
        h = (1 - leak) * h + leak * np.tanh(h @ W.T + x[:, t] @ W_in.T + b)
        states.append(h)
    return np.stack(states, 1)


@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_esn_is_a_reservoir_of_the_radius_and_leak_given(leak: float) -> None:
    layer, x = drawn("esn", d_model=6, d_state=9, leak=leak, spectral_radius=0.7), inputs(B, T, 6)
    assert [name for name, _ in layer.named_parameters()] == ["out_proj.weight"]
    assert np.abs(np.linalg.eigvals(layer.W.numpy())).max() == pytest.approx(0.7, rel=1e-5)  # it was drawn in float32
    h = reservoir(layer, x.numpy(), leak)
    y = h @ layer.out_proj.weight.detach().numpy().T
    assert_same_function(layer, x, y, lambda s: s["S"].flatten(1), h[:, -1])


def test_esn_is_fitted_by_ridge_regression() -> None:
    """The readout is that of the normal equations, written as least squares over more rows."""
    layer, x, target = drawn("esn", d_model=6, d_state=9), inputs(B, T, 6), inputs(B, T, 6, seed=3)
    layer.fit(x, target, ridge=0.5, washout=4)
    h, y = (z[:, 4:].reshape(-1, z.shape[-1]) for z in (reservoir(layer, x.numpy(), 1.0), target.numpy()))
    rows = np.concatenate([h, 0.5**0.5 * np.eye(9)]), np.concatenate([y, np.zeros((9, 6))])
    assert_close(layer.out_proj.weight.detach().numpy(), np.linalg.lstsq(*rows)[0].T, "W_out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": torch.zeros(1, 5, 6)}, r"target has shape \[1, 5, 6\]; expected that of u, \[1, 7, 6\]"),
        ({"washout": 7}, "washout is 7; expected 0 or more, fewer than the 7 tokens"),
        ({"ridge": 0.0}, "ridge is 0.0; expected a number above 0"),
    ],
)
def test_esn_says_what_it_cannot_fit(options: dict[str, Any], message: str) -> None:
    layer, u = sf.build("esn", d_model=6), torch.zeros(1, 7, 6)
    before = layer.out_proj.weight.clone()
    with pytest.raises(sf.StateformError, match=message):
        layer.fit(u, **{"target": u, **options})
    assert torch.equal(layer.out_proj.weight, before)
