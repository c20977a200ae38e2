"""A pair: a function, our way to compute it, and rival ways."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import build
from ..contract.draws import redraw
from ..errors import require
from ..forms import run
from ..hub.twin import heads_of
from ..system import System
from .rivals.party import Inputs, Party, Run, aged, floor, ours

Shape = tuple[int, ...]

MODES = ("forward", "training", "decode", "memory")
"""Measurements: a forward pass, forward and backward, a token from a state, the most bytes held at once."""
EXTRAS = {"transformers": "'stateform[bench]'", "mambapy": "'stateform[bench]'", "fla": "flash-linear-attention"}
"""By package of a rival: the argument to pip install."""
DISTRIBUTIONS = {"fla": "fla-core"}
"""Names under which packages are installed, where they differ."""
EQUAL = 1e-5
"""The largest relative difference, in float32, up to which two functions count as the same."""


def version_of(distribution: str) -> str | None:
    """Give the version that is installed; None if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Rival:
    """An implementation that one could use instead of a layer or an operation of ours.

    Args:
        name: how tables call it, unique in its pair.
        package: the package that it is from.
        make: makes a party from our layer, whose weights it copies (for an operation: from nothing).
        allowed: relative difference in float32 up to which it counts as the same function; more than `EQUAL` if its
            kernels round more.
        why: the reason, if `allowed` is more than `EQUAL`.
    """

    name: str
    package: str
    make: Callable[[Any], Party]
    allowed: float = EQUAL
    why: str = ""

    def missing(self) -> str | None:
        """Say how to install its package; None if it is installed."""
        spec = importlib.util.find_spec(self.package)
        if spec is not None and spec.origin is not None:  # a folder that happens to have that name has no origin
            return None
        return f"{self.package} is not installed: pip install {EXTRAS.get(self.package, self.package)}"

    @property
    def version(self) -> str:
        """Give the version of its package that is installed."""
        return version_of(DISTRIBUTIONS.get(self.package, self.package)) or "unknown"


@dataclass(frozen=True)
class Pair:
    """A layer and its rivals.

    Args:
        name: unique among the pairs: the layer's name, with more behind a slash if a layer has several pairs.
        make: makes the layer from d_model.
        rivals: what one could use instead.
    """

    name: str
    make: Callable[[int], Any]
    rivals: tuple[Rival, ...] = ()

    @property
    def layer(self) -> str:
        """Name the layer."""
        return self.name.partition("/")[0]

    def checked_in(self, dtype: torch.dtype) -> torch.dtype:
        """Give the dtype in which rivals are compared with ours, before they are cast to `dtype` to be timed."""
        return torch.float32

    def setting(self, d_model: int, device: str, generator: torch.Generator) -> Setting:
        """Make our layer in float32, with weights that let every part show in y, and its floor, see `floor`."""
        layer = self.make(d_model)
        redraw(layer, generator, "own")
        layer = layer.to(device).eval()

        def inputs(rows: int, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
            return (torch.randn(rows, tokens, d_model, generator=generator).to(dtype),)

        return Setting(ours(layer), inputs, described(layer), layer, floor(layer))


@dataclass(frozen=True)
class Setting:
    """A pair at one width."""

    ours: Party
    inputs: Callable[[int, int, torch.dtype, torch.Generator], Inputs]
    sizes: str
    source: Any
    """The object that rivals are made from: our layer, None for an operation."""
    floor: Party | None = None


def described(layer: nn.Module) -> str:
    """Write the sizes of a layer in words."""
    options = getattr(layer, "config", {})
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return ", ".join(given)


def like(spec: str) -> Callable[[int], Any]:
    """Give the function from d_model to the layer `spec`."""
    return lambda d_model: build(spec, d_model=d_model)


# -- operations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """A pair on tensors alone, without a layer: `sf.run` of our system beside the operation of a rival.

    Args:
        name: as that of a `Pair`; the layer is the one whose core this is.
        tensors: the letters in `DRAWN` of the tensors that both take.
        system: makes the system from these tensors.
        rivals: what one could call instead.
        size: keys, and values, of a head at full width.
    """

    name: str
    tensors: tuple[str, ...]
    system: Callable[..., System]
    rivals: tuple[Rival, ...]
    size: int = 64

    @property
    def layer(self) -> str:
        """Name the layer whose core it is."""
        return self.name.partition("/")[0]

    def checked_in(self, dtype: torch.dtype) -> torch.dtype:
        """Give the dtype of the comparison: `dtype` itself, as some kernels have half precision only."""
        return dtype

    def setting(self, d_model: int, device: str, generator: torch.Generator) -> Setting:
        """Make our operation and its inputs; it has neither weights nor a floor of linear maps."""
        H = heads_of(d_model, self.size)
        require(d_model % H == 0, f"d_model is {d_model}; expected a multiple of the {H} heads of {self.name}")

        def inputs(rows: int, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
            shape = (rows, tokens, H, d_model // H)
            return tuple(DRAWN[name](shape, dtype, generator) for name in self.tensors)

        def begin(prompt: Inputs, tokens: int) -> Run:
            _, state = run(self.system(*prompt), return_state=True)
            state = aged(state, tokens)

            def step(*token: Tensor) -> Tensor:
                nonlocal state
                y, state = run(self.system(*token), "recurrent", initial_state=state, return_state=True)
                return y

            return step

        growth = 2 * d_model * 4 if self.system(*inputs(1, 1, torch.float32, generator)).readout.cached else 0
        party = Party(lambda *x: run(self.system(*x)), begin=begin, growth=growth)
        return Setting(party, inputs, f"n_heads={H}, d_state={d_model // H}", None)


def _normal(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def _unit(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(shape, generator=generator), dim=-1).to(dtype)


def _gate(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw logarithms of decays near 0.95; at least float32, as in every layer, whatever dtype the rest has."""
    return F.logsigmoid(torch.randn(shape, generator=generator) + 3).to(torch.promote_types(dtype, torch.float32))


DRAWN: dict[str, Callable[[Shape, torch.dtype, torch.Generator], Tensor]] = {
    "q": _unit,
    "k": _unit,
    "v": _normal,
    "g": lambda shape, dtype, generator: _gate(shape[:3], dtype, generator),
    "gk": _gate,
    "beta": lambda shape, dtype, generator: torch.sigmoid(_normal(shape[:3], dtype, generator)),
}
"""Tensors by their letters, from [B,T,H,n]: a decay per head is g, one per key gk."""
