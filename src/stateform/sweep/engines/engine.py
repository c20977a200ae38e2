"""The interface of an engine, and the events by which it reports on a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..rows import Run


@dataclass(frozen=True)
class Event:
    """News of a run. By kind, `value` is its outcome, why it failed, how its process died, or its progress."""

    run: Run
    kind: Literal["done", "failed", "crashed", "progress"]
    value: Any


class Engine(Protocol):
    """The interface of what computes runs."""

    @property
    def free(self) -> int:
        """Count the runs that can be started now."""

    @property
    def busy(self) -> int:
        """Count the runs that are being computed."""

    def start(self, run: Run) -> None:
        """Begin a run."""

    def wait(self, seconds: float) -> list[Event]:
        """Wait for events, at most `seconds`, and give them."""

    def stop(self) -> None:
        """End everything, also the runs that are being computed."""
