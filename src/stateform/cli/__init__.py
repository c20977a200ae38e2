"""The command line: each command is a function that a notebook can call."""

from __future__ import annotations

import sys

from .._errors import StateformError
from . import bench, learn, look, pretrained, sweep
from .app import app

__all__ = ["app", "bench", "learn", "look", "main", "pretrained", "sweep"]


def main() -> None:
    """Entry point: an error that is the user's to mend is one line and exit code 2, never a traceback."""
    try:
        app()
    except StateformError as error:
        print(f"stateform: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stateform: interrupted", file=sys.stderr)
        sys.exit(130)
