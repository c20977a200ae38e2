"""Files that are whole or not there at all, also after a loss of power, and JSON as others may have left it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from .errors import StateformError, require
from .text import parse_json

ROOM = 10**7
"""Bytes that a page with its figures may take."""
DAMAGED = "is damaged, no JSON"
"""The error text for a file that was written here as JSON, and is none now."""


class DamagedError(StateformError):
    """A file exists, but does not hold what was written."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, then a rename. Both are on the disk on return.

    Raises:
        StateformError: a folder of that name, a full disk, a place where nothing can be written.
    """
    require(not os.path.isdir(path), f"cannot write {path}: it is a folder; name a file in it")
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}")  # shortened, as systems limit names
    try:
        if os.path.exists(path) and not path.is_file():  # a pipe or a terminal cannot be replaced by a file
            path.write_bytes(data)
            return
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a loss of power may leave the name without the content
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise StateformError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}; give a path in a folder you can "
            "write to"
        ) from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def is_half_written(path: Path) -> bool:
    """True if a kill left it: the temporary file of a write that `write_atomically` did not end."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name) is not None and path.is_file()


def writable(path: str | Path) -> Path:
    """Give the path, if a file can be written there.

    Raises:
        StateformError: if not, and why.
    """
    path = Path(path)
    require(not os.path.isdir(path), f"cannot write {path}: it is a folder; name a file in it")
    require(os.path.isdir(path.parent), f"cannot write {path}: there is no folder {path.parent}")
    free = shutil.disk_usage(path.parent).free
    room = free >= ROOM or (os.path.exists(path) and not path.is_file())  # a pipe or a terminal takes no room
    require(room, f"cannot write {path}: {free:,} bytes are free on that disk, {ROOM:,} may be needed; make room")
    existed = os.path.exists(path)
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise StateformError(f"cannot write {path}: {error.strerror or error}") from None
    if not existed:
        path.unlink()
    return path


def rename_durably(draft: str | Path, path: Path) -> None:
    """Rename a finished file. Its content is on the disk before its new name is, should the power fail between."""
    with open(draft, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
    _sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; they are on the disk on return.

    Raises:
        StateformError: a place where there can be none.
    """
    try:
        new = [part for part in (folder, *folder.parents) if not os.path.exists(part)]
        folder.mkdir(parents=True, exist_ok=True)
        for part in new:
            _sync_folder(part.parent)
    except (OSError, ValueError) as error:
        raise StateformError(
            f"cannot make the folder {folder}: {getattr(error, 'strerror', None) or error}; name one where you may "
            "write"
        ) from None


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets a folder be opened (Windows sees to it itself)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks have no such call
            raise
    finally:
        os.close(handle)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write plain values, whole or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        StateformError: a file that cannot be read; DamagedError if it is no JSON, or no table.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StateformError(f"cannot read {path}: {error.strerror or error}") from None
    values = parse_json(data, path, DAMAGED, kind=DamagedError, bits=None)
    if not isinstance(values, dict):
        raise DamagedError(f"{path} holds {type(values).__name__}; expected a table")
    return values
