"""Language modelling: the bytes of any text, and each one's next."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from ..errors import StateformError, require
from ..text import read_text
from .base import SPLITS, Batch, Split, Task, register_task


@dataclass(frozen=True, kw_only=True)
class Bytes(Task):
    """What tasks of language modelling share: windows of a text, drawn at random places, and the next bytes."""

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
        """The bytes of a split."""
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
    """A text cut into its first 90%, the next 5% and the last 5%."""
    a, b = len(text) * 90 // 100, len(text) * 95 // 100
    array = np.frombuffer(text, np.uint8)
    return {"train": array[:a], "valid": array[a:b], "test": array[b:]}


@register_task("text", source="language modelling on bytes, of a text of one's own")
@dataclass(frozen=True, kw_only=True)
class Text(Bytes):
    """The next byte of a text.

        tokens  S t a t e     as bytes, 0 to 255
        labels  t a t e f

    Examples are windows at random places of the first 90% of the text ("train"), the next 5% ("valid") or the last 5%
    ("test"); each byte's label is the one after it. Scored in bits a byte.
    """

    path: str | None = None
    """The file; None: Python's own documentation, which differs a little between its versions."""

    def check(self) -> None:
        read_parts(self.path)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        short = min(len(part) for part in read_parts(self.path).values())
        require(
            length < short,
            f"length is {length}; the shortest part of {self.path or 'the text'}, a twentieth, has {short} bytes: "
            "give a longer text or a smaller length",
        )

    def text(self, split: Split) -> np.ndarray:
        return read_parts(self.path)[split]


def read_parts(path: str | None) -> dict[Split, np.ndarray]:
    """The three parts of a file, which is read again only when it has changed."""
    try:
        stat = None if path is None else Path(path).stat()
    except OSError as error:
        raise StateformError(f"cannot read the text {path}: {error.strerror or error}") from None
    return _read_parts(path, None if stat is None else (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4)
def _read_parts(path: str | None, version: tuple[int, int] | None) -> dict[Split, np.ndarray]:
    return parts(read_text(path)[1])


@register_task("hf_text", source="language modelling on bytes, of a data set of Hugging Face")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceText(Bytes):
    """The next byte of a text of Hugging Face's hub.

    As `text`, for a column of a data set that the package `datasets` fetches: its splits train, validation and test
    where it has all three, and train cut into 90%, 5% and 5% otherwise. The rows are joined as they are, in UTF-8.
    """

    dataset: str = "Salesforce/wikitext"
    """The name of the data set, or a folder."""
    config: str | None = "wikitext-2-raw-v1"
    """Which of its configurations; None: its only one."""
    column: str = "text"
    """The column with the text."""

    def text(self, split: Split) -> np.ndarray:
        return read_hub(self.dataset, self.config, self.column)[split]


@lru_cache(maxsize=2)
def read_hub(dataset: str, config: str | None, column: str) -> dict[Split, np.ndarray]:
    """The three parts of a data set of the hub.

    Raises:
        StateformError: without the package, the network, the data set or the column.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise StateformError(
            "the task hf_text needs the package datasets: pip install 'stateform[data]'; "
            "the task text reads a local file without it"
        ) from None
    try:
        found = datasets.load_dataset(dataset, config)
    except Exception as error:  # of many kinds: no network, no such data set, no such configuration
        raise StateformError(f"cannot load the data set {dataset!r} ({config}): {error}") from error
    names = {"train": "train", "valid": "validation", "test": "test"}
    require("train" in found, f"{dataset} has the splits {', '.join(found)}; expected train among them")
    columns = found["train"].column_names
    require(column in columns, f"{dataset} has the columns {', '.join(columns)}; there is no {column!r}")
    if all(name in found for name in names.values()):
        return {s: np.frombuffer("".join(found[names[s]][column]).encode(), np.uint8) for s in SPLITS}
    return parts("".join(found["train"][column]).encode())
