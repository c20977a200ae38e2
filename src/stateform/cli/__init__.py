"""The command line: each command is a function that a notebook can call.

Its modules import nothing of the library until a command is called, so that `--help` needs no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from . import interrupt

if TYPE_CHECKING:
    from . import bench, learn, look, pretrained, sweep
    from .common import app

__all__ = ["app", "bench", "learn", "look", "main", "pretrained", "sweep"]


def __getattr__(name: str) -> Any:
    """Import the modules of commands when one is asked for; each adds its commands to `app`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {known: importlib.import_module(f".{known}", __name__) for known in __all__ if known not in _HERE}
    return importlib.import_module(".common", __name__).app if name == "app" else modules[name]


_HERE = ("app", "main")


def main() -> None:
    """Run the command line. An error that the user can mend is one line and exit code 2, never a traceback.

    Letters that the output cannot encode are replaced. Ctrl-C ends with exit code 130 and prints nothing.
    """
    ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ends and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt.leave)
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        __getattr__("app")()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError) as error:
        _refuse(error)
    finally:
        interrupt.interruptible()


def _refuse(error: OSError | ValueError) -> NoReturn:
    """Print in one line an error that the user can mend, or one of the system; other errors are ours, and raised."""
    from ..errors import StateformError  # imported already by the code that raised the error

    if not isinstance(error, StateformError | OSError):
        raise error
    try:
        sys.stdout.flush()
    except OSError:  # a full disk: drop the output, or Python would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        print(f"stateform: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
