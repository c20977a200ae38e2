"""Parts for adapters: maps, convolutions and norms of a module, called so that hooks on them run."""

from __future__ import annotations

import functools
from importlib.metadata import version
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Past
from ..layer.parts import plain
from ..layer.short_conv import convolve
from ..loops.norm import normed

M = TypeVar("M", bound=nn.Module)

SILU = ("silu", "swish")
"""Names of the default activation of mixers."""
GENERAL = (5, 15)
"""The version of transformers from which another activation is that of the convolution alone, and gates have silu."""


def part(linear: nn.Module, u: Tensor, start: int, stop: int | None, step: int = 1) -> Tensor:
    """Compute linear(u)[..., start:stop:step], and no more than that of a plain nn.Linear."""
    at = slice(start, stop, step)
    if not (isinstance(linear, nn.Linear) and plain(linear, nn.Linear)):
        return linear(u)[..., at]
    return F.linear(u, linear.weight[at], None if linear.bias is None else linear.bias[at])


def short_conv(conv: nn.Module, x: Tensor, past: Past | None, act: str | None = "silu", name: str = "conv") -> Tensor:
    """Convolve x [B,T,c] over time with a causal depthwise nn.Conv1d, and apply the activation that is named `act`."""
    silu = act in SILU
    if isinstance(conv, nn.Conv1d) and plain(conv, nn.Conv1d):
        y = convolve(x, past, name, conv.weight, conv.bias, silu)
    else:
        width = inside(conv, nn.Conv1d).kernel_size[0] - 1
        y = conv((past or Past()).extend(name, x, width).mT).mT
        padded = (y.shape[1] - x.shape[1]) // 2  # the module pads on both sides
        y = y[:, padded : padded + x.shape[1]]
        y = F.silu(y) if silu else y
    return y if silu or act is None else _activation(act)(y)


def inside(module: nn.Module, cls: type[M]) -> M:
    """Find the module of this class in another: itself, or one that it is wrapped around."""
    found = next((m for m in module.modules() if isinstance(m, cls)), None)
    require(
        found is not None, f"a {type(module).__name__} has no {cls.__name__} in it; expected one, or an adapter of it"
    )
    assert found is not None
    return found


def gated_norm(owner: nn.Module, norm: Any, y: Tensor, gate: Tensor, act: str | None) -> Tensor | None:
    """Compute an RMS norm of transformers, of y [B,T,..,p], times act(gate) [B,T,c], in one pass: [B,T,c].

    None if one pass cannot do that: in half precision, for other activations, or if hooks or wrappers are on the norm.
    """
    if act not in ("silu", "sigmoid") or not own(owner, norm) or norm.weight.dtype != y.dtype:
        return None
    p = y.shape[-1]
    x = normed(
        y, p, share=1 / p, eps=norm.variance_epsilon, weight=norm.weight, gate=gate,
        activation="silu" if act == "silu" else "sigmoid",
    )  # fmt: skip
    return None if x is None else x.flatten(2)


def activation(module: Any) -> str:
    """Return the name of the activation of a mixer's convolution.

    Raises:
        StateformError: another than silu where the mixer's forms of computing do not agree on where it is applied.
    """
    name: str = getattr(module, "activation", "silu")
    require(
        name in SILU or tuple(int(x) for x in version("transformers").split(".")[:2]) >= GENERAL,
        f"the activation of {type(module).__name__} is {name!r}, which transformers {version('transformers')} applies "
        f"in some places and not in others; expected 'silu', or transformers {'.'.join(map(str, GENERAL))} or newer",
    )
    return name


@functools.cache
def _activation(name: str) -> nn.Module:
    from transformers.activations import ACT2FN

    found: nn.Module = ACT2FN[name]
    return found


def own(owner: nn.Module, module: nn.Module) -> bool:
    """True if a module inside `owner` is as the model's own code makes it: its call is its forward and nothing more."""
    return type(module).__module__ == type(owner).__module__ and plain(module, type(module))
