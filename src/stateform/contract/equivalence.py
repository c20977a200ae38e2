"""Are these two the same function, and where do they first differ?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import require, require_finite_weights
from ..forms import run
from ..system import System
from ..system.precision import first_difference, is_constant, largest, relative_error, tolerance, why_no_proof, wide
from .draws import copied


@dataclass(frozen=True)
class Equivalence:
    """What `equivalent` found; true in a condition if the two are equal."""

    equal: bool
    error: float
    """Largest difference over the largest output."""
    tolerance: float
    row: int | None = None
    position: int | None = None
    """Where they first differ by more than the tolerance."""
    text: str = ""

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        return self.text


def equivalent(a: Any, b: Any, x: Tensor | None = None, *, rtol: float | None = None) -> Equivalence:
    """Compare two layers on one input, or two systems (or their outputs) as they are.

    Args:
        a: a layer y = a(x), a System, or a tensor of outputs [B,T,...].
        b: the other one.
        x: the input [B,T,d_model]; needed for layers.
        rtol: relative error allowed (default: from dtype and length).

    Returns:
        Whether they are equal within the tolerance, or the first position and row where not, and by how much. Outputs
        that are not finite are equal to none.

    Raises:
        StateformError: if an input is missing, a weight is not finite or the outputs have different shapes.
    """
    with torch.no_grad():
        y, z = _output(a, x), _output(b, x)
    require(y.ndim >= 2, f"outputs have shape {list(y.shape)}; expected rows and time, [B,T,...]")
    require(y.shape == z.shape, f"outputs of shapes {list(y.shape)} and {list(z.shape)} cannot be the same function")
    length = y.shape[1] if y.ndim > 1 else 1
    dtype = torch.promote_types(y.dtype, z.dtype)
    allowed = rtol if rtol is not None else tolerance(dtype, length, rounded=4)
    if y.numel() == 0:
        return Equivalence(True, 0.0, allowed, text="equal: nothing to compare")
    why = why_no_proof(wide(z))
    if why:
        return Equivalence(False, torch.inf, allowed, text=why)
    error = relative_error(wide(y), wide(z))
    bad, top = ~(error <= allowed), largest(error)
    if not bool(bad.any()):
        little = ", but constant: this says nothing of how they depend on their input" if is_constant(z) else ""
        return Equivalence(True, top, allowed, text=f"equal to {top:.1g} (allowed {allowed:.1g}){little}")
    position = int(bad.flatten(2).any(2).any(0).nonzero()[0]) if y.ndim > 2 else int(bad.any(0).nonzero()[0])
    row = int(bad[:, position].reshape(len(bad), -1).any(1).nonzero()[0])
    return Equivalence(
        False, top, allowed, row, position, f"{first_difference(bad, error)}; largest difference {top:.2g}"
    )


def _output(thing: Any, x: Tensor | None) -> Tensor:
    if isinstance(thing, Tensor):
        return thing
    if isinstance(thing, System):
        y = run(thing)
        return y
    require(callable(thing), f"cannot compare a {type(thing).__name__}; expected a layer, a System or a tensor")
    require(x is not None, "to compare layers, give the input x [B,T,d_model]")
    if isinstance(thing, nn.Module):
        require_finite_weights(thing)
    out = thing(x)
    return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True)
class Shared:
    """Two layers made equal where their weights have the same names and shapes."""

    a: nn.Module
    b: nn.Module
    names: list[str]
    unshared: list[str]


def share_weights(a: nn.Module, b: nn.Module, randomise: Callable[[nn.Module], None] | None = None) -> Shared:
    """Copy both, the weights of `b` replaced by those of `a` wherever name and shape agree.

    Args:
        a: the layer whose weights are taken.
        b: the layer that takes them.
        randomise: applied to the copy of `a` first (weights as they were initialised can hide a part).
    """
    a, b = copied(a), copied(b)
    if randomise is not None:
        randomise(a)
    from_a, names = dict(a.named_parameters()), []
    with torch.no_grad():
        for name, p in b.named_parameters():
            if name in from_a and from_a[name].shape == p.shape:
                p.copy_(from_a[name])
                names.append(name)
    every = {*from_a, *(name for name, _ in b.named_parameters())}
    return Shared(a, b, names, sorted(every - set(names)))
