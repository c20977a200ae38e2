"""TTT-Linear: a model is trained by automatic differentiation, token by token, and must be the state of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import (
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    existing_forms,
    inputs,
    relative_error,
)

D, H, N = 12, 2, 6


def in_the_block(x: Tensor, i: int) -> Tensor:
    """x [6] turned by its place: entries j and j + 3 by the angle i / 10000^(j / 3)."""
    out = x.clone()
    for j in range(3):
        angle = torch.tensor(i * 10_000.0 ** (-j / 3), dtype=x.dtype)
        out[j] = angle.cos() * x[j] - angle.sin() * x[j + 3]
        out[j + 3] = angle.sin() * x[j] + angle.cos() * x[j + 3]
    return out


def trained(layer: Any, x: Tensor, block: int, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the layer gives for x [B,T,D], and each head's weights (and bias) after the last token."""
    inner = options.get("inner_norm", True)
    rope = options.get("positions", "rope") == "rope"
    heads = lambda z: z.unflatten(-1, (H, -1))  # noqa: E731
    q, k, v = (f(x) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    if options.get("share_qk"):
        assert layer.k_proj is layer.q_proj
        q, k = (
            F.conv1d(F.pad(q.mT, (3, 0)), conv.weight, conv.bias, groups=D).mT for conv in (layer.q_conv, layer.k_conv)
        )
    q, k, v = (heads(z) for z in (q, k, v))
    eta = options.get("base_lr", 1.0) * torch.sigmoid(layer.lr_proj(x)) / N

    def model(W: Tensor, x: Tensor, h: int) -> Tensor:
        """f(x; W), the last row of W a bias if there is one more than x has entries."""
        z = x @ W[:N] + (W[N] if len(W) > N else 0)
        if not inner:
            return z
        return x + F.layer_norm(z, (N,), layer.inner_norm.weight[h], layer.inner_norm.bias[h], 1e-6)

    y, after = [], []
    for row in range(x.shape[0]):
        for h in range(H):
            W = start = layer.W0[h]
            steps = torch.zeros_like(W)
            for t in range(x.shape[1]):
                i = t % block
                if i == 0:
                    start, steps = W, torch.zeros_like(W)
                qt, kt = (in_the_block(z[row, t, h], i) if rope else z[row, t, h] for z in (q, k))
                weights = start.clone().requires_grad_() if not start.requires_grad else start
                loss = (model(weights, kt, h) - v[row, t, h]).square().sum() / 2
                (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
                steps = steps + eta[row, t, h] * gradient
                scale = (1 / (i + 1) + layer.c[i]).clamp_min(0) if options.get("averaged", True) else 1.0
                W = start - scale * steps
                y.append(model(W, qt, h))
            after.append(W)
    z = torch.stack(y).unflatten(0, (x.shape[0], H, -1)).transpose(1, 2).flatten(2)
    z = F.layer_norm(z, (D,), layer.norm.weight, layer.norm.bias, 1e-6)
    if options.get("gate"):
        z = z * F.gelu(layer.gate_proj(x), approximate="tanh")
    return layer.out_proj(z), torch.stack(after).unflatten(0, (x.shape[0], H))


def weights(layer: Any, state: sf.State, place: int) -> Tensor:
    """The inner model's weights after a last token in that place of its block."""
    if layer.c is None:
        return layer.W0 + state["S"]
    past, present = state["S"].chunk(2, 2)
    c = (1 / torch.arange(1, layer.block + 1, dtype=torch.float64) + layer.c).clamp_min(0)
    return layer.W0 + past + (c[place] - c[-1]) * present


OPTIONS: list[dict[str, Any]] = [
    {},
    {"averaged": False},
    {"averaged": False, "inner_norm": False, "base_lr": 2.0},
    {"inner_norm": False, "bias": False, "gate": True},
    {"averaged": False, "positions": "none"},
    {"share_qk": True, "gate": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("block", [1, 4, 16])
def test_ttt_is_gradient_descent(block: int, options: dict[str, Any]) -> None:
    """W_t = W' - eta sum dl(W'; j)/dW over the tokens j of the block up to t (arXiv 2407.04620, section 2.4)."""
    layer = drawn("ttt_linear", d_model=D, n_heads=H, block=block, **options)
    if layer.c is not None:
        with torch.no_grad():
            layer.c.mul_(0.3)
    x = inputs(2, 11, D)
    y, after = (z.detach() for z in trained(layer, x, block, options))
    final = after
    assert_same_function(layer, x, y, lambda state: weights(layer, state, 10 % block).detach(), final)
    untrained = {**options, "base_lr": 0.0}
    assert relative_error(trained(layer, x, block, untrained)[0].detach(), y) > 1e-2


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_gradients_pass_through_the_training(options: dict[str, Any]) -> None:
    layer, x = drawn("ttt_linear", d_model=D, n_heads=H, block=3, **options), inputs(2, 8, D)
    assert_same_gradient(layer, lambda x: trained(layer, x, 3, options)[0], x)


def test_one_token_a_block_without_inner_norm_is_the_delta_rule() -> None:
    """v' is then v - S^T k: the System of written errors is that of fed back ones, f = -b k, w = k."""
    layer = drawn("ttt_linear", d_model=D, n_heads=H, block=1, averaged=False, inner_norm=False, bias=False)
    with torch.no_grad():
        layer.W0.zero_()
    x = inputs(2, 40, D)
    written = layer.system(x)
    v = layer.v_proj(x).unflatten(-1, (H, N))
    delta = sf.System(written.q, written.k, v, b=written.b, f=-written.b.unsqueeze(-1) * written.k, w=written.k)
    y, end = sf.run(delta, "recurrent", return_state=True)
    for form in existing_forms(written):
        ours, state = sf.run(written, form, return_state=True)
        assert_close(ours, y, f"output, {form}")
        assert_close(state["S"], end["S"], f"final state, {form}")


@pytest.mark.parametrize("averaged", [True, False])
@torch.no_grad()
def test_rows_may_be_at_different_places_in_their_blocks(averaged: bool) -> None:
    """Rows of different histories go on together, twice: as each of them alone and at once."""
    layer, x = drawn("ttt_linear", d_model=D, n_heads=H, block=5, averaged=averaged), inputs(6, 40, D)
    before = (0, 1, 4, 5, 7, 13)
    states = [
        layer(x[row : row + 1, :length], return_state=True)[1] if length else layer.init_state(1)
        for row, length in enumerate(before)
    ]
    state = sf.State({k: torch.cat([s[k] for s in states]) for k in states[0]}, layer.fingerprint)
    rest = torch.stack([x[row, length : length + 20] for row, length in enumerate(before)])
    first, state = layer(rest[:, :12], initial_state=state, return_state=True)
    second = layer(rest[:, 12:], initial_state=state)
    alone = [layer(x[row : row + 1, : length + 20])[:, length:] for row, length in enumerate(before)]
    assert_close(torch.cat([first, second], 1), torch.cat(alone), "rows together")


@torch.no_grad()
def test_training_lowers_the_loss() -> None:
    """What is shown again and again is learned: W^T k comes to v."""
    options = {"averaged": False, "inner_norm": False, "positions": "none", "base_lr": 0.3}
    layer = drawn("ttt_linear", d_model=D, n_heads=H, block=4, **options)
    x = inputs(1, 2, D).repeat(1, 300, 1)
    k, v = (f(x[0, :2]).unflatten(-1, (H, N)) for f in (layer.k_proj, layer.v_proj))
    _, state = layer(x, return_state=True)

    def errors(W: Tensor) -> Tensor:
        return (torch.einsum("thn,hnp->thp", F.pad(k, (0, 1), value=1.0), W) - v).norm(dim=-1)

    assert bool((errors(weights(layer, state, 3)[0]) < 0.01 * errors(layer.W0)).all())
