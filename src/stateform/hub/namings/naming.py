"""A naming of weights: the function that puts the weights of another library's mixer under the names of our layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...architectures import build
from ...errors import nearest, require
from ...layer import Layer
from ..formats.weights import FileWeights, filled

NAMINGS: dict[str, Callable[..., Ours]] = {}
"""Functions from weights to `Ours`, by names such as "fla.gla"."""


class NamedWeights(FileWeights):
    """Weights by name, which knows which of them were read."""

    def __init__(self, weights: Mapping[str, Tensor], source: str) -> None:
        super().__init__(Path(source), weights)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def rows(self, name: str) -> int:
        """Count the rows of a matrix, or the entries of a vector."""
        return len(self[name])

    def renamed(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Give weights under our names, from a mapping of ours to theirs."""
        return {ours: self[theirs] for ours, theirs in names.items()}


@dataclass(frozen=True)
class Ours:
    """A layer of ours: its name, options and weights."""

    name: str
    options: dict[str, Any]
    weights: dict[str, Tensor]
    d_model: int
    inner: int | None = None
    """Width of the values of all heads, where that is not d_model."""
    norm_eps: float | None = None
    """Added to the mean square in the norm of the heads."""
    silent: tuple[str, ...] = field(default=())
    """Weights that this function does not depend on."""


def names(name: str) -> Callable[[Callable[..., Ours]], Callable[..., Ours]]:
    """Register the function that reads weights under a naming, by decorating it."""

    def keep(read: Callable[..., Ours]) -> Callable[..., Ours]:
        NAMINGS[name] = read
        return read

    return keep


def read_layer(weights: Mapping[str, Tensor], naming: str, *, prefix: str = "", **settings: Any) -> Layer:
    """Make our layer from the weights of another library's mixer, in the widest dtype among them.

    Args:
        weights: by name, as in a state_dict.
        naming: the library and its mixer: one of `NAMINGS`, "mamba_ssm.mamba2" say.
        prefix: of the names of this mixer's weights; names that begin otherwise are left aside.
        settings: of that mixer, where weights do not show them; defaults are those of the library.

    Returns:
        A Layer in eval mode.

    Raises:
        StateformError: a naming or a setting that is not known; a weight that is missing, that has a shape in which the
            others have no place, or that our layer has nothing like.
    """
    ours, source = read_weights(weights, naming, prefix=prefix, **settings)
    with torch.device("meta"):
        layer: Any = build(ours.name, d_model=ours.inner or ours.d_model, **ours.options)
        if ours.inner not in (None, ours.d_model):
            _begin_and_end_at(layer, ours.d_model)
    if ours.norm_eps is not None:
        layer.norm.eps = ours.norm_eps
    return filled(layer, in_one_dtype(ours.weights), source)


def read_weights(weights: Mapping[str, Tensor], naming: str, *, prefix: str = "", **settings: Any) -> tuple[Ours, Path]:
    """Put the weights of a mixer under our names; see `read_layer`. Also gives what errors call them."""
    require(naming in NAMINGS, f"there is no naming {naming!r}; {nearest(naming, NAMINGS)}")
    known = list(inspect.signature(NAMINGS[naming]).parameters)[1:]
    wrong = [name for name in settings if name not in known]
    require(not wrong, f"{naming} has no setting {wrong[:1]}; expected {', '.join(known) or 'none'}")
    tensors = all(isinstance(name, str) and isinstance(x, Tensor) for name, x in weights.items())
    require(tensors, "the weights are no mapping from names to tensors, as a state_dict is")
    mine = {name.removeprefix(prefix): x.detach() for name, x in weights.items() if name.startswith(prefix)}
    require(mine, f"no weight begins with {prefix!r}; there are {', '.join(list(weights)[:3])}, ...")
    given = NamedWeights(mine, f"the {naming} weights")
    ours = NAMINGS[naming](given, **settings)
    more = [name for name in given if name not in given.read and name not in ours.silent]
    require(not more, f"our {ours.name} has nothing like {', '.join(more[:3])} of the {naming} weights: it would be "
            "another function")  # fmt: skip
    return ours, given.file


def in_one_dtype(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast weights to the widest dtype among them."""
    dtype = max((x.dtype for x in weights.values()), key=lambda kind: torch.finfo(kind).bits)
    return {name: x.to(dtype) for name, x in weights.items()}


def _begin_and_end_at(layer: Any, d_model: int) -> None:
    """Give the maps from a layer's input and to its output another width than that of its values."""
    inner, layer.d_model = layer.d_model, d_model
    for name, f in layer.named_modules():
        if name == "out_proj":
            f.out_features, f.weight = d_model, nn.Parameter(f.weight.new_empty(d_model, inner))
        elif isinstance(f, nn.Linear) and f.in_features == inner and not name.endswith(".1"):
            f.in_features, f.weight = d_model, nn.Parameter(f.weight.new_empty(f.out_features, d_model))
