"""Language modelling: the bytes of any text, and each one's next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from ...errors import require
from ..base import SPLITS, Batch, Split, Task


@dataclass(frozen=True, kw_only=True)
class Bytes(Task):
    """The base of language modelling: windows of a text, drawn at random places, and the next bytes."""

    length: int = 256
    """Bytes of an example."""

    metric: ClassVar[Literal["accuracy", "mse", "bits"]] = "bits"
    solvable: ClassVar[bool] = False

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def tokenizer(self) -> Literal["bytes"]:
        return "bytes"

    def text(self, split: Split) -> np.ndarray:
        """Read the bytes of a split."""
        raise NotImplementedError

    def contents(self) -> str:
        found = hashlib.sha256()
        for split in SPLITS:
            found.update(f"{split} {len(self.text(split))} ".encode())
            found.update(self.text(split))  # type: ignore[arg-type]
        return found.hexdigest()

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        text = self.text(split)
        require(
            len(text) > length,
            f"the part {split} of the text has {len(text)} bytes; a window has {length} and the one after: "
            "give a longer text or a smaller length",
        )
        starts = rng.randint(len(text) - length, size=n, dtype=np.int64)
        windows = torch.from_numpy(text[starts[:, None] + np.arange(length + 1)].astype(np.int64))
        return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def parts(text: bytes) -> dict[Split, np.ndarray]:
    """Cut a text into its first 90%, the next 5% and the last 5%."""
    a, b = len(text) * 90 // 100, len(text) * 95 // 100
    array = np.frombuffer(text, np.uint8)
    return {"train": array[:a], "valid": array[a:b], "test": array[b:]}
