"""The unitary recurrent network against products of rotations, built from eigenvectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf

from .helpers import assert_close, assert_same_function, assert_same_gradient, drawn, inputs, numbers

H = 2


def rotation(A: np.ndarray) -> np.ndarray:
    """exp(A) of a skew-symmetric A: i A is Hermitian, with real eigenvalues."""
    values, vectors = np.linalg.eigh(1j * A)
    return ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real


def rotations(x: np.ndarray, w: dict[str, np.ndarray], n: int, rows: int) -> np.ndarray:
    """Q [B,T,H,n,n], entry by entry: the first `rows` rows of the upper triangle from the input, the rest 0."""
    entries = (x @ w["x_proj.weight"].T + w["x_proj.bias"]).reshape(*x.shape[:2], H, -1)
    Q = np.zeros((*entries.shape[:3], n, n))
    for at in np.ndindex(*entries.shape[:3]):
        A, given = np.zeros((n, n)), iter(entries[at])
        for i in range(rows):
            for j in range(i + 1, n):
                A[i, j] = next(given)
                A[j, i] = -A[i, j]
        assert next(given, None) is None
        Q[at] = rotation(A)
    return Q


@pytest.mark.parametrize("options", [{}, {"d_state": 5, "rows": 2}, {"d_state": 2}])
def test_urn_is_a_product_of_rotations(options: dict[str, Any]) -> None:
    """h_t = Q_t ... Q_1 h_0 and y_t = W_o h_t (arXiv 2208.05719)."""
    layer = drawn("urn", d_model=6, n_heads=H, **options)
    n, x, w = options.get("d_state", 8), inputs(2, 17, 6), numbers(layer)
    Q = rotations(x.numpy(), w, n, options.get("rows", n - 1))
    h = np.broadcast_to(w["start"] / np.linalg.norm(w["start"], axis=-1, keepdims=True), (2, H, n))
    y = []
    for t in range(x.shape[1]):
        h = np.einsum("bhij,bhj->bhi", Q[:, t], h)
        y.append(h.reshape(2, -1) @ w["out_proj.weight"].T)
    assert_same_function(layer, x, np.stack(y, 1), lambda state: state["S"], h[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_the_norm_of_the_state_is_kept(dtype: torch.dtype) -> None:
    layer = drawn("urn", d_model=6, n_heads=H, d_state=6, spread=1.0).to(dtype)
    x = inputs(2, 1000, 6).to(dtype)
    system = layer.system(x)
    Q, eps = system.transition, torch.finfo(dtype).eps
    assert float((Q @ Q.mT - torch.eye(6, dtype=dtype)).abs().max()) < 8 * eps
    for form in ("recurrent", "scan"):
        h = sf.run(system, form)
        assert isinstance(h, torch.Tensor)
        assert float((h.norm(dim=-1) - 1).abs().max()) < 100 * eps, form  # a random walk of 1000 roundings


def test_a_stretch_of_tokens_is_one_matrix() -> None:
    """Whatever came before it: the state after it is its own product of matrices times the state before it."""
    layer, x = drawn("urn", d_model=6, n_heads=H), inputs(1, 9, 6)
    phrase = layer.system(x[:, 4:]).transition[0]
    whole = torch.linalg.multi_dot(list(phrase[:, 0].flip(0)))
    for before in (x[:, :4], inputs(1, 3, 6, seed=5)):
        _, start = layer(before, return_state=True)
        _, end = layer(x[:, 4:], initial_state=start, return_state=True)
        assert_close(end["S"][0, 0], whole @ start["S"][0, 0], "state after the phrase")


def test_the_gradient_is_that_of_the_product() -> None:
    layer, x = drawn("urn", d_model=6, n_heads=H, d_state=3), inputs(2, 7, 6)

    def other(x: torch.Tensor) -> torch.Tensor:
        """The same for n = 3, where exp is Rodrigues' formula for the axis (-a_23, a_13, -a_12)."""
        a, b, c = layer.x_proj(x).unflatten(-1, (H, 3)).unbind(-1)
        h = torch.nn.functional.normalize(layer.start, dim=-1).expand(len(x), H, 3)
        y = []
        for t in range(x.shape[1]):
            axis = torch.stack([-c[:, t], b[:, t], -a[:, t]], -1)
            angle = axis.norm(dim=-1, keepdim=True)
            e = axis / angle
            along = (e * h).sum(-1, keepdim=True) * e
            h = along + (h - along) * angle.cos() + torch.linalg.cross(e, h) * angle.sin()
            y.append(layer.out_proj(h.flatten(1)))
        return torch.stack(y, 1)

    assert_close(layer(x), other(x), "output")
    assert_same_gradient(layer, other, x)
