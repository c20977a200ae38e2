"""The delta rule: against transformers' Qwen3-Next and Kimi Linear, and against the papers' products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import (
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    existing_forms,
    inputs,
    join_heads,
    numbers,
    rms_normalised,
    short_convolution,
    sigmoid,
    silu,
    split_heads,
)


@pytest.mark.parametrize("options", [{}, {"d_state": 6, "allow_negative_eigenvalues": True}])
def test_deltanet_is_the_papers_product_of_householder_matrices(options: dict[str, Any]) -> None:
    """S_t = sum_j prod_{i=t..j+1} (I - beta_i k_i k_i^T) beta_j k_j v_j^T (arXiv 2406.06484, section 3)."""
    layer = drawn("deltanet", d_model=16, n_heads=2, **options)
    (B, T), x, w = (2, 13), inputs(2, 13, 16), numbers(layer)
    q, k, v = (
        split_heads(silu(short_convolution(x.numpy() @ w[f"{s}_proj.weight"].T, w[f"{s}_conv.weight"])), 2)
        for s in "qkv"
    )
    # Vectors of length 1, but for the 1e-6 that the published implementations add under the root.
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    beta = sigmoid(split_heads(x.numpy() @ w["beta_proj.weight"].T, 2)[..., 0])
    beta = beta * (2 if options else 1)
    n, p = k.shape[-1], v.shape[-1]
    y, S = np.zeros((B, 2, T, p)), np.zeros((B, 2, n, p))
    for b in range(B):
        for h in range(2):
            erase = [np.eye(n) - beta[b, h, t] * np.outer(k[b, h, t], k[b, h, t]) for t in range(T)]
            for t in range(T):
                S[b, h] = 0
                for j in range(t + 1):
                    written = beta[b, h, j] * np.outer(k[b, h, j], v[b, h, j])
                    for i in range(j + 1, t + 1):
                        written = erase[i] @ written
                    S[b, h] += written
                y[b, h, t] = q[b, h, t] @ S[b, h] / np.sqrt(n)
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) @ w["out_proj.weight"].T
    assert_same_function(layer, x, y, lambda state: state["S"], S)


def qwen_weights(layer: Any) -> dict[str, Tensor]:
    """The weights of a gated_deltanet in Qwen3-Next's order: per head the rows of q, k, v, z, and those of b, a."""
    per_head = [f.weight.unflatten(0, (layer.n_heads, -1)) for f in (
        layer.q_proj, layer.k_proj, layer.v_proj, layer.gate_proj)]  # fmt: skip
    gates = torch.stack([layer.beta_proj.weight, layer.a_proj.weight], 1)
    return {
        "in_proj_qkvz.weight": torch.cat(per_head, 1).flatten(0, 1),
        "in_proj_ba.weight": gates.flatten(0, 1),
        "conv1d.weight": torch.cat([layer.q_conv.weight, layer.k_conv.weight, layer.v_conv.weight]),
        "A_log": layer.A_log,
        "dt_bias": layer.dt_bias,
        "norm.weight": layer.norm.weight,
        "out_proj.weight": layer.out_proj.weight,
    }


@pytest.mark.parametrize("d_state", [8, 5])
def test_gated_deltanet_is_qwen3_next(d_state: int) -> None:
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from transformers import DynamicCache, Qwen3NextConfig

    ours, T = drawn("gated_deltanet", d_model=32, n_heads=4, d_state=d_state), 70
    config = Qwen3NextConfig(
        hidden_size=32, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=4,
        linear_num_value_heads=4, linear_key_head_dim=d_state, linear_value_head_dim=8, linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    theirs = qwen.Qwen3NextGatedDeltaNet(config, layer_idx=0).double().eval()
    theirs.load_state_dict({name: p.detach() for name, p in qwen_weights(ours).items()})

    def mix(u: Tensor) -> Tensor:
        with Double():
            return theirs(u)

    x = inputs(2, T, 32)
    cache = DynamicCache(config=config)
    with Double(), torch.no_grad():  # a prompt in their chunks, then their single steps
        pieces = [theirs(x[:, :-4], cache_params=cache)]
        pieces += [theirs(x[:, t : t + 1], cache_params=cache) for t in range(T - 4, T)]
    assert_close(torch.cat(pieces, 1), mix(x), "their own continuation")
    states = cache.layers[0].recurrent_states[0]
    assert_same_function(ours, x, mix(x), lambda state: state["S"], states)
    windows = cache.layers[0].conv_states[0][..., 1:]
    _, state = ours(x, return_state=True)
    assert_close(torch.cat([state[f"{s}_conv"] for s in "qkv"], -1).mT, windows, "windows of the convolutions")
    assert_same_gradient(ours, mix, x)


@pytest.mark.parametrize("decay", ["none", "scalar", "per key"])
@pytest.mark.parametrize("kernel", ["recurrent", "chunk"])
def test_the_delta_rule_is_that_of_transformers(decay: str, kernel: str) -> None:
    """The bare system in every form from a given state: Qwen3-Next's rule (g = 0: the plain one), Kimi's per key."""
    name = "kimi_linear" if decay == "per key" else "qwen3_next"
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    functions = {
        "qwen3_next": ("torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"),
        "kimi_linear": ("recurrent_kimi_delta_attention", "chunk_kimi_delta_attention"),
    }[name]
    rule = getattr(module, functions[kernel == "chunk"])
    B, T, H, n, p = 2, 90, 3, 6, 5
    q, k, v = (inputs(B, T, H * m, seed).unflatten(-1, (H, m)) for seed, m in ((1, n), (2, n), (3, p)))
    k, beta = F.normalize(k, dim=-1), torch.sigmoid(2 * inputs(B, T, H, seed=4))
    g = -F.softplus(3 * inputs(B, T, H * n, seed=5).unflatten(-1, (H, n)) - 3)
    g = {"none": 0 * g[..., 0], "scalar": g[..., 0], "per key": g}[decay]
    start = inputs(B, H * n, p, seed=6).unflatten(1, (H, n))
    with Double():
        y, final = rule(q, k, v, g=g, beta=beta, initial_state=start, output_final_state=True)
    a = torch.exp(g if decay == "per key" else g.unsqueeze(-1))
    f = -beta.unsqueeze(-1) * k
    # Erase after the decay: (I - beta k k^T) diag(a) = diag(a) - beta k (a k)^T.
    system = sf.System(q * n**-0.5, k, v, b=beta, f=f, w=a * k, log_decay=None if decay == "none" else g)
    assert existing_forms(system)[:3] == ["chunkwise", "matrix", "recurrent"]
    for form in existing_forms(system):
        ours, state = sf.run(system, form, initial_state=start, return_state=True)
        assert_close(ours, y, f"output, {form}")
        assert_close(state["S"], final, f"final state, {form}")
