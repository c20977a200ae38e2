"""The application, and what its commands share: a progress bar, files to write, exit codes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .. import __version__
from .interrupt import interruptible

F = TypeVar("F", bound=Callable[..., None])

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


def command(name: str) -> Callable[[F], F]:
    """Decorate a command that needs the library: all of it is imported before anything is begun."""

    def add(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> None:
            importlib.import_module("stateform.public")
            interruptible()
            function(*args, **options)

        app.command(name)(run)
        return function

    return add


Plotlyjs = Annotated[
    str,
    typer.Option(
        "--plotlyjs",
        help="Where the page has its plotting library (5 MB): inline, or directory, in one plotly.min.js beside it.",
    ),
]


Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Numbers to read: .npy [T,d], .csv (a row for each step; the first may hold names) or .wav.",
    ),
]
Project = Annotated[
    bool,
    typer.Option("--project", help="Map numbers of another width than the layers' by a fixed random matrix."),
]


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


def check_writable(plotlyjs: str = "inline", **files: Path | None) -> None:
    """Raise unless every file can be written and no two are one; keywords are the options that name them."""
    from ..errors import require
    from ..files import writable
    from ..report.write import library_of

    html = files.get("html")
    beside = library_of(html or Path("page.html"), plotlyjs)
    files["plotlyjs"] = None if html is None else beside
    options: dict[Path, str] = {}
    for option, path in files.items():
        if path is not None:
            writable(path)
            other = options.setdefault(path.resolve(), option)
            require(other == option, f"--{other} and --{option} name one file, {path}; give two")


def give(show: Callable[[], None], *files: tuple[str, Path | None, Callable[[Path], None]]) -> None:
    """Write the files, then print. In this order, as printing may fail: a pipe closes, a terminal lacks a letter.

    Args:
        show: prints what was found.
        files: for each, its name in the line that says where it is ("": no line), its path (None: it is not wanted),
            and the function that writes it.

    Raises:
        typer.Exit: with 1, at the end, if a file could not be written; the others are, and the error is printed.
    """
    from ..errors import StateformError

    written, failed = [], []
    for name, path, save in files:
        if path is not None:
            try:
                save(path)
                written += [f"{name}: {path.resolve()}"] if name else []
            except (StateformError, ImportError) as error:  # ImportError: of a library that draws
                failed.append(f"No {name.lower() or path}: {error}")
    show()
    for line in written:
        typer.echo(line)
    for line in failed:
        typer.echo(line, err=True)
    if failed:
        raise typer.Exit(1)


def end(complete: bool) -> None:
    """Leave with exit code 130 if the work was interrupted."""
    if not complete:
        typer.echo("Interrupted: this is what was finished.", err=True)
        raise typer.Exit(130)
