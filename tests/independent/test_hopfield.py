"""The modern Hopfield network: its updates in numpy, softmax attention as one of them, and what the paper proves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import stateform as sf

from .helpers import assert_close, assert_same_function, drawn, inputs, join_heads, numbers, split_heads

D = 12


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("options", [{}, {"updates": 1}, {"updates": 4, "beta": 2.5, "d_state": 5}])
def test_hopfield_is_the_papers_update_repeated(options: dict[str, Any]) -> None:
    """xi = K softmax(beta K^T xi), the keys those seen so far; the last read takes the values (arXiv 2008.02217)."""
    layer = drawn("hopfield", d_model=D, n_heads=3, **options)
    x, w = inputs(2, 14, D), numbers(layer)
    q, k, v = (split_heads(x.numpy() @ w[f"{s}_proj.weight"].T, 3) for s in "qkv")
    beta, updates = options.get("beta", k.shape[-1] ** -0.5), options.get("updates", 3)
    y = np.zeros_like(v)
    for b, h, t in np.ndindex(*v.shape[:3]):
        K, xi = k[b, h, : t + 1], q[b, h, t]
        for _ in range(updates - 1):
            xi = softmax(beta * K @ xi) @ K
        y[b, h, t] = softmax(beta * K @ xi) @ v[b, h, : t + 1]
    y = join_heads(y) @ w["out_proj.weight"].T
    assert_same_function(layer, x, y, lambda state: state["keys"], np.moveaxis(k, 2, 1))


def test_one_update_is_softmax_attention_without_positions() -> None:
    hopfield = drawn("hopfield", d_model=D, n_heads=3, d_state=6, updates=1)
    softmax = drawn("softmax", d_model=D, n_heads=3, d_state=6, positions="none", seed=3)
    softmax.load_state_dict(hopfield.state_dict())
    x = inputs(2, 20, D)
    assert_close(hopfield(x), softmax(x), "output")
    assert_close(hopfield.system(x).coefficients(), softmax.system(x).coefficients(), "effective attention")
    more = sf.build("hopfield", d_model=D, n_heads=3, d_state=6, updates=2).double()
    more.load_state_dict(hopfield.state_dict())
    assert float((more(x) - softmax(x)).detach().abs().max()) > 1e-3


def stored(count: int) -> tuple[Any, torch.Tensor, torch.Tensor, sf.State]:
    """A layer of one head that stores its inputs as they are; unit patterns [count,D]; the last one as a key for each
    of `count` rows, [count,1,1,D]; and the state of these rows after the others.
    """
    layer = sf.build("hopfield", d_model=D, n_heads=1, beta=30.0).double()
    with torch.no_grad():
        layer.k_proj.weight.copy_(torch.eye(D))
    patterns = torch.nn.functional.normalize(inputs(1, count, D)[0], dim=-1)
    _, state = layer(patterns[None, :-1], return_state=True)
    return layer, patterns, patterns[-1].expand(count, 1, 1, D), state.repeat(count)


@torch.no_grad()
def test_a_query_converges_to_the_stored_pattern() -> None:
    """A spoiled query falls to a fixed point beside its pattern: within 2 (N - 1) exp(-beta (Delta - 2 error)), Delta
    the pattern's distance in products from the others (theorem 5). The larger beta, the nearer.
    """
    layer, patterns, k, state = stored(8)
    products = patterns @ patterns.T
    Delta = (products.diagonal() - (products - 2 * torch.eye(8)).amax(1))[:, None]
    finals = []
    for layer.beta in (15.0, 20.0, 30.0):
        xi, errors = (patterns + 0.15 * inputs(1, 8, D, seed=2)[0])[:, None, None], []
        for _ in range(8):
            xi = layer.retrieve(xi, k, state)
            errors.append((xi[:, 0] - patterns[:, None]).norm(dim=-1))
        assert_close(layer.retrieve(xi, k, state), xi, "a fixed point", 1e-7)
        assert float(errors[0].max()) > 3 * float(errors[-1].max())
        assert bool((errors[-1] < 14 * torch.exp(-layer.beta * (Delta - 2 * errors[-1]))).all())
        finals.append(float(errors[-1].max()))
    assert 1e-2 > finals[0] > 5 * finals[1] > 25 * finals[2]


@torch.no_grad()
def test_every_update_lowers_the_energy() -> None:
    """E(xi) = -lse(beta K xi) / beta + xi^T xi / 2 never grows, wherever xi begins (theorem 1)."""
    layer, patterns, k, state = stored(8)
    for beta in (0.1, 1.0, 8.0, 50.0):
        layer.beta = beta
        xi, energies = 2 * inputs(8, 1, D, seed=2).unsqueeze(2), []
        for _ in range(6):
            z = xi[:, 0, 0]
            energies.append(-torch.logsumexp(beta * z @ patterns.T, -1) / beta + z.square().sum(-1) / 2)
            xi = layer.retrieve(xi, k, state)
        steps = torch.stack(energies).diff(dim=0)
        assert float(steps.max()) < 1e-12
        assert float(steps[0].max()) < -1e-2
