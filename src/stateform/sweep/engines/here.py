"""The engine that computes in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from ..rows import Run
from .engine import Event
from .runner import Runner, in_words, note, trained


class Here:
    """An engine that computes one run at a time, in this process."""

    def __init__(
        self, folder: Path, runner: Runner = trained, on_progress: Callable[[Event], None] | None = None
    ) -> None:
        self.folder, self.runner, self.on_progress = folder, runner, on_progress
        self.run: Run | None = None

    @property
    def free(self) -> int:
        return int(self.run is None)

    @property
    def busy(self) -> int:
        return int(self.run is not None)

    def start(self, run: Run) -> None:
        self.run = run

    def wait(self, seconds: float) -> list[Event]:
        run = self.run
        assert run is not None

        def tell(what: str, done: int, total: int) -> None:
            if self.on_progress is not None:
                self.on_progress(Event(run, "progress", (what, done, total)))

        try:
            return [Event(run, "done", self.runner(run.experiment, self.folder / "runs" / run.key, tell))]
        except Exception as error:
            note(self.folder, run, traceback.format_exc())
            return [Event(run, "failed", in_words(error))]
        finally:
            self.run = None

    def stop(self) -> None:
        pass
