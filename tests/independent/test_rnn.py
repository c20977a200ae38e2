"""Recurrent networks: the RG-LRU against transformers' RecurrentGemma, the quasi-LSTM against its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from .helpers import (
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    inputs,
    numbers,
    short_convolution,
    sigmoid,
    softplus,
)


@pytest.mark.parametrize("n_heads", [1, 4])
def test_rg_lru_is_recurrent_gemma(n_heads: int) -> None:
    module = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    from transformers import RecurrentGemmaConfig

    ours, T = drawn("rg_lru", d_model=16, n_heads=n_heads, reset_first=True), 27
    config = RecurrentGemmaConfig(
        hidden_size=16, lru_width=16, num_attention_heads=n_heads, num_key_value_heads=1, conv1d_width=4,
        num_hidden_layers=1, hidden_activation="gelu_pytorch_tanh",
    )  # fmt: skip
    with Double():
        theirs = module.RecurrentGemmaRecurrentBlock(config, layer_idx=0).double().eval()
    names = {
        "x_proj": "linear_x", "y_proj": "linear_y", "out_proj": "linear_out", "conv": "conv_1d",
        "Lambda": "rg_lru.recurrent_param", "r_gate.weight": "rg_lru.recurrent_gate_weight",
        "r_gate.bias": "rg_lru.recurrent_gate_bias", "i_gate.weight": "rg_lru.input_gate_weight",
        "i_gate.bias": "rg_lru.input_gate_bias",
    }  # fmt: skip
    weights = {}
    for name, p in ours.state_dict().items():
        stem, _, kind = name.partition(".")
        weights[names[name] if name in names else f"{names[stem]}.{kind}"] = p
    theirs.load_state_dict(weights)
    positions = torch.arange(T)[None].expand(2, T)

    def mix(u: Tensor) -> Tensor:
        with Double():
            return theirs(u, positions, None, use_cache=False)[0]

    x = inputs(2, T, 16)
    y = mix(x).detach()
    with Double(), torch.no_grad():  # a prompt, then token by token
        pieces = [theirs(x[:, :15], positions[:, :15], None)[0]]
        pieces += [theirs(x[:, t : t + 1], positions[:, t : t + 1], None)[0] for t in range(15, T)]
    assert_close(torch.cat(pieces, 1), y, "their own continuation")
    assert_same_function(ours, x, y, lambda state: state["S"].flatten(1), theirs.rg_lru.recurrent_states)
    _, state = ours(x, return_state=True)
    assert_close(state["conv"].mT, theirs.conv1d_state, "window of the convolution")
    assert_same_gradient(ours, mix, x)


def test_rg_lru_is_the_papers_recurrence() -> None:
    """Step by step with the factor sqrt(1 - a^2) at the first token too (arXiv 2402.19427, eq. 1 to 4, figure 2)."""
    layer, T = drawn("rg_lru", d_model=12, n_heads=3, expand=2), 19
    x, w = inputs(2, T, 12), numbers(layer)
    u = short_convolution(x.numpy() @ w["x_proj.weight"].T + w["x_proj.bias"], w["conv.weight"]) + w["conv.bias"]
    dense = {}
    for gate in ("r_gate", "i_gate"):  # the block-diagonal map as one matrix
        blocks, size = w[f"{gate}.weight"], 8
        matrix = np.zeros((24, 24))
        for i in range(3):
            matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] = blocks[i]
        dense[gate] = sigmoid(u @ matrix + w[f"{gate}.bias"].reshape(-1))
    a = np.exp(-softplus(w["Lambda"])) ** (8 * dense["r_gate"])
    h, y = np.zeros((2, 24)), np.zeros((2, T, 24))
    for t in range(T):
        h = a[:, t] * h + np.sqrt(1 - a[:, t] ** 2) * dense["i_gate"][:, t] * u[:, t]
        y[:, t] = h
    z = x.numpy() @ w["y_proj.weight"].T + w["y_proj.bias"]
    gelu = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    y = (y * gelu) @ w["out_proj.weight"].T + w["out_proj.bias"]
    assert_same_function(layer, x, y, lambda state: state["S"].flatten(1), h)


@pytest.mark.parametrize("reversed_gate", [False, True])
def test_qlstm_is_the_papers_recurrence(reversed_gate: bool) -> None:
    """x_t = f x_{t-1} + i * W_u u, y = o * x, gates without state; reversed: f = (1 / (1 + e^(W_f u)))^a
    (arXiv 2405.15731, eq. 20 and 23).
    """
    layer, T = drawn("qlstm", d_model=10, expand=2, reversed=reversed_gate), 23
    x, w = inputs(2, T, 10), numbers(layer)
    u, f, i, o = (x.numpy() @ w[f"{s}_proj.weight"].T + w[f"{s}_proj.bias"] for s in "ufio")
    h, y = np.zeros((2, 20)), np.zeros((2, T, 20))
    for t in range(T):
        keep = (1 / (1 + np.exp(f[:, t]))) ** np.exp(w["log_a"]) if reversed_gate else sigmoid(f[:, t])
        h = keep * h + sigmoid(i[:, t]) * u[:, t]
        y[:, t] = sigmoid(o[:, t]) * h
    assert_same_function(layer, x, y @ w["out_proj.weight"].T, lambda state: state["S"].flatten(1), h)
