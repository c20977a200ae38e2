"""State-space models: Mamba and Mamba-2 against transformers, S4D and LRU against their papers' equations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import (
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    inputs,
    numbers,
)


def with_cache(theirs: Any, config: Any, x: Tensor, prompt: int) -> tuple[Tensor, Any]:
    """Their outputs for a prompt and then single steps, and their cache after the last."""
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    with Double(), torch.no_grad():
        pieces = [theirs(x[:, :prompt], cache_params=cache)]
        pieces += [theirs(x[:, t : t + 1], cache_params=cache) for t in range(prompt, x.shape[1])]
    return torch.cat(pieces, 1), cache.layers[0]


def test_mamba_is_that_of_transformers() -> None:
    module = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    from transformers import MambaConfig

    ours = drawn("mamba", d_model=16, d_state=6)
    config = MambaConfig(hidden_size=16, state_size=6, num_hidden_layers=1, expand=2, conv_kernel=4, time_step_rank=1)
    theirs = module.MambaMixer(config, layer_idx=0).double().eval()
    weights = {k.replace("conv.", "conv1d."): p for k, p in ours.state_dict().items() if k != "gate_proj.weight"}
    weights["in_proj.weight"] = torch.cat([ours.in_proj.weight, ours.gate_proj.weight]).detach()
    theirs.load_state_dict(weights)

    def mix(u: Tensor) -> Tensor:
        with Double():
            return theirs(u)

    x = inputs(2, 31, 16)
    y, cache = with_cache(theirs, config, x, 20)
    assert_close(y, mix(x), "their own continuation")
    assert_same_function(ours, x, y, lambda state: state["S"].squeeze(-1), cache.recurrent_states[0])
    _, state = ours(x, return_state=True)
    assert_close(state["conv"].mT, cache.conv_states[0][..., 1:], "window of the convolution")
    assert_same_gradient(ours, mix, x)


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_mamba2_is_that_of_transformers(n_groups: int) -> None:
    module = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    ours = drawn("mamba2", d_model=16, d_state=6, d_head=8, n_groups=n_groups)
    config = Mamba2Config(
        hidden_size=16, state_size=6, num_hidden_layers=1, expand=2, conv_kernel=4, num_heads=4, head_dim=8,
        n_groups=n_groups, chunk_size=8, layer_norm_epsilon=1e-5, time_step_limit=(0.0, float("inf")),
    )  # fmt: skip
    theirs = module.Mamba2Mixer(config, layer_idx=0).double().eval()
    joined = ("in_proj.weight", "dt_proj.weight", "gate_proj.weight")
    weights = {k.replace("conv.", "conv1d."): p for k, p in ours.state_dict().items() if k not in joined}
    rows = (ours.gate_proj.weight, ours.in_proj.weight, ours.dt_proj.weight)
    theirs.load_state_dict({**weights, "in_proj.weight": torch.cat(rows).detach()})

    def mix(u: Tensor) -> Tensor:
        with Double():
            return theirs(u)

    x = inputs(2, 31, 16)
    y, cache = with_cache(theirs, config, x, 20)
    assert_close(y, mix(x), "their own continuation")
    assert_same_function(ours, x, y, lambda state: state["S"].mT, cache.recurrent_states[0])
    _, state = ours(x, return_state=True)
    assert_close(state["conv"].mT, cache.conv_states[0][..., 1:], "window of the convolution")
    assert_same_gradient(ours, mix, x)


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_s4d_is_the_papers_convolution(init: str) -> None:
    """y = K * u + D u, K_l = 2 Re sum_n C_n (e^{dt A_n} - 1)/A_n e^{dt A_n l}: the Vandermonde product of the paper
    (arXiv 2206.11893, eq. 6 with its zero-order hold), and torch's convolution. The state by plain steps.
    """
    layer, T = drawn("s4d", d_model=6, d_state=8, init=init), 37
    x, w = inputs(2, T, 6), numbers(layer)
    dt, A = np.exp(w["log_dt"])[:, None], -np.exp(w["A_log"]) + 1j * w["A_imag"]
    C = w["C"][..., 0] + 1j * w["C"][..., 1]
    vandermonde = np.exp(dt * A)[..., None] ** np.arange(T)
    kernel = 2 * ((C * (np.exp(dt * A) - 1) / A)[..., None] * vandermonde).sum(1).real
    u = x.mT
    y = F.conv1d(F.pad(u, (T - 1, 0)), torch.from_numpy(kernel).flip(-1)[:, None], groups=6) + layer.D[:, None] * u
    mixed = F.gelu(y.mT) @ layer.out_proj.weight.mT + layer.out_proj.bias
    h = np.zeros((2, 6, 4), complex)
    for t in range(T):
        h = np.exp(dt * A) * h + x[:, t, :, None].numpy()
    assert_same_function(
        layer, x, mixed[..., :6] * torch.sigmoid(mixed[..., 6:]), lambda state: state["S"].squeeze(-1), h
    )


def hippo_legs(size: int) -> np.ndarray:
    """The matrix of HiPPO-LegS from its definition: c_n(t) = (1/t) int_0^t f(s) g_n(s,t) ds with the scaled Legendre
    polynomials g_n = sqrt(2n+1) P_n(2s/t - 1). Differentiating, dc/dt = (A c + B f)/t, where the change of g_n with t
    is -(1/t) (x + 1) P_n'(x), written again in Legendre polynomials (arXiv 2008.07669, appendix D).
    """
    A = -np.eye(size)
    for n in range(1, size):
        slope = legendre.legder(np.eye(size)[n])
        moved = legendre.legadd(legendre.legmulx(slope), slope)
        for k, weight in enumerate(moved[:size]):
            A[n, k] -= math.sqrt(2 * n + 1) * weight / math.sqrt(2 * k + 1)
    return A


@pytest.mark.parametrize("d_state", [2, 8, 32])
def test_s4d_inits_are_the_papers(d_state: int) -> None:
    """The eigenvalues that the three initialisations start from (arXiv 2206.11893, section 4)."""
    n = np.arange(d_state // 2)
    A = hippo_legs(d_state)
    P = np.sqrt(np.arange(d_state) + 0.5)
    normal = A + np.outer(P, P)
    assert_close(normal + normal.T, -np.eye(d_state), "LegS plus its rank-1 part is -1/2 plus a skew matrix")
    frequencies = np.linalg.eigvalsh(-0.5j * (normal - normal.T))
    expected = {
        "lin": np.pi * n,
        "inv": d_state / np.pi * (d_state / (2 * n + 1) - 1),
        "legs": np.sort(frequencies)[d_state // 2 :],
    }
    for init, imaginary in expected.items():
        layer = sf.build("s4d", d_model=3, d_state=d_state, init=init)
        # The parameters are kept in float32.
        assert_close(layer.A_imag, np.tile(imaginary, (3, 1)), f"imaginary parts of {init}", 1e-6)
        assert_close(layer.A_log.exp(), np.full((3, d_state // 2), 0.5), f"real parts of {init}", 1e-6)


def test_lru_is_a_dense_linear_system() -> None:
    """x_k = A x_{k-1} + B u_k, y_k = Re(C x_k) + D u_k with a dense complex A (arXiv 2303.06349, eq. 3 to 7).

    The modes are hidden by a random change of coordinates, and the powers of A taken by torch.linalg.
    """
    layer, T, n = drawn("lru", d_model=5, d_state=7, r_min=0.4, r_max=0.95), 25, 7
    x, w = inputs(2, T, 5), {name: p.detach() for name, p in layer.named_parameters()}
    modes = torch.exp(torch.complex(-torch.exp(w["nu_log"]), torch.exp(w["theta_log"])))
    P = torch.randn(n, n, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    A = P @ torch.diag(modes) @ torch.linalg.inv(P)
    B = P @ torch.diag(torch.exp(w["gamma_log"])).to(P.dtype) @ torch.view_as_complex(w["B"])
    C = torch.view_as_complex(w["C"]) @ torch.linalg.inv(P)
    states = torch.zeros(2, T, n, dtype=P.dtype)
    for t in range(T):
        for j in range(t + 1):
            states[:, t] += x[:, j].to(P.dtype) @ (torch.linalg.matrix_power(A, t - j) @ B).T
    y = (states @ C.T).real + x * w["D"]
    final = states[:, -1] @ torch.linalg.inv(P).T
    assert_same_function(layer, x, y, lambda state: state["S"].flatten(1), final)


def test_lru_starts_on_its_ring_with_unit_gain() -> None:
    torch.manual_seed(0)
    layer = sf.build("lru", d_model=4, d_state=5000, r_min=0.5, r_max=0.9, max_phase=1.0)
    modulus, angle = torch.exp(-torch.exp(layer.nu_log)), torch.exp(layer.theta_log)
    assert 0.5 - 1e-4 <= modulus.min() < 0.51
    assert 0.89 < modulus.max() <= 0.9 + 1e-4
    assert 0.99 < angle.max() <= 1 + 1e-6
    # Uniform on the ring's area: half of the modes lie beyond the radius that halves it (lemma 3.2).
    assert abs((modulus > math.sqrt((0.5**2 + 0.9**2) / 2)).float().mean() - 0.5) < 0.03
    assert_close(torch.exp(layer.gamma_log), torch.sqrt(1 - modulus**2), "gamma (eq. 7), in float32", 1e-4)
