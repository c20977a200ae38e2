"""Ctrl-C, before there is work to be ended in order and after."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn


def leave(*_: Any) -> NoReturn:
    """Answer Ctrl-C while modules are imported: nothing was begun, and a traceback would be that of some import."""
    os._exit(130)


def interruptible() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again: there is work to be ended in order."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
