"""Structured and dense state-space models against dense matrices, built and multiplied step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf
from stateform.architectures.ssm.hippo import diagonalised_legs

from .helpers import assert_close, assert_same_function, drawn, inputs, numbers, short_convolution, sigmoid

B, T, D = 2, 19, 6


def complex_of(x: np.ndarray) -> np.ndarray:
    return x[..., 0] + 1j * x[..., 1]


def gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def mixed(y: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """GELU and the gated linear unit over the channels."""
    z = gelu(y) @ w["out_proj.weight"].T + w["out_proj.bias"]
    return z[..., :D] * sigmoid(z[..., D:])


def legs(n: int) -> np.ndarray:
    """HiPPO-LegS entry by entry (arXiv 2111.00396, eq. 2)."""
    A = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            A[i, j] = -np.sqrt((2 * i + 1) * (2 * j + 1))
        A[i, i] = -(i + 1)
    return A


def bilinear(A: np.ndarray, b: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    left = np.linalg.inv(np.eye(len(A)) - dt / 2 * A)
    return left @ (np.eye(len(A)) + dt / 2 * A), left @ (dt * b)


def scan(A: np.ndarray, b: np.ndarray, c: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Re(c h_t) with h_t = A h_{t-1} + b u_t, for u [B,T]."""
    h, y = np.zeros((len(u), len(A)), complex), []
    for t in range(u.shape[1]):
        h = h @ A.T + u[:, t, None] * b
        y.append((h @ c).real)
    return np.stack(y, 1)


def test_the_eigenbasis_is_that_of_hippo() -> None:
    Lambda, b, P = (x.numpy() for x in diagonalised_legs(12))
    ours = np.sort_complex(np.linalg.eigvals(np.diag(Lambda) - P[:, None] * P.conj()[None]))
    # The spectrum of the non-normal LegS itself is badly conditioned; its characteristic polynomial is prod (s + i).
    for s in (0.5, 2.0 + 1j, -0.3 + 4j):
        want = np.prod([s + i for i in range(1, 13)])
        assert abs(np.prod(s - ours) / want - 1) < 1e-8
    response = (b.conj() * np.linalg.solve(2.0 * np.eye(12) - np.diag(Lambda) + P[:, None] * P.conj()[None], b)).sum()
    column = np.sqrt(2 * np.arange(12) + 1)
    assert abs(response - column @ np.linalg.solve(2.0 * np.eye(12) - legs(12), column)) < 1e-8 * abs(response)


def test_s4_is_the_bilinear_discretisation_of_its_dense_matrix() -> None:
    layer = drawn("s4", d_model=D, d_state=8, spread=0.1)
    x, w = inputs(B, T, D), numbers(layer)
    A = np.diag(-np.exp(w["log_decay_rate"]) + 1j * w["frequency"])
    P, b, C = complex_of(w["P"]), complex_of(w["B"]), complex_of(w["C"])
    A = A - P[:, None] * P.conj()[None]
    y = np.stack([scan(*bilinear(A, b, np.exp(w["log_dt"][c])), C[c], x.numpy()[..., c]) for c in range(D)], -1)
    assert_same_function(layer, x, mixed(y + w["D"] * x.numpy(), w))


def test_lssl_is_the_bilinear_discretisation_of_hippo() -> None:
    layer = drawn("lssl", d_model=D, d_state=5, spread=0.1)
    assert_close(layer.A, legs(5), "A", 1e-6)
    x, w = inputs(B, T, D), numbers(layer)
    y = np.stack(
        [
            scan(*bilinear(layer.A.numpy(), layer.B.numpy(), np.exp(w["log_dt"][c])), w["C"][c], x.numpy()[..., c])
            for c in range(D)
        ],
        -1,
    )
    assert_same_function(layer, x, mixed(y + w["D"] * x.numpy(), w))


def test_dss_weighs_its_modes() -> None:
    layer = drawn("dss", d_model=D, d_state=8, spread=0.1)
    x, w = inputs(B, T, D), numbers(layer)
    Lambda = -np.exp(w["A_log"]) + 1j * w["A_imag"]
    step = np.exp(w["log_dt"])[:, None] * Lambda
    weights = 2 * complex_of(w["C"]) * (np.exp(step) - 1) / Lambda
    kernel = (weights[None] * np.exp(step[None] * np.arange(T)[:, None, None])).sum(-1).real
    y = np.stack([sum(kernel[j] * x.numpy()[:, t - j] for j in range(t + 1)) for t in range(T)], 1)
    assert_same_function(layer, x, mixed(y + w["D"] * x.numpy(), w))


