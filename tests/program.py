"""The command line as a program that this process runs: what it imports was imported before.

`cli/test_cli.py` has what only a process of its own can show.
"""

from __future__ import annotations

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from stateform.cli import main


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def program(*words: object, cwd: Path | None = None, **environment: str) -> Ended:
    """Run `stateform` with these words, in a folder, with these variables of the environment; Ctrl-C interrupts it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
        ):
            patch.setattr(sys, "argv", ["stateform", *map(str, words)])
            for name, value in environment.items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            code = 0
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            return Ended(code, out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGINT, before)
