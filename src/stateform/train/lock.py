"""A lock, so that one process at a time trains in a folder. The system frees it when its holder ends or is killed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

from ..errors import StateformError

LOCK = ".lock"
"""The file that is locked; it says who holds it."""
PATIENCE = 5.0
"""Seconds to wait for the lock: a process that was killed may take a moment to be gone."""


class Lock:
    """The lock of a folder: `take` it once the folder exists; the end of `with Lock(folder)` frees it.

    Args:
        folder: which; None: there is nothing to lock, and `take` does nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / LOCK
        self.handle: int | None = None

    def take(self) -> None:
        """Take the lock if this process does not have it.

        Raises:
            StateformError: another process has it, or nothing can be written in the folder.
        """
        if self.path is None or self.handle is not None:
            return
        until = time.monotonic() + PATIENCE
        while not self._taken(self.path):
            if time.monotonic() > until:
                raise StateformError(
                    f"{self.path.parent} is in use by another training ({_holder(self.path)}); wait for it, or choose "
                    "another folder"
                )
            time.sleep(0.05)

    def _taken(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StateformError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
        # Its last holder may have deleted the file between our opening and our locking it.
        if not _locked(handle) or not _is_still(path, handle):
            os.close(handle)
            return False
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.handle = handle
        return True

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None and self.handle is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self.handle)
            self.handle = None


def _locked(handle: int) -> bool:
    """True if this process holds the lock now, or the disk has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        print("stateform: this disk has no locks; take care that one training alone writes there", file=sys.stderr)
    return True


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "it does not say which"
    except OSError:
        return "it does not say which"
