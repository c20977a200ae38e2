"""Reading from outside: texts, text files of the user, JSON and TOML. A fault in one is an error of one line."""

from __future__ import annotations

import codecs
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import StateformError, require

BITS = 64
"""A whole number in a file of settings has no more."""
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
"""Byte-order marks, and the encodings that they stand for."""
_NO_TEXT = (
    (b"\x93NUMPY", "an array of numbers"),
    (b"RIFF", "a recording or another RIFF file"),
    (b"PK\x03\x04", "a zip archive"),
)
"""How files begin whose bytes would be read as a text without a warning."""


def read_text(path: str | Path | None) -> tuple[str, bytes]:
    """Read a text: its name and its bytes. Without a path, the documentation of Python's standard library is read.

    Raises:
        StateformError: if the file cannot be read or is empty.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "Python's own documentation (pydoc_data.topics)", "\n\n".join(topics.values()).encode()
    data = read_bytes(path, "the text ")
    require(len(data) > 0, f"the text {path} is empty; give a file with at least two bytes")
    other = next((what for mark, what in _NO_TEXT if data.startswith(mark)), None)
    require(other is None, f"{path} is {other}, not a text; expected text, of which every byte is read as a token "
            "(layers take numbers as data, on the command line --data)")  # fmt: skip
    return str(path), data


def read_bytes(path: str | Path, what: str = "") -> bytes:
    """Read the bytes of a file. Raises StateformError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StateformError(f"cannot read {what}{path}: {error.strerror or error}") from None


def decoded(data: bytes, what: str | Path) -> str:
    """Decode a text file of the user: UTF-8, or what its byte-order mark says. The mark is left out, line ends stay."""
    mark, encoding = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise StateformError(
            f"{what} is no text in {encoding.upper()}: byte {error.start + len(mark)} is "
            f"{error.object[error.start]:#04x}; save it in UTF-8"
        ) from None


def parse_json(
    data: str | bytes, what: str | Path, fault: str = "is no JSON", *, kind: type[StateformError] = StateformError,
    bits: int | None = BITS,
) -> Any:  # fmt: skip
    """Read a JSON text.

    Args:
        data: the text, or the bytes of a file.
        what: names it in the error.
        fault: the words of the error if it is no JSON.
        kind: the class of the error.
        bits: how many a whole number may have; None: any number of them.

    Raises:
        StateformError: a text that is no JSON, is nested too deeply, or holds a whole number that is too large.
    """
    return _parsed(json.loads, data, what, f"{what} {fault}", kind, bits)


def parse_toml(data: str | bytes, what: str | Path) -> dict[str, Any]:
    """Read a TOML text. Raises StateformError as `parse_json` does."""
    found: dict[str, Any] = _parsed(tomllib.loads, data, what, f"cannot read {what} as TOML", StateformError, BITS)
    return found


class TooLargeError(StateformError):
    """A whole number has more bits than anything here can be."""


def _parsed(
    parse: Callable[[str], Any], data: str | bytes, what: str | Path, fault: str, kind: type[StateformError],
    bits: int | None,
) -> Any:  # fmt: skip
    try:
        values = parse(decoded(data, what) if isinstance(data, bytes) else data)
        if bits is not None:
            _check_numbers(values, what, bits)
    except RecursionError:
        raise kind(f"{fault}: it is nested too deeply") from None
    except StateformError as error:
        raise (error if isinstance(error, kind) else kind(str(error))) from None
    except ValueError as error:
        raise kind(f"{fault}: {error}") from None
    return values


def _check_numbers(values: Any, what: str | Path, bits: int) -> None:
    """Raise if there is a whole number of more bits anywhere in plain values."""
    if isinstance(values, int) and values.bit_length() > bits:
        raise TooLargeError(f"{what} holds a whole number of {values.bit_length()} bits; expected {bits} at most")
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_numbers(value, what, bits)
