"""Nonlinear cells: against torch.nn, recorded answers of other software, a trained detector, and papers' equations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stateform as sf

from .helpers import (
    EXACT,
    RECORDED,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    inputs,
    numbers,
    recorded,
    short_convolution,
    sigmoid,
    silu,
)


def load_gates(ours: Any, weights: dict[str, Any], name: str = "") -> None:
    """Weights named as in torch.nn (weight_ih, weight_hh, bias_ih, bias_hh), and an output map that changes nothing."""
    pairs = {
        "x_proj.weight": "weight_ih",
        "h_proj.weight": "weight_hh",
        "x_proj.bias": "bias_ih",
        "h_proj.bias": "bias_hh",
    }
    with torch.no_grad():
        for our, their in pairs.items():
            ours.get_parameter(our).copy_(torch.as_tensor(weights[their + name]))
        ours.out_proj.weight.copy_(torch.eye(*ours.out_proj.weight.shape))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_against_torch(name: str) -> None:
    layer = drawn(name, d_model=12)
    other = (nn.LSTM if name == "lstm" else nn.GRU)(12, 12, batch_first=True).double()
    load_gates(layer, dict(other.named_parameters()), "_l0")
    x = inputs(2, 37, 12)
    y, last = other(x)
    h, c = last if name == "lstm" else (last, None)
    final = h[0] if c is None else torch.cat([h[0], c[0]], -1)
    assert_same_function(layer, x, y, lambda state: state["S"].flatten(1), final)
    for form in ("recurrent", "newton", "scan"):
        assert_same_gradient(lambda u, form=form: layer(u, form=form), lambda u: other(u)[0], x)
    for our, their in (
        ("x_proj.weight", "weight_ih_l0"),
        ("h_proj.weight", "weight_hh_l0"),
        ("h_proj.bias", "bias_hh_l0"),
    ):
        gradients = []
        for value, p in (
            (layer(x, form="newton"), layer.get_parameter(our)),
            (other(x)[0], other.get_parameter(their)),
        ):
            gradients.append(torch.autograd.grad((value * inputs(*x.shape, seed=3)).sum(), p)[0])
        assert_close(*gradients, f"gradient of {our} through Newton's method")


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_thousand_steps_of_four_recorded_layers(name: str) -> None:
    folder = recorded("oracle-xlstm-rtneural")
    weights = json.loads((folder / f"rtneural_{name}_torch.json").read_text())
    x, want = (np.loadtxt(folder / f"rtneural_{name}_torch_{z}_python.csv", delimiter=",").ravel() for z in "xy")
    h = torch.as_tensor(x)[None, :, None]
    for stack, level in ((name, 0), (f"{name}2", 0), (f"{name}2", 1), (f"{name}2", 2)):
        layer = sf.build(name, d_model=8).double()
        gates = {
            k.removeprefix(f"{stack}."): torch.tensor(v, dtype=torch.float64)
            for k, v in weights.items()
            if k.startswith(f"{stack}.")
        }
        if h.shape[2] == 1:  # a single input channel: the others have no weight
            gates["weight_ih_l0"] = nn.functional.pad(gates["weight_ih_l0"], (0, 7))
            h = nn.functional.pad(h, (0, 7))
        load_gates(layer, gates, f"_l{level}")
        with torch.no_grad():
            forms = [layer(h, form=form) for form in ("recurrent", "newton")]
        assert_close(*forms, "Newton against one by one")
        h = forms[0]
    y = h @ torch.tensor(weights["dense.weight"], dtype=torch.float64).T + torch.tensor(weights["dense.bias"])
    assert_close(y.flatten(), want, "output", RECORDED)


def slstm_by_hand(w: dict[str, np.ndarray], x: np.ndarray, H: int, forget: str) -> tuple[np.ndarray, np.ndarray]:
    """Equations 8 to 17 of arXiv 2405.04517 without its stabiliser: the plain exponentials."""
    B, T, D = x.shape
    d = D // H
    mixed = silu(short_convolution(x, w["conv.weight"]) + w["conv.bias"])
    i, f = np.split(mixed @ w["if_proj.weight"].T + w["if_proj.bias"], 2, -1)
    z, o = np.split(x @ w["zo_proj.weight"].T + w["zo_proj.bias"], 2, -1)
    h, c, n = (np.zeros((B, H, d)) for _ in range(3))
    y = np.zeros((B, T, H, d))
    for t in range(T):
        R = np.split(np.einsum("bhd,hde->bhe", h, w["R"]), 4, -1)
        i_t, f_t, z_t, o_t = (a[:, t].reshape(B, H, d) + r for a, r in zip((i, f, z, o), R, strict=True))
        keep, write = sigmoid(f_t) if forget == "sigmoid" else np.exp(f_t), np.exp(i_t)
        c, n = keep * c + write * np.tanh(z_t), keep * n + write
        h = sigmoid(o_t) * c / n
        y[:, t] = h
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * w["norm.weight"]
    return y.reshape(B, T, D) @ w["out_proj.weight"].T, c / n


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
def test_slstm_is_the_paper_without_its_stabiliser(forget: str) -> None:
    layer, x = drawn("slstm", d_model=12, n_heads=3, forget=forget), inputs(2, 23, 12)
    y, mean = slstm_by_hand(numbers(layer), x.numpy(), 3, forget)

    def memory(state: sf.State) -> Tensor:
        return state["S"].squeeze(-1).chunk(3, -1)[1]

    assert_same_function(layer, x, y, memory, mean)


@pytest.mark.parametrize("case", ["test1", "test2", "test3"])
def test_slstm_against_recorded_cases(case: str) -> None:
    data = json.loads((recorded("oracle-xlstm-rtneural") / "xlstm_reference_data.json").read_text())["slstm"][case]
    D, H = data["I"], data["H"]
    layer = sf.build("slstm", d_model=H, n_heads=1).double()
    W, R = (np.array(data[k]).reshape(4 * H, -1) for k in ("W", "R"))
    with torch.no_grad():
        layer.R.copy_(torch.as_tensor(R.T.copy())[None])
    x = np.array(data["input"]).reshape(1, data["T"], D) @ W.T + np.array(data["b"])
    s, hs = layer.init_state()["S"].squeeze(-1), []
    with torch.no_grad():
        for t in range(data["T"]):
            s = layer.cell(s, torch.as_tensor(x[:, t])[:, None])
            hs.append(s[..., :H])
    h, a, log_n = s.flatten().chunk(3)
    c, n, m = (torch.tensor(data[f"expected_{key}"], dtype=torch.float64) for key in "cnm")
    assert_close(h, data["expected_y"], "h", RECORDED)
    assert_close(a, c / n, "c / n", RECORDED)
    assert_close(log_n, n.log() + m, "log n", RECORDED)
    if "expected_output" in data:
        assert_close(torch.stack(hs, 1).flatten(), data["expected_output"], "outputs", RECORDED)


def test_lem_is_the_papers_two_states() -> None:
    layer, x = drawn("lem", d_model=6, d_state=5, dt=0.7), inputs(2, 19, 6)
    w = numbers(layer)
    V, W = np.split(w["x_proj.weight"], 4), np.split(w["y_proj.weight"], 3)
    b = np.split(w["x_proj.bias"], 4)
    y, z, out = np.zeros((2, 5)), np.zeros((2, 5)), []
    for u in np.moveaxis(x.numpy(), 1, 0):
        dt_1 = 0.7 * sigmoid(y @ W[0].T + u @ V[0].T + b[0])
        dt_2 = 0.7 * sigmoid(y @ W[1].T + u @ V[1].T + b[1])
        z = (1 - dt_1) * z + dt_1 * np.tanh(y @ W[2].T + u @ V[2].T + b[2])
        y = (1 - dt_2) * y + dt_2 * np.tanh(z @ w["z_proj.weight"].T + u @ V[3].T + b[3])
        out.append(y @ w["out_proj.weight"].T)
    final = np.concatenate([y, z], -1)
    assert_same_function(layer, x, np.stack(out, 1), lambda state: state["S"].flatten(1), final)


def test_ltc_is_the_fused_solver_and_approaches_the_equation() -> None:
    layer, x = drawn("ltc", d_model=4, unfolds=3), inputs(1, 9, 4)
    w = numbers(layer)

    def rate(h: np.ndarray, u: np.ndarray) -> np.ndarray:
        return sigmoid(h @ w["h_proj.weight"].T + u @ w["x_proj.weight"].T + w["x_proj.bias"])

    h, out = np.zeros((1, 4)), []
    for u in np.moveaxis(x.numpy(), 1, 0):
        for _ in range(3):
            f = rate(h, u)
            h = (h + f * w["A"] / 3) / (1 + (np.exp(-w["log_tau"]) + f) / 3)
        out.append(h @ w["out_proj.weight"].T)
    assert_same_function(layer, x, np.stack(out, 1), lambda state: state["S"].flatten(1), h)

    # dh/dt = -(1/tau + f) h + f A, by Runge's and Kutta's steps, to ten digits: with many unfolds the fused solver
    # comes close, in first order.
    def slope(h: np.ndarray, u: np.ndarray) -> np.ndarray:
        f = rate(h, u)
        return f * w["A"] - (np.exp(-w["log_tau"]) + f) * h

    h, step = np.zeros((1, 4)), 1 / 200
    for u in np.moveaxis(x.numpy(), 1, 0):
        for _ in range(200):
            one = slope(h, u)
            two = slope(h + step / 2 * one, u)
            three = slope(h + step / 2 * two, u)
            h = h + step / 6 * (one + 2 * two + 2 * three + slope(h + step * three, u))
    errors = []
    for unfolds in (50, 100):
        layer.unfolds = unfolds
        with torch.no_grad():
            _, state = layer(x, return_state=True)
        errors.append(np.abs(state["S"].numpy().ravel() - h.ravel()).max())
    assert errors[1] < 0.02
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("solved", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_a_trained_voice_detectors_memory(solved: int) -> None:
    """The LSTM of a voice activity detector, run on random features: torch's own kernel in float64 agrees."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(recorded("silero-vad-lstm") / "silero_vad_16k_op15.onnx"))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if ".rnn." in t.name}
    gates = {name.rpartition(".")[2]: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    assert gates["weight_hh"].shape == (512, 128)
    layer, cell = sf.build("lstm", d_model=128).double(), nn.LSTMCell(128, 128).double()
    load_gates(layer, gates)
    cell.load_state_dict(gates)
    x, want, state = inputs(1, 60, 128), [], None
    with torch.no_grad():
        for t in range(60):
            state = cell(x[:, t], state)
            want.append(state[0])
        for form, length in (("recurrent", 60), ("newton", solved)):
            assert_close(layer(x[:, :length], form=form), torch.stack(want[:length], 1), form, EXACT)
