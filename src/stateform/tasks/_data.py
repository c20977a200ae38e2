"""Data sets on disk: where they are, and how they are kept in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._errors import StateformError, require
from .base import Batch


@dataclass(frozen=True)
class Stored(Batch):
    """A data set in small numbers; its rows, `stored[rows]`, are what the task gives: int64 tokens, float32 numbers.

    Args:
        scale: what numbers [N,T] are multiplied by, to be inputs [N,T,1]; None: the inputs are tokens.
    """

    scale: float | None = None

    def __getitem__(self, rows: Any) -> Batch:
        batch = super().__getitem__(rows)
        inputs = batch.inputs.long() if self.scale is None else (batch.inputs.float() * self.scale).unsqueeze(-1)
        return Batch(inputs, batch.labels, batch.mask)

    def to(self, device: torch.device | str) -> Batch:
        return self[:].to(device)


def find_data(path: str | None, folder: str, public: str) -> Path:
    """The path given, or else the folder of that name in STATEFORM_DATA.

    Args:
        path: what the user gave.
        folder: the folder's name.
        public: where the data are to be had.

    Raises:
        StateformError: if there is nothing.
    """
    if path is not None:
        found = Path(path)
        require(found.exists(), f"path is {path!r}, where nothing is; expected {public}")
        return found
    place = os.environ.get("STATEFORM_DATA")
    hint = f"give path=..., or set STATEFORM_DATA to a folder in which {folder}/ holds {public}"
    if not place:
        raise StateformError(f"no data: {hint}")
    found = Path(place) / folder
    require(found.is_dir(), f"no data: there is no folder {found}; {hint}")
    return found


def padded(rows: list[Tensor], length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Rows of at most `length` numbers, filled up [N,length], and where they are not filled up."""
    out = torch.full((len(rows), length), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        mask[i, : len(row)] = True
    return out, mask
