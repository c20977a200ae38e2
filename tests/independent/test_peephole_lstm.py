"""The LSTM with peepholes against its paper's equations, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from .helpers import assert_same_function, drawn, inputs, numbers, sigmoid


@pytest.mark.parametrize("coupled", [False, True])
def test_peephole_lstm_is_the_papers_recurrence(coupled: bool) -> None:
    """arXiv 1503.04069, section 2; with coupled gates the variant CIFG."""
    layer, x = drawn("peephole_lstm", d_model=6, d_state=5, coupled=coupled), inputs(2, 9, 6)
    w, order = numbers(layer), "igo" if coupled else "ifgo"
    W, R, b, s = (
        dict(zip(order, np.split(w[name], len(order)), strict=True))
        for name in ("x_proj.weight", "h_proj.weight", "x_proj.bias", "h_proj.bias")
    )
    p = dict(zip("io" if coupled else "ifo", w["peepholes"], strict=True))
    h, c, out = np.zeros((2, 5)), np.zeros((2, 5)), []
    for u in np.moveaxis(x.numpy(), 1, 0):
        z = {k: u @ W[k].T + h @ R[k].T + b[k] + s[k] for k in order}
        i = sigmoid(z["i"] + p["i"] * c)
        f = 1 - i if coupled else sigmoid(z["f"] + p["f"] * c)
        c = f * c + i * np.tanh(z["g"])
        h = sigmoid(z["o"] + p["o"] * c) * np.tanh(c)
        out.append(h @ w["out_proj.weight"].T)
    final = np.concatenate([h, c], -1)
    assert_same_function(layer, x, np.stack(out, 1), lambda state: state["S"].flatten(1), final)
