"""What an engine is, and what it tells of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..rows import Run


@dataclass(frozen=True)
class Event:
    """What became of a run: `value` is its outcome, why it failed, how its process died, or how far it is."""

    run: Run
    kind: Literal["done", "failed", "crashed", "progress"]
    value: Any


class Engine(Protocol):
    """What computes runs."""

    @property
    def free(self) -> int:
        """How many more runs can be started now."""

    @property
    def busy(self) -> int:
        """How many are being computed."""

    def start(self, run: Run) -> None:
        """Begin one."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened; waits for it, but not for longer."""

    def stop(self) -> None:
        """End everything, the runs that are being computed too."""
