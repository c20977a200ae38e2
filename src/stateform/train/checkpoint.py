"""An unfinished training in one file of plain data: tensors as safetensors, everything else as JSON in its header.

Lightning's own checkpoints are pickles. Here each tensor of the nested checkpoint is replaced by a reference, and the
rest is written with its types. So reading gives back what was written, and runs no code.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from ..errors import StateformError, require
from ..files import DAMAGED, DamagedError, write_atomically
from ..text import parse_json

CHECKPOINT, PREVIOUS, BEST = "checkpoint.safetensors", "previous.safetensors", "best.safetensors"
"""Files of an unfinished training: all of it, the same a round before, and the weights of the best validation."""
FORMAT = "stateform-checkpoint-1"
PLAIN = (str, int, float, bool, type(None))


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a nest of dicts, lists, tuples, plain values and tensors, whole or not at all.

    Raises:
        StateformError: a value of another type, a full disk, a folder that cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_pack(checkpoint, tensors, ""))
    try:
        data = as_bytes(tensors, metadata={"format": FORMAT, "skeleton": skeleton})
    except (SafetensorError, KeyError, ValueError) as error:
        raise StateformError(f"a tensor of the checkpoint cannot be written: {error}") from None
    write_atomically(path, data)


def keep_previous(path: Path) -> None:
    """Keep a checkpoint that is about to be replaced under a second name, on disks where a file may have two."""
    with contextlib.suppress(OSError):
        path.with_name(PREVIOUS).unlink(missing_ok=True)
        os.link(path, path.with_name(PREVIOUS))


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        StateformError: a file that is not there, or of another format; DamagedError if it is not whole.
    """
    require(path.is_file(), f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            require(header.get("format") == FORMAT,
                    f"{path} is no checkpoint of a training, or one of another version; expected {FORMAT}: delete it "
                    "to begin this training anew")  # fmt: skip
            skeleton = parse_json(header["skeleton"], path, DAMAGED, kind=DamagedError, bits=None)
            found: dict[str, Any] = _unpack(skeleton, file.get_tensor)
            return found
    except StateformError:
        raise
    except OSError as error:
        raise StateformError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _pack(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))  # not the place: the keys 1 and "1" would give the same
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[_pack(k, tensors, ""), _pack(v, tensors, f"{place}/{k}")] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(v, tensors, f"{place}/{i}") for i, v in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, PLAIN):
        return value
    raise StateformError(f"{place.lstrip('/')} of the checkpoint is a {type(value).__name__}; expected plain data")


def _unpack(value: Any, tensor: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensor(inner).clone()
    if kind == "dict":
        return {_unpack(k, tensor): _unpack(v, tensor) for k, v in inner}
    items = [_unpack(v, tensor) for v in inner]
    return items if kind == "list" else tuple(items)
