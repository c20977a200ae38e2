"""Commands for pretrained models: open, reduce."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import listing
from .common import Bar, Data, Plotlyjs, check_writable, command, end, give

QUESTIONS = ", ".join(listing.questions())
Name = Annotated[str, typer.Argument(help="A folder, a file of weights, or a repository of the Hugging Face hub.")]
Text = Annotated[Path | None, typer.Option(help="A file that the model reads. Default: Python's documentation.")]
Weights = Annotated[str, typer.Option(help="Dtype in which it is loaded and run: auto (as saved), float32, bfloat16.")]
Tokenizer = Annotated[str | None, typer.Option(help="`bytes`, or the folder or name of another than the model's own.")]
Revision = Annotated[str | None, typer.Option(help="Of the repository.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")]


def _check_read(text: Path | None, data: Path | None) -> bytes:
    """Read the text; or raise, before the model is opened, unless there are numbers that can be read."""
    from ..series import read_series, told_apart
    from ..text import read_text

    told_apart(text, data)
    if data is None:
        return read_text(text)[1]
    read_series(data)
    return b""


@command("open")
def open_command(
    model: Name,
    text: Text = None,
    data: Data = None,
    only: Annotated[list[str] | None, typer.Option(help=f"One question alone (may be repeated): {QUESTIONS}.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    plotlyjs: Plotlyjs = "inline",
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of the text that are read.")] = 512,
    dtype: Annotated[str, typer.Option(help="Of Systems and certificates: float64, float32 or bfloat16.")] = "float64",
    weights: Weights = "auto",
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Open a pretrained model: each layer as a System, the proof that it is the same function, and what it does."""
    from ..hub import open_model
    from ..studies.analyze import analyze, check_settings

    check_writable(plotlyjs, html=html, json=json)
    wanted = [name for names in only or [] for name in names.split(",") if name]
    check_settings(wanted, dtype, max_length)  # before any work
    _check_read(text, data)
    with Bar() as bar:
        bar(f"opening {model}", 0, 1)
        opened = open_model(
            model, dtype=weights, tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code
        )
        found = analyze(opened, text, data=data, only=wanted, max_length=max_length, dtype=dtype, on_progress=bar)
    page = partial(found.save_html, plotlyjs=plotlyjs)
    files = ("Report", html, page), ("Numbers", json, found.save_json)
    give(lambda: Console().print(found), *files)
    end(found.complete)
    if not all(row["certificate"]["ok"] for row in found.to_dict()["layers"] if "certificate" in row):
        raise typer.Exit(1)


@command("reduce")
def reduce_command(
    model: Name,
    tol: Annotated[float, typer.Option(help="The error allowed, above 0 and below 1.")] = 0.01,
    text: Text = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Save the smaller model in this folder, if weights hold it.")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Of this module alone (may be repeated).")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of the text that are read.")] = 256,
    weights: Weights = "auto",
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Reduce a model to as little state as an error allows, and measure on a text what that costs."""
    from ..errors import require
    from ..hub import open_model, reduce
    from ..hub.reduction import check_settings
    from ..models import SequenceModel

    check_settings(tol, max_length)
    read = _check_read(text, data)
    if out is not None:
        require(not out.is_file(), f"{out} is a file; --out names a folder")
        check_writable(out=out / "config.json")
    with Bar() as bar:
        bar(f"opening {model}", 0, 1)
        opened = open_model(
            model, dtype=weights, tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code
        )
        tokens = opened.tokens(read, max_length) if data is None else None
        found = reduce(opened.model, tol, tokens, data=data, layers=layers, max_length=max_length, on_progress=bar)
    smaller = found.model if found.written and isinstance(found.model, SequenceModel) else None
    files = [] if smaller is None else [("Saved", out, smaller.save_pretrained)]
    give(lambda: Console().print(found), *files)
    if out is not None and smaller is None:
        typer.echo("Nothing to save: no weights became fewer.")
    end(found.complete)
