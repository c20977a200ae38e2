"""The text that is read where none is given, and any other."""

from __future__ import annotations

from pathlib import Path

from ._errors import StateformError, require


def read_text(path: str | Path | None) -> tuple[str, bytes]:
    """Where a text comes from, and its bytes; without a path, the standard library's own documentation.

    Raises:
        StateformError: if the file cannot be read or is empty.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "Python's own documentation (pydoc_data.topics)", "\n\n".join(topics.values()).encode()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateformError(f"cannot read the text {path}: {error.strerror or error}") from None
    require(len(data) > 0, f"the text {path} is empty; give a file with at least two bytes")
    return str(path), data
