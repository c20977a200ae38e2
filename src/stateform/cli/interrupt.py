"""Ctrl-C: before any work is begun it leaves at once, afterwards it is a KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn


def leave(*_: Any) -> NoReturn:
    """Leave at Ctrl-C while modules are imported: nothing was begun, and a traceback would show some import."""
    os._exit(130)


def interruptible() -> None:
    """Make Ctrl-C a KeyboardInterrupt again: from now on there is work that must be ended in order."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