def test_s5_is_a_dense_complex_system() -> None:
    layer = drawn("s5", d_model=D, d_state=8, spread=0.1)
    x, w = inputs(B, T, D), numbers(layer)
    Lambda = -np.exp(w["log_decay_rate"]) + 1j * w["frequency"]
    A = np.exp(np.exp(w["log_dt"]) * Lambda)
    b, C = ((A - 1) / Lambda)[:, None] * complex_of(w["B"]), complex_of(w["C"])
    h, y = np.zeros((B, 4), complex), []
    for t in range(T):
        h = A * h + x.numpy()[:, t] @ b.T
        y.append(2 * (h @ C.T).real)
    z = gelu(np.stack(y, 1) + w["D"] * x.numpy())
    out = z * sigmoid(z @ w["gate_proj.weight"].T + w["gate_proj.bias"])
    assert_same_function(layer, x, out, lambda state: state["S"].flatten(1), h)


@pytest.mark.parametrize("d_conv", [2, 3])
def test_a_shift_register_is_a_convolution(d_conv: int) -> None:
    layer = drawn("short_conv", d_model=D, d_conv=d_conv)
    x, w = inputs(B, T, D), numbers(layer)
    b, c, v = (x.numpy() @ w[f"{s}_proj.weight"].T for s in "bcx")
    y = c * short_convolution(b * v, w["taps"][:, None, ::-1])
    assert_same_function(layer, x, y @ w["out_proj.weight"].T)


def test_lfm2_has_the_same_mixer() -> None:
    from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    config = Lfm2Config(hidden_size=D, conv_L_cache=3, conv_bias=False, num_hidden_layers=1, layer_types=["conv"])
    theirs = Lfm2ShortConv(config, layer_idx=0).double()
    layer = drawn("short_conv", d_model=D)
    with torch.no_grad():
        theirs.in_proj.weight.copy_(torch.cat([layer.b_proj.weight, layer.c_proj.weight, layer.x_proj.weight]))
        theirs.conv.weight.copy_(layer.taps.flip(1).unsqueeze(1))
        theirs.out_proj.weight.copy_(layer.out_proj.weight)
        x = inputs(B, T, D)
        y = theirs(x)
    assert_same_function(layer, x, y)


def normalised(A: np.ndarray, p: float) -> np.ndarray:
    """Every column of every matrix over its L_p norm, in loops."""
    out = A.copy()
    for place in np.ndindex(*A.shape[:-2]):
        for column in range(A.shape[-1]):
            out[place][:, column] /= np.linalg.norm(A[place][:, column], p)
    return out


def run_dense(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """h_t = A_t h_{t-1} + b_t for A [B,T,H,n,n] and b [B,T,H,n]."""
    h, out = np.zeros(b[:, 0].shape), []
    for t in range(b.shape[1]):
        h = np.einsum("bhij,bhj->bhi", A[:, t], h) + b[:, t]
        out.append(h)
    return np.stack(out, 1)


def affine(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> Any:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def test_sd_ssm_mixes_its_dictionary() -> None:
    layer = drawn("sd_ssm", d_model=D, d_state=4, dictionary=3, p=1.3)
    x, w = inputs(B, T, D), numbers(layer)
    scores = np.exp(affine(x.numpy(), w, "select_proj"))
    scores /= scores.sum(-1, keepdims=True)
    A = normalised(np.einsum("btk,kij->btij", scores, w["A"]), 1.3)[:, :, None]
    h = run_dense(A, affine(x.numpy(), w, "b_proj")[:, :, None])[:, :, 0]
    centred = h - h.mean(-1, keepdims=True)
    z = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    assert_same_function(layer, x, affine(z, w, "out_proj"))


def test_block_diagonal_transitions() -> None:
    layer = drawn("block_diagonal", d_model=D, n_heads=2, d_state=3, p=1.2)
    x, w = inputs(B, T, D), numbers(layer)
    A = normalised(affine(x.numpy(), w, "a_proj").reshape(B, T, 2, 3, 3), 1.2)
    h = run_dense(A, affine(x.numpy(), w, "b_proj").reshape(B, T, 2, 3))
    assert_same_function(layer, x, affine(gelu(h.reshape(B, T, 6)), w, "out_proj"))
    assert isinstance(layer.system(x), sf.System)
