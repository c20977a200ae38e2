"""The one form of a result: a dict, JSON, a text in a terminal, a page, a cell of a notebook.

Also here: what every study notes first (`header`), and how it reports progress (`Steps`, `until_interrupted`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import cell, dig, visible
from .report.wording import TOKEN

if TYPE_CHECKING:
    from .report.page import Page

WIDE = 200
"""Columns where the output is no terminal: a table's row stays one line, to be searched."""
Progress = Callable[[str, int, int], None]
"""Called with the name of a step, the steps done, and the steps in all."""


class Result:
    """A result: `print` it, `.to_dict()`, `.save_json(path)`. Its `str` is what is printed, 80 columns wide."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts, ready for JSON."""
        raise NotImplementedError

    def save_json(self, path: str | Path) -> None:
        """Write the numbers, whole or not at all."""
        from .files import write_json  # torch is not needed until now

        write_json(Path(path), self.to_dict())

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        raise NotImplementedError

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


class Paged(Result):
    """A result that is a page, too: `.html()`, `.save_html(path)`. A notebook shows the page."""

    def page(self) -> Page:
        """Give the content of the page."""
        raise NotImplementedError

    def html(self, plotlyjs: str = "inline") -> str:
        """Write one page with interactive figures; `plotlyjs` says where their library is, see `report.page.render`."""
        from .report.page import render  # slow to import, and not needed until now

        page = self.page()
        excerpt = str(dig(page.result, "text", "excerpt") or "")
        created = str(page.result.get("created") or "")
        unit = str(dig(page.result, "data", "unit") or TOKEN)
        return render(page, plotlyjs, made=conditions(page.result), created=created, excerpt=excerpt, unit=unit)

    def save_html(self, path: str | Path, plotlyjs: str = "inline") -> None:
        """Write the page, whole or not at all; "directory" puts its plotting library into a file beside it."""
        from .report.write import write_page  # torch is not needed until now

        write_page(Path(path), self.html, plotlyjs)

    def _repr_html_(self) -> str:
        return cell(self.html)


@dataclass
class Record(Result):
    """A result that is kept as a dict, which grows as the work goes on."""

    result: dict[str, Any]

    @property
    def complete(self) -> bool:
        """True if the work ended; an interrupted one holds what was finished."""
        return bool(self.result["complete"])

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts."""
        return self.result


def header(device: str = "cpu") -> dict[str, Any]:
    """Say which version found something, when, and on what machine."""
    from .machine import machine, stateform_version  # torch is not needed until now

    created = datetime.now().isoformat(timespec="seconds")
    return {"stateform": stateform_version(), "created": created, "machine": machine(device)}


def conditions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name the settings and the machine behind a result, for the foot of its page."""
    settings, machine = result.get("settings") or {}, result.get("machine") or {}
    limit = settings.get("memory_limit_gb")
    lengths_asked = ", ".join(str(T) for T in settings.get("lengths") or [])
    found = [
        ("Model width", settings.get("d_model")),
        ("Lengths", lengths_asked),
        ("Batch", settings.get("batch")),
        ("Timed in", settings.get("dtype")),
        ("Seed", settings.get("seed")),
        ("Memory limit", None if limit is None else f"{limit:g} GB"),
        ("Processor", machine.get("cpu")),
        ("Device", machine.get("device")),
        ("Threads", machine.get("threads")),
        ("torch", machine.get("torch")),
        ("Python", machine.get("python")),
        ("Stateform", result.get("stateform")),
        ("Made", str(result.get("created") or "").replace("T", " ")),
    ]
    return [(name, visible(str(value))) for name, value in found if value not in (None, "")]


class Steps:
    """The steps of a piece of work, reported to a callback as each begins.

    Args:
        on_progress: called with a step, the number done and the number in all; None: nothing is reported.
        total: the number of steps.
    """

    def __init__(self, on_progress: Progress | None, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0

    def __call__(self, what: str) -> None:
        """Begin a step."""
        self._tell(what)
        self.done += 1

    def end(self) -> None:
        """Say that the work is over, all of it done or not."""
        self.done = self.total
        self._tell("done")

    def _tell(self, what: str) -> None:
        if self.on_progress is not None:
            self.on_progress(what, self.done, self.total)


@contextmanager
def until_interrupted(result: dict[str, Any]) -> Iterator[None]:
    """Mark a result as complete at the end of the block. After Ctrl-C it is not, and holds what was finished."""
    try:
        yield
        result["complete"] = True
    except KeyboardInterrupt:
        pass


def show_wide(thing: Result) -> None:
    """Print to standard output. Where that is no terminal and COLUMNS is not set, lines are not broken."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)
    console.print(thing)
