"""The application, and what its commands share: a progress bar, files to write, exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .. import __version__
from .._errors import require
from ..analyze import Analysis
from ..compare import Comparison, writable

app = typer.Typer(
    help="Sequence layers (attention, state-space models, recurrent networks) as one dynamical system.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        typer.echo(f"stateform {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Bar:
    """A progress bar on stderr, quiet where that is no terminal."""

    def __init__(self, total: int = 1) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:<36.36}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("starting", total=total)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=what, completed=done, total=total)


def check_writable(html: Path | None, json: Path | None) -> None:
    """Raise unless both files can be written."""
    for path in (html, json):
        if path is not None:
            writable(path)
    same = html is not None and json is not None and html.resolve() == json.resolve()
    require(not same, f"--html and --json name one file, {html}; give two")


def give(found: Comparison | Analysis, html: Path | None, json: Path | None) -> None:
    """Print what was found, write it, and say where it is; exit code 130 if it was interrupted."""
    Console().print(found)
    if html is not None:
        found.save_html(html)
        typer.echo(f"Report: {html.resolve()}")
    if json is not None:
        found.save_json(json)
        typer.echo(f"Numbers: {json.resolve()}")
    if not found.complete:
        typer.echo("Interrupted: this is what was finished.", err=True)
        raise typer.Exit(130)
