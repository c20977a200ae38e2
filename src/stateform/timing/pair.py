"""A pair: a function, our way to compute it, and the ways of others."""

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
"""What can be measured: a forward pass, forward and backward, a token from a state, the most bytes held at once."""
EXTRAS = {"transformers": "'stateform[bench]'", "mambapy": "'stateform[bench]'", "fla": "flash-linear-attention"}
"""What pip is to install for the package of a rival."""
DISTRIBUTIONS = {"fla": "fla-core"}
"""Names under which packages are installed, where they differ."""
EQUAL = 1e-5
"""The largest relative difference, in float32, of what counts as the same function."""


def version_of(distribution: str) -> str | None:
    """The version that is installed, if one is."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Rival:
    """What one could take instead of a layer or an operation of ours.

    Args:
        name: how tables call it, unique in its pair.
        package: whose it is.
        make: from our layer, whose weights it takes over (for an operation, from nothing), to a party.
        allowed: relative difference in float32 up to which it is the same function; more than `EQUAL` where its
            kernels round more, and then `why` says so.
        why: see there.
    """

    name: str
    package: str
    make: Callable[[Any], Party]
    allowed: float = EQUAL
    why: str = ""

    def missing(self) -> str | None:
        """What to do for its package to be there, or None."""
        spec = importlib.util.find_spec(self.package)
        if spec is not None and spec.origin is not None:  # a folder of that name that happens to be there has none
            return None
        return f"{self.package} is not installed: pip install {EXTRAS.get(self.package, self.package)}"

    @property
    def version(self) -> str:
        """The version of its package that is installed."""
        return version_of(DISTRIBUTIONS.get(self.package, self.package)) or "unknown"


@dataclass(frozen=True)
class Pair:
    """A layer and its rivals.

    Args:
        name: unique among the pairs; that of the layer, with more behind a slash where a layer has several.
        make: from d_model to the layer.
        rivals: what one could take instead.
    """

    name: str
    make: Callable[[int], Any]
    rivals: tuple[Rival, ...] = ()

    @property
    def layer(self) -> str:
        """The name of the layer."""
        return self.name.partition("/")[0]

    def checked_in(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which rivals are compared with ours, before they are cast to `dtype` to be timed."""
        return torch.float32

    def setting(self, d_model: int, device: str, generator: torch.Generator) -> Setting:
        """Ours with weights in which every part shows, in float32, and the party that bounds all from below."""
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
    """What rivals are made from."""
    floor: Party | None = None


def described(layer: nn.Module) -> str:
    """The sizes of a layer, in words."""
    options = getattr(layer, "config", {})
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return ", ".join(given)


def like(spec: str) -> Callable[[int], Any]:
    """Give the function from d_model to the layer `spec`."""
    return lambda d_model: build(spec, d_model=d_model)


# -- operations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """What `sf.run` computes, on tensors alone: our system beside the operation of a rival.

    Args:
        name: as that of a `Pair`; the layer is the one whose core this is.
        tensors: what both take, by the letters of `DRAWN`.
        system: from these tensors to the system.
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
        """The name of the layer whose core it is."""
        return self.name.partition("/")[0]

    def checked_in(self, dtype: torch.dtype) -> torch.dtype:
        """As `Pair.checked_in`: some kernels know half precision alone."""
        return dtype

    def setting(self, d_model: int, device: str, generator: torch.Generator) -> Setting:
        """As `Pair.setting`; there are no weights and no linear maps."""
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
    """Logarithms of decays near 0.95; in float32 whatever the rest is in, as every layer has them."""
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
