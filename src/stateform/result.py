"""What prints itself with rich: in a terminal in colour and at its width, as plain text everywhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

WIDE = 200
"""Columns where the output is no terminal: a table's row stays one line, to be searched."""


class Printed:
    """A result with `__rich_console__`: `str` of it is the same text, 80 columns wide."""

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        raise NotImplementedError

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def show_wide(thing: Printed) -> None:
    """Print to standard output; unbroken lines where that is no terminal (and COLUMNS does not say otherwise)."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)
    console.print(thing)
