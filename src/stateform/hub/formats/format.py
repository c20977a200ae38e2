"""A format of files: how it is recognised, and the function that reads it. Each module here registers its own."""

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
        read: reads the model of a file.
        begins: True if a file that begins with these 16 bytes is certainly of this format.
        fits: True if a file may be of this format; asked only if no format's `begins` is true.
    """

    read: Reader
    begins: Callable[[bytes], bool]
    fits: Callable[[Path], bool]


def never(_: object) -> bool:
    """Answer False, for a format that is not recognised in this way."""
    return False


def reads(
    name: str, *, begins: Callable[[bytes], bool] = never, fits: Callable[[Path], bool] = never
) -> Callable[[Reader], Reader]:
    """Register the function that reads a format, by decorating it; see `Format` for the other arguments."""

    def keep(read: Reader) -> Reader:
        FORMATS[name] = Format(read, begins, fits)
        return read

    return keep
