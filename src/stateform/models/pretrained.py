"""Models in folders: config.json and model.safetensors, both plain data. Nothing is unpickled, no code runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import StateformError, require
from ..files import make_folder, write_atomically
from ..text import parse_json, read_bytes
from .config import MODEL_TYPE, ModelConfig

M = TypeVar("M", bound=nn.Module)

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
PREFIX = "model."
"""The beginning of the names of weights that a model of `models.auto` wrote, in which ours is the part `model`."""
SHOWN = 3
"""The most weights that an error names of those that do not fit."""


def save(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], beside: Mapping[str, bytes]) -> None:
    """Write both files and those `beside` them. The configuration is last, so that a folder with one is whole."""
    from safetensors.torch import save as as_bytes

    require(not any(x.is_meta for x in weights.values()), "a model on the device meta has no weights to save")
    whole = {k: x.detach().clone(memory_format=torch.contiguous_format) for k, x in weights.items()}
    try:
        data = as_bytes(whole, metadata={"format": "pt"})
    except KeyError as error:
        name = next(k for k, x in whole.items() if x.dtype in error.args)
        raise StateformError(f"the weight {name} is {error.args[0]}, which a safetensors file cannot hold; keep its "
                             "real and imaginary parts as two weights") from None  # fmt: skip
    make_folder(folder)
    write_atomically(folder / WEIGHTS, data)
    for name, data in beside.items():
        write_atomically(folder / name, data)
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load(cls: type[M], folder: Path) -> M:
    """Make a model of the class, with the configuration and the weights of a folder."""
    config = read_config(folder, cls.__name__)
    weights = _read_weights(folder)
    model = cls(config)
    _check_fit(folder, model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)  # the tensors of the file, in its dtypes
    return model.eval()


def read_kind(folder: Path) -> str | None:
    """Read the name of the class that was saved in a folder; None if it does not say."""
    return next(iter(_classes(_read_values(folder))), None)


def _classes(values: dict[str, Any]) -> list[str]:
    """List the names of the classes that a configuration is for; empty if it does not say."""
    made = values.get("architectures") or []
    named = isinstance(made, list) and all(isinstance(name, str) for name in made)
    require(named, f"architectures is {made!r} in {CONFIG}; expected a list of names")
    return list(made)


def _read_values(folder: Path) -> dict[str, Any]:
    """Read the dict in config.json; anything else counts as an empty one."""
    require(os.path.isdir(folder), f"there is no folder {folder}; expected one that save_pretrained wrote")
    path = folder / CONFIG
    require(path.is_file(), f"{folder} has no {CONFIG}; expected a folder that save_pretrained wrote")
    values = parse_json(read_bytes(path), path)
    return values if isinstance(values, dict) else {}


def read_config(folder: Path, wanted: str) -> ModelConfig:
    """Read the configuration in a folder. Raises StateformError unless it is that of the class `wanted`."""
    path, values = folder / CONFIG, _read_values(folder)
    kind = values.get("model_type")
    require(kind == MODEL_TYPE, f"{folder} holds a model of type {kind!r}; expected {MODEL_TYPE!r}")
    made = _classes(values) or [wanted]
    require(wanted in made, f"{folder} holds a {made[0]}; expected a {wanted}: use {made[0]}.from_pretrained")
    try:
        return ModelConfig.from_dict(values)
    except StateformError as error:
        hint = "; if it is a layer of your own, import the module that registers it first" if _unknown(error) else ""
        raise StateformError(f"{path}: {error}{hint}") from None


def _unknown(error: StateformError) -> bool:
    return "unknown layer" in str(error)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder, from one file or several, by the names that they have in our models."""
    weights: dict[str, Tensor] = {}
    for name in _shards(folder):
        weights.update(_read_file(folder / name))
    ours = not all(name.startswith(PREFIX) for name in weights)
    return weights if ours else {name.removeprefix(PREFIX): x for name, x in weights.items()}


def _shards(folder: Path) -> list[str]:
    """List the files that hold the weights."""
    index = folder / SHARDS
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [WEIGHTS]
    values = parse_json(read_bytes(index), index)
    where = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(where, dict):
        raise StateformError(f"{index} has no weight_map; expected the file of each weight, by its name")
    return sorted({Path(str(name)).name for name in where.values()})


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    require(path.is_file(), f"there is no file {path}; the folder holds a configuration without its weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise StateformError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise StateformError(f"cannot read {path}: not a whole safetensors file ({error})") from None


def _check_fit(folder: Path, own: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    expected, found = ({k: tuple(x.shape) for k, x in some.items()} for some in (own, weights))
    differ = [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        if name in found and name in expected
        else f"{name} is missing"
        if name in expected
        else f"{name} is not part of the model"
        for name in [*expected, *(k for k in found if k not in expected)]
        if found.get(name) != expected.get(name)
    ]
    if differ:
        more = f", and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise StateformError(
            f"the weights in {folder} do not fit its configuration: {'; '.join(differ[:SHOWN])}{more}. They are those "
            "of another architecture, or a layer has changed since they were saved"
        )
    for name, x in own.items():
        whole = not (weights[name].is_floating_point() or weights[name].is_complex())
        require(not whole or not x.is_floating_point(),
                f"{name} in {folder} is {weights[name].dtype}; expected a floating dtype, as {x.dtype}")  # fmt: skip
