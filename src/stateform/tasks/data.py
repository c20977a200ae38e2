"""Data sets on disk: finding them, keeping them small in memory, and the base of tasks on digits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import StateformError, require
from .base import Batch, Task


@dataclass(frozen=True)
class Stored(Batch):
    """A data set kept in small dtypes. Its rows, `stored[rows]`, are int64 tokens or float32 numbers.

    Args:
        scale: the factor that makes inputs [N,T,1] of numbers [N,T]; None: the inputs are tokens.
    """

    scale: float | None = None

    def __getitem__(self, rows: Any) -> Batch:
        batch = super().__getitem__(rows)
        inputs = batch.inputs.long() if self.scale is None else (batch.inputs.float() * self.scale).unsqueeze(-1)
        return Batch(inputs, batch.labels, batch.mask)

    def to(self, device: torch.device | str) -> Batch:
        return self[:].to(device)


def find_data(path: str | None, folder: str, public: str) -> Path:
    """Find data: at the path given, or else in the folder of that name in STATEFORM_DATA.

    Args:
        path: what the user gave.
        folder: the folder's name.
        public: where the data can be obtained, for the error.

    Raises:
        StateformError: there is nothing at that place.
    """
    if path is not None:
        found = Path(path)
        require(os.path.exists(found), f"path is {path!r}, where nothing is; expected {public}")
        return found
    place = os.environ.get("STATEFORM_DATA")
    hint = f"give path=..., or set STATEFORM_DATA to a folder in which {folder}/ holds {public}"
    if not place:
        raise StateformError(f"no data: {hint}")
    found = Path(place) / folder
    require(found.is_dir(), f"no data: there is no folder {found}; {hint}")
    return found


def stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """List the files at a place, with the times of their last change and their sizes: a key for a cache of them."""
    files = [place] if place.is_file() else sorted(path for path in place.iterdir() if path.is_file())
    return tuple((path.name, stat.st_mtime_ns, stat.st_size) for path in files for stat in [path.stat()])


def padded(rows: list[Tensor], length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Fill rows of at most `length` numbers up to [N,length]; the mask [N,length] is false in the filling."""
    out = torch.full((len(rows), length), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        mask[i, : len(row)] = True
    return out, mask


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """The base of tasks that ask which digit, 0 to 9, was recorded; subclasses read the recordings in `whole`."""

    path: str | None = None
    """The path of the data; None: in the folder that STATEFORM_DATA names."""

    answers: ClassVar[Literal["tokens", "sequence"]] = "sequence"
    solvable: ClassVar[bool] = False
    public: ClassVar[str] = ""
    """Where the data can be obtained."""

    @property
    def vocab_size(self) -> None:
        return None

    @property
    def d_input(self) -> int:
        return 1

    @property
    def n_out(self) -> int:
        return 10

    @property
    def place(self) -> Path:
        """Find the path of the data. Raises StateformError if they do not exist."""
        return find_data(self.path, self.folder, self.public)

    def check(self) -> None:
        if self.path is not None:
            _ = self.place
