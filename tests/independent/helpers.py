"""What the comparisons with independent implementations share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import stateform as sf

EXACT = 1e-10
"""The largest relative error allowed in float64."""
RECORDED = 1e-5
"""The largest relative error allowed against answers recorded in float32."""


class Double(TorchFunctionMode):
    """Inside this context every cast to float32, and every float32 tensor that is made, is float64.

    Much published code computes parts of a layer in float32 whatever its input is. With this its formulas stay as they
    are, and the comparison is as sharp as float64 allows.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = [torch.float64 if x is torch.float32 else x for x in args]
        kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()}
        return func(*args, **kwargs)


def relative_error(actual: Any, expected: Any) -> float:
    """max|actual - expected| / max|expected|, or the absolute error where nothing but 0 is expected."""
    actual, expected = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (actual, expected))
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    assert np.isfinite(expected).all(), "the expected values are not finite"
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def assert_close(actual: Any, expected: Any, what: str, tolerance: float = EXACT) -> None:
    """Fail, saying what differs and by how much, unless the relative error is within the tolerance (NaN fails too)."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}"


def drawn(name: str, *, seed: int = 0, spread: float = 0.3, **options: Any) -> Any:
    """A layer in float64, every parameter moved off its initial value, so that none is 0 or 1 by chance."""
    torch.manual_seed(seed)
    layer = sf.build(name, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(spread * torch.randn_like(p))
    return layer


def inputs(batch: int, length: int, width: int, seed: int = 1) -> Tensor:
    """Standard normal [batch, length, width] in float64."""
    return torch.randn(batch, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(layer: nn.Module) -> dict[str, np.ndarray]:
    """The parameters of a layer as numpy arrays."""
    return {name: p.detach().numpy() for name, p in layer.named_parameters()}


def existing_forms(system: sf.System) -> list[str]:
    """The forms that exist for a system."""
    return [form for form, reason in system.forms().items() if reason is None]


def every_way(layer: Any, x: Tensor) -> Iterator[tuple[str, Tensor, sf.State]]:
    """How, the output and the final state: in every form at once, in two pieces, and step by step."""
    with torch.no_grad():
        for form in layer.forms(x):
            yield form, *layer(x, form=form, return_state=True)
        cut = x.shape[1] // 3
        first, state = layer(x[:, :cut], return_state=True)
        second, state = layer(x[:, cut:], initial_state=state, return_state=True)
        yield "two pieces", torch.cat([first, second], 1), state
        state, ys = layer.init_state(x.shape[0]), []
        for t in range(x.shape[1]):
            y, state = layer.step(x[:, t], state)
            ys.append(y)
        yield "step by step", torch.stack(ys, 1), state


def assert_same_function(
    layer: Any, x: Tensor, y: Any, state: Callable[[sf.State], Any] | None = None, final: Any = None
) -> None:
    """The layer gives y in every way, and `state` of its final State gives `final`."""
    for how, ours, ours_state in every_way(layer, x):
        assert_close(ours, y, f"output, {how}")
        if state is not None:
            assert_close(state(ours_state), final, f"final state, {how}")


def assert_same_gradient(layer: Any, other: Callable[[Tensor], Tensor], x: Tensor, tolerance: float = EXACT) -> None:
    """The gradients with respect to the input agree, for one random weighting of the outputs."""
    weight = inputs(*x.shape, seed=2)
    gradients = []
    for function in (layer, other):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((function(leaf) * weight).sum(), leaf)
        gradients.append(gradient)
    assert_close(*gradients, "gradient of the input", tolerance)


def recorded(folder: str) -> Path:
    """The folder of recorded answers of that name under $STATEFORM_DATA; the test is skipped where it is not there."""
    root = os.environ.get("STATEFORM_DATA")
    if not root:
        pytest.skip(f"STATEFORM_DATA is not set, so the recorded answers in {folder} are not compared with")
    path = Path(root) / folder
    if not path.is_dir():
        pytest.skip(f"STATEFORM_DATA has no folder {folder}, so its recorded answers are not compared with")
    return path


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log(1 + np.exp(x))


def rms_normalised(x: np.ndarray, eps: float) -> np.ndarray:
    """x over the root of the mean of its squares along the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def short_convolution(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Each channel of x [B,T,c] with its own causal taps [c,1,width], the last tap on the present token."""
    y = np.zeros_like(x)
    width = taps.shape[-1]
    for t in range(x.shape[1]):
        for lag in range(min(width, t + 1)):
            y[:, t] += taps[:, 0, width - 1 - lag] * x[:, t - lag]
    return y


def split_heads(x: np.ndarray, n_heads: int) -> np.ndarray:
    """[B,T,H*n] to [B,H,T,n]."""
    return np.moveaxis(x.reshape(*x.shape[:2], n_heads, -1), 2, 1)


def join_heads(y: np.ndarray) -> np.ndarray:
    """[B,H,T,p] to [B,T,H*p]."""
    return np.moveaxis(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)
