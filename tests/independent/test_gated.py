"""Linear attention that forgets: the mLSTM against transformers' xLSTM, retention and GLA against their papers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stateform as sf

from .helpers import (
    RECORDED,
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    existing_forms,
    inputs,
    join_heads,
    numbers,
    recorded,
    rms_normalised,
    sigmoid,
    silu,
    split_heads,
)


@pytest.mark.parametrize("d_state", [None, 8])
def test_retention_is_the_papers_decayed_and_rotated_sum(d_state: int | None) -> None:
    """(Q K^T * D) V with Q, K turned by real rotation matrices and D_nm = gamma^(n-m), in two heads' worth of loops
    (arXiv 2307.08621, eq. 5 and 8); the state by eq. 3: s_n = A s_{n-1} + k_n^T v_n, A = gamma R.
    """
    (B, T, H), layer = (2, 17, 2), drawn("retention", d_model=12, n_heads=2, d_state=d_state)
    x, w = inputs(B, T, 12), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{s}_proj.weight"].T, H) for s in "qkv")
    n = q.shape[-1]
    k = k / np.sqrt(n)

    def rotation(t: int) -> np.ndarray:
        R = np.zeros((n, n))
        for i in range(n // 2):
            angle = t * 10_000.0 ** (-2 * i / n)
            R[i, i] = R[i + n // 2, i + n // 2] = np.cos(angle)
            R[i + n // 2, i], R[i, i + n // 2] = np.sin(angle), -np.sin(angle)
        return R

    y, S = np.zeros(v.shape), np.zeros((B, H, n, v.shape[-1]))
    for h in range(H):
        gamma = 1 - 2.0 ** (-5 - h)
        for t in range(T):
            for j in range(t + 1):
                turned = q[:, h, t] @ rotation(t).T, k[:, h, j] @ rotation(j).T
                y[:, h, t] += gamma ** (t - j) * (turned[0] * turned[1]).sum(-1)[:, None] * v[:, h, j]
            S[:, h] = gamma * rotation(-1) @ S[:, h] + k[:, h, t, :, None] * v[:, h, t, None, :]
    y = join_heads(rms_normalised(y, 1e-6)) * silu(x.numpy() @ w["gate_proj.weight"].T) @ w["out_proj.weight"].T

    def real_state(state: sf.State) -> Tensor:
        return torch.cat([state["S"].real, -state["S"].imag], -2)

    assert_same_function(layer, x, y, real_state, S)


def test_gla_is_the_papers_parallel_sum() -> None:
    """y_t = sum_j (q_t * prod_{i=j+1..t} a_i)^T k_j v_j / sqrt(n), a = sigmoid(.)^(1/16) (arXiv 2312.06635, eq. 3)."""
    B, T, H, layer = 2, 17, 2, drawn("gla", d_model=16, n_heads=2, gate_rank=3, gate_temperature=4.0)
    assert sf.build("gla", d_model=16).gate_temperature == 16
    x, w = inputs(B, T, 16), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{s}_proj.weight"].T, H) for s in "qkv")
    logits = x.numpy() @ w["decay_proj.0.weight"].T @ w["decay_proj.1.weight"].T + w["decay_proj.1.bias"]
    a = split_heads(sigmoid(logits) ** (1 / 4), H)
    y, S = np.zeros(v.shape), 0
    for t in range(T):
        S = 0
        for j in range(t + 1):
            remembered = k[:, :, j] * np.prod(a[:, :, j + 1 : t + 1], axis=2)
            S = S + remembered[..., None] * v[:, :, j, None, :]
        y[:, :, t] = np.einsum("bhn,bhnp->bhp", q[:, :, t], S) / np.sqrt(q.shape[-1])
    y = join_heads(rms_normalised(y, 1e-6) * w["norm.weight"]) * silu(x.numpy() @ w["gate_proj.weight"].T)
    assert_same_function(layer, x, y @ w["out_proj.weight"].T, lambda state: state["S"], S)


def drawn_mlstm(**options: Any) -> Any:
    """An mLSTM whose input gates are large and small, so that both sides of the floor under its normaliser occur."""
    layer = drawn("mlstm", d_model=16, n_heads=2, **options)
    with torch.no_grad():
        layer.i_proj.bias.copy_(torch.tensor([-1.0, -3.0]))
        layer.i_proj.weight.mul_(2)
        layer.f_proj.bias.copy_(torch.tensor([0.0, 2.0]))
    return layer


@pytest.mark.parametrize(("d_state", "gate_cap"), [(None, 15.0), (8, 2.0)])
def test_mlstm_is_that_of_transformers(d_state: int | None, gate_cap: float) -> None:
    module = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    if module.external_xlstm:
        pytest.skip("the package xlstm is installed: transformers hands over to it instead of its own mLSTM")
    from transformers import xLSTMConfig

    ours = drawn_mlstm(d_state=d_state, gate_cap=gate_cap)
    config = xLSTMConfig(
        hidden_size=16, num_heads=2, qk_dim_factor=ours.d_state / 8, v_dim_factor=1.0, gate_soft_cap=gate_cap,
        norm_eps=1e-6, chunk_size=16, mode="inference",
        eps=0.0,  # theirs adds it to the normaliser, beyond the paper's floor
    )  # fmt: skip
    theirs = module.xLSTMLayer(config).double().eval()
    names = {
        "q_proj": "q", "k_proj": "k", "v_proj": "v", "i_proj": "igate_preact", "f_proj": "fgate_preact",
        "gate_proj": "ogate_preact", "norm_weight": "multihead_norm.weight", "out_proj": "out_proj",
    }  # fmt: skip
    weights = {}
    for name, p in ours.state_dict().items():
        stem, _, kind = name.partition(".")
        weights[f"{names[stem]}.{kind}" if kind else names[stem]] = p
    theirs.load_state_dict(weights)

    def mix(u: Tensor) -> Tensor:
        with Double():
            return theirs(u)[0]

    x = inputs(2, 39, 16)
    with Double(), torch.no_grad():
        first, state = theirs(x[:, :20])
        second, (C, n, m) = theirs(x[:, 20:], state)
    y = torch.cat([first, second], 1)
    assert_close(y, mix(x), "their own continuation")
    final = torch.exp(m)[..., None] * torch.cat([C, n[..., None]], -1)
    assert_same_function(ours, x, y, true_memory, final)
    assert_same_gradient(ours, mix, x)


def true_memory(state: sf.State) -> Tensor:
    """S and its normaliser as the last column, without the stabilising scale."""
    return torch.exp(state["log_scale"])[..., None, None] * state["S"]


def test_mlstm_is_the_papers_parallel_form() -> None:
    """y_t = sum_j D_tj (q_t^T k_j / sqrt(n)) v_j / max(|sum_j D_tj q_t^T k_j / sqrt(n)|, 1) with
    D_tj = prod_{i=j+1..t} sigmoid(f_i) exp(i_j), not stabilised (arXiv 2405.04517, eq. 19 to 27).
    """
    B, T, H, layer = 2, 17, 2, drawn_mlstm(gate_cap=None)
    x, w = inputs(B, T, 16), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{s}_proj.weight"].T, H) for s in "qkv")
    f, i = (split_heads(x.numpy() @ w[f"{s}_proj.weight"].T + w[f"{s}_proj.bias"], H)[..., 0] for s in "fi")
    f, i, n = sigmoid(f), np.exp(i), q.shape[-1]
    y, floored = np.zeros(v.shape), []
    for t in range(T):
        S = np.zeros((B, H, n, v.shape[-1] + 1))
        for j in range(t + 1):
            D = np.prod(f[:, :, j + 1 : t + 1], axis=2) * i[:, :, j]
            value = np.concatenate([v[:, :, j], np.ones((B, H, 1))], -1)
            S += D[..., None, None] * k[:, :, j, :, None] * value[:, :, None]
        read = np.einsum("bhn,bhnp->bhp", q[:, :, t], S) / np.sqrt(n)
        floored.append(abs(read[..., -1]) < 1)
        y[:, :, t] = read[..., :-1] / np.maximum(abs(read[..., -1:]), 1)
    assert 0.1 < np.mean(floored) < 0.9, "both sides of the floor occur"
    centred = y - y.mean(-1, keepdims=True)
    y = join_heads(centred / np.sqrt(y.var(-1, keepdims=True) + 1e-6)) * w["norm_weight"]
    y = (y * sigmoid(x.numpy() @ w["gate_proj.weight"].T)) @ w["out_proj.weight"].T
    assert_same_function(layer, x, y, true_memory, S)


@pytest.mark.parametrize("case", ["test1", "test2", "test3"])
def test_mlstm_gives_the_answers_of_the_xlstm_package(case: str) -> None:
    """Recorded cells of one head and two values; the rows of W are q, k, v, the gates i and f, and the output gate."""
    cases = json.loads((recorded("oracle-xlstm-rtneural") / "xlstm_reference_data.json").read_text())
    given = cases["mlstm"][case]
    T, size = given["T"], given["H"]
    W = torch.tensor(given["W"], dtype=torch.float64).reshape(-1, given["I"])
    u = torch.tensor(given["input"], dtype=torch.float64).reshape(1, T, given["I"])
    q, k, v, i, f, o = (u @ W.T + torch.tensor(given["b"])).split([size, size, size, 1, 1, size], -1)
    q, k, v = (z.unsqueeze(2) for z in (q, k * size**-0.5, v))
    system = sf.System(q, k, v, log_decay=torch.nn.functional.logsigmoid(f), log_b=i, eta="sum", eta_floor=1.0)
    m = given["expected_m"][0]
    memory = np.concatenate(
        [np.reshape(given["expected_C"], (size, size)), np.reshape(given["expected_n"], (size, 1))], 1
    )
    for form in existing_forms(system):
        y, state = sf.run(system, form, return_state=True)
        y = torch.sigmoid(o) * y.squeeze(2)
        assert_close(y[0, -1], given["expected_y"], f"last output, {form}", RECORDED)
        if "expected_output" in given:
            assert_close(y[0].flatten(), given["expected_output"], f"output, {form}", RECORDED)
        # Their scale starts at 0, ours at the first input gate: the memory itself is what must agree.
        ours = torch.exp(state["log_scale"] - m)[..., None, None] * state["S"]
        assert_close(ours[0, 0], memory, f"final state, {form}", RECORDED)
