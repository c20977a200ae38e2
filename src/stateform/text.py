"""What is read from outside: texts, text files of the user, JSON and TOML. What is wrong with one is said in a line."""

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
"""What the first bytes of a text file say of its encoding."""


def read_text(path: str | Path | None) -> tuple[str, bytes]:
    """Where a text comes from, and its bytes; without a path, the standard library's own documentation.

    Raises:
        StateformError: if the file cannot be read or is empty.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "Python's own documentation (pydoc_data.topics)", "\n\n".join(topics.values()).encode()
    data = read_bytes(path, "the text ")
    require(len(data) > 0, f"the text {path} is empty; give a file with at least two bytes")
    return str(path), data


def read_bytes(path: str | Path, what: str = "") -> bytes:
    """The bytes of a file; a StateformError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StateformError(f"cannot read {what}{path}: {error.strerror or error}") from None


def decoded(data: bytes, what: str | Path) -> str:
    """A text file of the user's as a string: UTF-8, or what its byte-order mark says, which is left out. The ends of
    its lines are as they are.
    """
    mark, encoding = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise StateformError(
            f"{what} is no text in {encoding.upper()}: byte {error.start + len(mark)} is "
            f"{error.object[error.start]:#04x}; save it in UTF-8"
        ) from None


def parse_json(data: str | bytes, what: str | Path, fault: str = "is no JSON") -> Any:
    """What a JSON text holds.

    Raises:
        StateformError: a text that is no JSON, is nested too deeply, or holds a whole number of more than 64 bits.
    """
    text = decoded(data, what) if isinstance(data, bytes) else data
    return _parsed(json.loads, text, what, f"{what} {fault}")


def parse_toml(data: str | bytes, what: str | Path) -> dict[str, Any]:
    """What a TOML text holds. Raises StateformError as `parse_json` does."""
    text = decoded(data, what) if isinstance(data, bytes) else data
    found: dict[str, Any] = _parsed(tomllib.loads, text, what, f"cannot read {what} as TOML")
    return found


def _parsed(parse: Callable[[str], Any], text: str, what: str | Path, fault: str) -> Any:
    try:
        values = parse(text)
        _check_numbers(values, what)
    except RecursionError:
        raise StateformError(f"{fault}: it is nested too deeply") from None
    except StateformError:
        raise
    except ValueError as error:
        raise StateformError(f"{fault}: {error}") from None
    return values


def _check_numbers(values: Any, what: str | Path) -> None:
    """Raise if there is a whole number of more than 64 bits anywhere in plain values."""
    if isinstance(values, int) and values.bit_length() > BITS:
        raise StateformError(f"{what} holds a whole number of {values.bit_length()} bits; expected {BITS} at most")
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_numbers(value, what)
