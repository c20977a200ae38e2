"""open_file: a model in one file, whose format is recognised by its content."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import StateformError, require
from ...models import LanguageModel
from .format import FORMATS, Reader

_OTHERS = {
    b"GGUF": "a GGUF file of llama.cpp; sf.open_model reads it, by transformers",
    b"lmgg": "a file of an early ggml; convert the original model anew",
    b"tjgg": "a file of an early llama.cpp; open the original model instead",
    b"24ka": "a llama2.c file of version 1 or 2; export the model again with --version 0",
}
"""Formats that are recognised and refused: their first four bytes, and the text of the error."""


def open_file(path: str | os.PathLike[str]) -> LanguageModel:
    """Open the model in a file, in float32, ready to run: see `stateform.hub.formats` for the kinds.

    Nothing is unpickled but tensors (`torch.load(weights_only=True)`), and sizes are compared with that of the file
    before anything is allocated.

    Raises:
        StateformError: no such file; a file of another kind or version, quantised, cut short, or with parts that do
            not fit together; a pickle with more than weights.
    """
    file = Path(path)
    require(not file.is_dir(), f"{file} is a folder; expected one file (for a folder: sf.hub.open_model)")
    try:
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise StateformError(f"cannot read {file}: {error.strerror or error}") from None
    require(len(head) > 0, f"{file} is empty; expected a model")
    try:
        return _reader(file, head)(file)
    except OSError as error:
        raise StateformError(f"cannot read {file}: {error.strerror or error}") from None


def _reader(file: Path, head: bytes) -> Reader:
    for kind in FORMATS.values():
        if kind.begins(head):
            return kind.read
    for magic, what in _OTHERS.items():
        require(head[:4] != magic, f"{file} is {what}")
    require(
        head[8:9] != b"{",
        f"{file} seems to be a safetensors file, which holds no configuration; open the folder it came with",
    )
    found = next((kind for kind in FORMATS.values() if kind.fits(file)), None)
    *names, last = FORMATS
    if found is None:
        raise StateformError(
            f"{file} is of no kind that is known here: it begins with {head[:8].hex(' ')}; expected a "
            f"{', '.join(names)} or {last} file"
        )
    return found.read
