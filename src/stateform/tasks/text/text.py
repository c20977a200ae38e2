"""The next byte of a text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import StateformError, require
from ...text import read_text
from ..base import Split, register_task
from .bytes import Bytes, parts


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
    """Read the three parts of a file, which is read again only when it has changed."""
    try:
        stat = None if path is None else Path(path).stat()
    except OSError as error:
        raise StateformError(f"cannot read the text {path}: {error.strerror or error}") from None
    return _read_parts(path, None if stat is None else (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4)
def _read_parts(path: str | None, version: tuple[int, int] | None) -> dict[Split, np.ndarray]:
    return parts(read_text(path)[1])
