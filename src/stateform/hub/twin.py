"""Twin: a module of transformers with the weights of a layer of ours, and so the same function.

Benchmarks time it beside the layer; tests compare both with the System of the module's adapter.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layer import Layer
from .lifted import FAMILIES

TWINS: dict[str, type[Twin]] = {}
"""Twins by the name of the pair that each makes with our layer."""


@dataclass(frozen=True)
class Way:
    """One way to run a module: a suffix of its name, the package whose kernels run, the settings that choose them."""

    behind: str = ""
    package: str = "transformers"
    settings: Mapping[str, Any] = field(default_factory=dict)


class Twin:
    """A module of transformers with the weights of a layer. A subclass in the file of a family is found by itself:

        class Mamba2Twin(Twin, pair="mamba2", model="mamba2")

    Its `pair` names our layer; what is special about it follows a slash. Its `model` is the type of a model in
    `FAMILIES`; the module is of the first class there.

    Args:
        layer: one of ours, as `layer` makes it.
        settings: more settings of the module's configuration than those that follow from the layer.
    """

    pair: ClassVar[str]
    model: ClassVar[str]
    cache: ClassVar[str] = "past_key_values"
    """The name by which the module takes a cache."""
    ways: ClassVar[tuple[Way, ...]] = (Way(),)
    """The ways in which it is timed."""

    def __init_subclass__(cls, pair: str = "", model: str = "") -> None:
        if pair:
            cls.pair, cls.model = pair, model
            TWINS[pair] = cls

    def __init__(self, layer: Layer, **settings: Any) -> None:
        self.code = importlib.import_module(f"transformers.models.{self.model}.modeling_{self.model}")
        kinds = importlib.import_module("transformers").CONFIG_MAPPING
        self.config = kinds[self.model](**self.settings(layer), **settings)
        kind = getattr(self.code, self.kind())
        numbered = "layer_idx" in inspect.signature(kind.__init__).parameters
        module = kind(self.config, layer_idx=0) if numbered else kind(self.config)
        module.load_state_dict({**dict(module.named_buffers()), **self.weights(layer)})  # its own buffers stay
        self.module = module.to(next(layer.parameters())).eval()

    @classmethod
    def kind(cls) -> str:
        """Give the name of the module's class."""
        return FAMILIES[cls.model][0]

    @staticmethod
    def layer(d_model: int) -> Layer:
        """Make our layer in the proportions of released models."""
        raise NotImplementedError

    def settings(self, layer: Any) -> dict[str, Any]:
        """Give the settings of a configuration with which the module has our layer's sizes."""
        raise NotImplementedError

    def weights(self, layer: Any) -> dict[str, Tensor]:
        """Give our layer's weights under the module's names, in its shapes."""
        raise NotImplementedError

    def begin(self, x: Tensor) -> Any:
        """Make the cache before the first token of rows like those of x [B,T,d_model]."""
        return importlib.import_module("transformers").DynamicCache(config=self.config)

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        """Compute the module's output for x [B,T,d_model], from token `start` on; a cache is continued."""
        y = self.module(x) if cache is None else self.module(x, **{self.cache: cache})
        return y[0] if isinstance(y, tuple) else y

    def fill(self, cache: Any, tokens: int) -> None:
        """Enlarge a cache that grows to the size of `tokens` tokens, by repeating its rows."""


def renamed(layer: nn.Module, names: Mapping[str, str], without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Give a layer's weights under other names: whole names, or those of the modules that they belong to."""
    weights = {}
    for name, p in layer.state_dict().items():
        if name not in without:
            stem, _, kind = name.rpartition(".")
            weights[names[name] if name in names else f"{names.get(stem, stem)}.{kind}" if stem else name] = p
    return weights


def rows(*maps: Any) -> Tensor:
    """Put the weights of maps (or convolutions) one below the other."""
    return torch.cat([f.weight.detach() for f in maps])


def rows_by_head(maps: tuple[Any, ...], n_heads: int) -> Tensor:
    """Put the weights of maps one below the other within each head."""
    return torch.cat([f.weight.detach().unflatten(0, (n_heads, -1)) for f in maps], 1).flatten(0, 1)


def heads_of(d_model: int, size: int, least: int = 2) -> int:
    """Count the heads of `size` values each that a layer has room for, at least `least`."""
    return max(least, d_model // size)
