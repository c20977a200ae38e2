"""Writing smaller layers into a model, and into its configuration."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...architectures.registry import REGISTRY, accepted, resolve
from ...layer import Convolved, Layer
from ...layer.spec import read_spec
from ...models import SequenceModel


def with_layers(model: nn.Module, new: dict[str, Layer]) -> nn.Module:
    """Make a model of the same class with these layers in the place of its own, and with their configuration."""
    if isinstance(model, Layer):
        return new["layer"]
    assert isinstance(model, SequenceModel)
    specs = [
        _respec(spec, new[name]) if (name := f"blocks.{i}.mixer") in new else spec
        for i, spec in enumerate(model.config.layers)
    ]
    config = replace(model.config, pattern=" ".join(specs), n_layers=len(specs), options=_options_taken(model, specs))
    with torch.random.fork_rng(devices=[]):
        same = type(model)(config)
    made, trained = copy.deepcopy(model), dict(model.named_parameters())  # hooks and adapters are copied too
    made.config, made._fingerprint = config, same.fingerprint
    for block, spec in zip(made.blocks, specs, strict=True):
        block.spec = spec  # type: ignore[assignment]
    for name, layer in new.items():
        made.set_submodule(name, layer := copy.deepcopy(layer))
        for part, p in layer.named_parameters():
            before = trained.get(f"{name}.{part}")
            p.requires_grad_(before is None or before.requires_grad)
    return made


def _options_taken(model: SequenceModel, specs: list[str]) -> dict[str, Any]:
    """Select the options for all mixers that some mixer still takes."""
    taken = {name for spec in specs for name in accepted(resolve(spec)[0])}
    return {k: v for k, v in model.config.options.items() if k in taken}


def _inner(module: nn.Module) -> Layer:
    inner = module.layer if isinstance(module, Convolved) else module
    assert isinstance(inner, Layer)
    return inner


def _respec(spec: str, new: Layer) -> str:
    """Write the specification of a layer with the options of the new one."""
    inner = _inner(new)
    name, options = read_spec(spec)
    kind = _name(inner)
    if name != kind:
        options = {k: v for k, v in inner.config.items() if k != "d_model"}
    options = {**options, "d_state": inner.config["d_state"]}
    return f"{kind}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def written_as(layer: Layer) -> str:
    """Write a smaller layer as its name and its size: "s4d(d_state=12)"."""
    inner = _inner(layer)
    return f"{_name(inner)}(d_state={inner.config['d_state']})"


def _name(layer: nn.Module) -> str:
    return next((x.name for x in REGISTRY.values() if x.cls is type(layer)), type(layer).__name__)


def name_of_layer(module: nn.Module) -> str:
    """Give the registered name of a layer, or of the one inside a convolved layer; else its class."""
    return _name(module.layer if isinstance(module, Convolved) else module)
