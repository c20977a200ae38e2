"""Putting the weights of a file into a model, each checked to exist and to fit."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import StateformError, require

M = TypeVar("M", bound=nn.Module)


class FileWeights(dict[str, Tensor]):
    """Tensors by name; a missing name is an error that names the file."""

    def __init__(self, file: Path, given: Mapping[str, Tensor], prefix: str = "") -> None:
        super().__init__(given)
        self.file, self.prefix = file, prefix

    def __missing__(self, name: str) -> Tensor:
        raise StateformError(
            f"{self.file} has no weight {self.prefix + name!r}; it is part of a model, or of another kind"
        )

    def under(self, prefix: str) -> FileWeights:
        """Select those whose names begin with a prefix, and cut it off."""
        return FileWeights(
            self.file, {k.removeprefix(prefix): x for k, x in self.items() if k.startswith(prefix)}, prefix
        )


def filled(model: M, weights: Mapping[str, Tensor], file: Path) -> M:
    """Fill a model made on the device meta with these weights; they are not copied."""
    wanted = model.state_dict()
    for name, x in wanted.items():
        require(name in weights, f"{file} has no weights for {name}; it is part of a model, or of another kind")
        given = weights[name]
        require(
            given.shape == x.shape,
            f"the weights of {file} do not fit together: {name} is {list(given.shape)}, expected {list(x.shape)}",
        )
    model.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    return model.eval()


@contextmanager
def mapped(file: Path) -> Iterator[memoryview]:
    """Map the bytes of a file into memory; they are read when they are used. It must not be empty."""
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        yield view


def numbers(data: memoryview, at: int, shape: tuple[int, ...], kind: str = "<f4") -> Tensor:
    """Copy the numbers at a place of a file, in float32."""
    count = int(np.prod(shape, dtype=np.int64))
    values = np.frombuffer(data, kind, count, at).astype(np.float32)
    return torch.from_numpy(values.reshape(shape))
