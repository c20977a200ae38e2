"""The command line: each command is a function that a notebook can call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import __version__
from ._errors import StateformError, require
from .check import Report, check
from .compare import compare, writable
from .layers import build, names

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


class _Bar:
    """A progress bar on stderr, quiet where that is no terminal."""

    def __init__(self, total: int = 1) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:<36.36}"), BarColumn(bar_width=24), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("starting", total=total)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=what, completed=done, total=total)


@app.command("compare")
def compare_command(
    layers: Annotated[list[str], typer.Argument(help="Names, name(option=value) or path/file.py:Class.")],
    text: Annotated[
        Path | None, typer.Option(help="A file; its bytes are the tokens. Default: Python's documentation.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
    d_model: Annotated[int, typer.Option(help="Width of the layers.")] = 64,
    n_heads: Annotated[int | None, typer.Option(help="Heads, for the layers that take it.")] = None,
    d_state: Annotated[int | None, typer.Option(help="Keys per head, for the layers that take it.")] = None,
    max_length: Annotated[int, typer.Option(help="The longest sequence timed.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the timings: float32, bfloat16 or float64.")] = "float32",
    memory_limit: Annotated[float, typer.Option(help="GB; a form that is estimated to need more is left out.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights and draws.")] = 0,
    repeats: Annotated[int, typer.Option(help="Runs per time.")] = 5,
) -> None:
    """Put layers side by side on a text: what they are, whether their forms agree, what they cost and remember."""
    for path in (html, json):
        if path is not None:
            writable(path)
    same = html is not None and json is not None and html.resolve() == json.resolve()
    require(not same, f"--html and --json name one file, {html}; give two")
    with _Bar() as bar:
        found = compare(
            layers, text=text, d_model=d_model, n_heads=n_heads, d_state=d_state, max_length=max_length, dtype=dtype,
            memory_limit_gb=memory_limit, seed=seed, repeats=repeats, on_progress=bar,
        )  # fmt: skip
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


@app.command("check")
def check_command(
    layers: Annotated[list[str], typer.Argument(help="Names, files path/file.py:Class, or `all`.")],
    d_model: Annotated[int, typer.Option(help="Width of the layers.")] = 32,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="More shapes, sequences of up to 1000 tokens.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
) -> None:
    """Check the contract: every form, split, padding and packing gives the same outputs, states and gradients."""
    wanted = names() if layers == ["all"] else layers
    for name in wanted:
        build(name, d_model=d_model)  # before any work: what cannot be made is refused
    reports: list[Report] = []
    try:
        with _Bar() as bar:
            for i, name in enumerate(wanted):

                def on_progress(part: str, i: int = i, name: str = name) -> None:
                    bar(f"{name}: {part}", i, len(wanted))

                report = check(name, d_model=d_model, seed=seed, exhaustive=exhaustive, on_progress=on_progress)
                reports.append(report)
                bar.progress.console.file.flush()
                typer.echo(str(report))
    except KeyboardInterrupt:
        typer.echo(f"Interrupted after {len(reports)} of {len(wanted)} layers.", err=True)
        raise typer.Exit(130) from None
    if not all(reports):
        raise typer.Exit(1)


@app.command("names")
def names_command() -> None:
    """List the layers that are known."""
    typer.echo("\n".join(names()))


def main() -> None:
    """Entry point: an error that is the user's to mend is one line and exit code 2, never a traceback."""
    try:
        app()
    except StateformError as error:
        print(f"stateform: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stateform: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
