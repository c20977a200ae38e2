"""The run from whose weights a training begins: reading its folder, and the record of it in the experiment."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import require
from ..files import DamagedError, read_json
from ..models import open_folder
from . import checkpoint

EXPERIMENT, CONFIG = "experiment.json", "config.json"
"""Files of a run: its settings, and the model of a finished one."""
SHOWN = 3
"""The most weights that an error names of those that do not fit."""


@dataclass(frozen=True)
class Parent:
    """A run, and the weights that are taken from it.

    Args:
        folder: where it was when it was named. It is no part of the experiment's key.
        key: of its experiment.
        weights: their hash.
    """

    folder: str
    key: str
    weights: str

    @classmethod
    def from_folder(cls, folder: str | Path) -> Parent:
        """Read the run in a folder, as it is now.

        Raises:
            StateformError: a folder that no training wrote, or one without weights yet.
        """
        return cls(str(Path(folder).absolute()), key_of(settings(folder)), hash_of(weights(folder)))

    @classmethod
    def from_dict(cls, values: Any) -> Parent:
        """Make it from what `to_dict` gave."""
        names = ("folder", "key", "weights")
        fits = isinstance(values, Mapping) and set(values) == set(names)
        require(fits and all(isinstance(x, str) for x in values.values()),
                f"from is {values!r}; expected the folder of a run, or its {', '.join(names)}")  # fmt: skip
        return cls(**values)

    def to_dict(self) -> dict[str, str]:
        """Give plain values."""
        return asdict(self)

    def load_into(self, model: nn.Module) -> None:
        """Put the weights into a model.

        Raises:
            StateformError: they are not there, have changed, or do not fit; the first that differ are named.
        """
        found = weights(self.folder)
        require(hash_of(found) == self.weights,
                f"the weights of the run in {self.folder} have changed since this training was begun; bring them back, "
                "or choose another folder")  # fmt: skip
        expected = model.state_dict()
        differ = [_difference(name, found.get(name), expected.get(name)) for name in [*expected, *found]
                  if _shape(found.get(name)) != _shape(expected.get(name))]  # fmt: skip
        differ = list(dict.fromkeys(differ))
        more = f", and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        require(not differ, f"the weights of the run in {self.folder} do not fit this model: "
                f"{'; '.join(differ[:SHOWN])}{more}. Keep the settings of the model")  # fmt: skip
        model.load_state_dict(found)


def settings(folder: str | Path) -> dict[str, Any]:
    """Read the experiment of the run in a folder, as plain values."""
    path = Path(folder) / EXPERIMENT
    require(os.path.isfile(path), f"{folder} has no {EXPERIMENT}; expected a folder that a training wrote")
    values = read_json(path)
    parts = all(isinstance(values.get(part), dict) for part in ("task", "model", "train"))
    require(parts, f"{path} is no experiment; expected the tables task, model and train")
    return {k: v for k, v in values.items() if k != "sources"}


def weights(folder: str | Path) -> dict[str, Tensor]:
    """Read the weights of a run: of a finished one the saved model, of an unfinished one its best or last so far.

    Raises:
        StateformError: there are none yet, or they cannot be read.
    """
    place = Path(folder)
    if os.path.isfile(place / CONFIG):  # which is written after the weights
        return open_folder(place).state_dict()
    try:
        if settings(folder)["train"].get("keep") == "best" and os.path.isfile(place / checkpoint.BEST):
            return load_file(place / checkpoint.BEST)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"the weights of the run in {folder} cannot be read: {error}") from None
    require(os.path.isfile(place / checkpoint.CHECKPOINT),
            f"the run in {folder} has no weights yet; wait for its first checkpoint")  # fmt: skip
    found = checkpoint.read(place / checkpoint.CHECKPOINT).get("state_dict")
    if not isinstance(found, dict):
        raise DamagedError(f"{place / checkpoint.CHECKPOINT} has no weights; it is of no training")
    return {name.removeprefix("model."): x for name, x in found.items()}


def key_of(values: Mapping[str, Any]) -> str:
    """Compute sixteen hexadecimal digits that two experiments share if and only if they are the same, in any folder."""
    parent = values.get("from")
    kept = values if parent is None else {**values, "from": {k: v for k, v in parent.items() if k != "folder"}}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Compute a hash of the names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return found.hexdigest()


def _shape(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)


def _difference(name: str, found: Tensor | None, expected: Tensor | None) -> str:
    if found is None:
        return f"{name} is missing"
    if expected is None:
        return f"{name} is not part of the model"
    return f"{name} is {list(found.shape)}, expected {list(expected.shape)}"
