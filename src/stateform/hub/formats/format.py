"""A format of files: how it is told, and who reads it. Each file of this folder that has one registers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...models import LanguageModel

Reader = Callable[[Path], LanguageModel]

FORMATS: dict[str, Format] = {}
"""By name."""


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        read: gives the model of a file.
        begins: True if a file that begins with these 16 bytes is of it, for sure.
        fits: True if a file may be of it: asked where none begins so.
    """

    read: Reader
    begins: Callable[[bytes], bool]
    fits: Callable[[Path], bool]


def never(_: object) -> bool:
    """Answer no: for a format that is not told so."""
    return False


def reads(
    name: str, *, begins: Callable[[bytes], bool] = never, fits: Callable[[Path], bool] = never
) -> Callable[[Reader], Reader]:
    """Register the function that reads a format, by decorating it. How files are told is said in `Format`."""

    def keep(read: Reader) -> Reader:
        FORMATS[name] = Format(read, begins, fits)
        return read

    return keep
