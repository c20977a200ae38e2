"""Commands that look at layers and models: compare, analyze, check, zoo, show, names, generate."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..result import show_wide
from . import listing
from .common import Bar, Data, Plotlyjs, Project, app, check_writable, command, end, give

QUESTIONS = ", ".join(listing.questions())


@command("compare")
def compare_command(
    layers: Annotated[
        list[str],
        typer.Argument(help="Names, name(option=value), path/file.py:Class, or FOLDER:NUMBER of a saved model."),
    ],
    text: Annotated[
        Path | None, typer.Option(help="A file; its bytes are the tokens. Default: Python's documentation.")
    ] = None,
    data: Data = None,
    project: Project = False,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    plotlyjs: Plotlyjs = "inline",
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
    """Put layers side by side on a text or numbers: what they are, whether forms agree, what they cost and remember."""
    from ..studies.compare import compare

    check_writable(plotlyjs, html=html, json=json)
    with Bar() as bar:
        found = compare(
            layers, text=text, data=data, project=project, d_model=d_model, n_heads=n_heads, d_state=d_state,
            max_length=max_length, dtype=dtype, memory_limit_gb=memory_limit, seed=seed, repeats=repeats,
            on_progress=bar,
        )  # fmt: skip
    page = partial(found.save_html, plotlyjs=plotlyjs)
    files = ("Report", html, page), ("Numbers", json, found.save_json)
    give(lambda: Console().print(found), *files)
    end(found.complete)


@command("analyze")
def analyze_command(
    thing: Annotated[
        str, typer.Argument(help="A name, name(option=value), path/file.py:Class, or the folder of a saved model.")
    ],
    text: Annotated[
        Path | None, typer.Option(help="A file; its bytes are the tokens. Default: Python's documentation.")
    ] = None,
    data: Data = None,
    project: Project = False,
    only: Annotated[list[str] | None, typer.Option(help=f"One question alone (may be repeated): {QUESTIONS}.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    plotlyjs: Plotlyjs = "inline",
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
    d_model: Annotated[int, typer.Option(help="Width of a layer that is built here.")] = 64,
    n_heads: Annotated[int | None, typer.Option(help="Its heads, if it takes that.")] = None,
    d_state: Annotated[int | None, typer.Option(help="Its keys per head, if it takes that.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of the text, or steps, that are read.")] = 1024,
    dtype: Annotated[str, typer.Option(help="In which all is computed: float64, float32 or bfloat16.")] = "float64",
    seed: Annotated[int, typer.Option(help="Of the weights of a layer that is built here.")] = 0,
) -> None:
    """Look into a layer, or every layer of a model, on a text or numbers: memory, state, what it can express."""
    from ..studies.analyze import analyze

    check_writable(plotlyjs, html=html, json=json)
    wanted = [name for names in only or [] for name in names.split(",") if name]
    with Bar() as bar:
        found = analyze(
            thing, text, data=data, project=project, only=wanted, d_model=d_model, n_heads=n_heads, d_state=d_state,
            max_length=max_length, dtype=dtype, seed=seed, on_progress=bar,
        )  # fmt: skip
    page = partial(found.save_html, plotlyjs=plotlyjs)
    files = ("Report", html, page), ("Numbers", json, found.save_json)
    give(lambda: Console().print(found), *files)
    end(found.complete)


@command("check")
def check_command(
    layers: Annotated[
        list[str],
        typer.Argument(help="Names, files path/file.py:Class, `all`, or pretrained models (folder or hub)."),
    ],
    data: Data = None,
    project: Project = False,
    d_model: Annotated[int, typer.Option(help="Width of the layers.")] = 32,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="More shapes, sequences of up to 1000 tokens.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
) -> None:
    """Check the contract: every form, split, padding and packing gives the same outputs, states and gradients.

    A pretrained model is checked against its own forward: continued from its cache, padded, packed.
    """
    from ..architectures import build, names
    from ..contract.check import check
    from ..contract.outcome import Report
    from ..errors import require
    from ..hub import open_model
    from ..series import read_series
    from ..studies.subject import is_folder

    wanted = names() if layers == ["all"] else layers
    series = None if data is None else read_series(data)
    for name in wanted:
        fits = series is None or not is_folder(name)
        require(fits, f"{name} is a pretrained model, which reads tokens; --data is for layers")
        if not is_folder(name):
            build(name, d_model=d_model)  # before any work, so that an error comes first
    reports: list[Report] = []
    try:
        with Bar() as bar:
            for i, name in enumerate(wanted):

                def on_progress(part: str, i: int = i, name: str = name) -> None:
                    bar(f"{name}: {part}", i, len(wanted))

                thing = open_model(name).model if is_folder(name) else name
                sizes = {"d_model": d_model} if isinstance(thing, str) else {}
                report = check(
                    thing, data=series, project=project, seed=seed, exhaustive=exhaustive, on_progress=on_progress,
                    **sizes,
                )  # fmt: skip
                reports.append(report)
                bar.progress.console.file.flush()
                typer.echo(str(report))
    except KeyboardInterrupt:
        typer.echo(f"Interrupted after {len(reports)} of {len(wanted)} layers.", err=True)
        raise typer.Exit(130) from None
    if not all(reports):
        raise typer.Exit(1)


@command("zoo")
def zoo_command(
    layers: Annotated[
        list[str] | None, typer.Argument(help="Names, name(option=value) or path/file.py:Class; default: all.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Of this family alone, e.g. ssm.")] = None,
    d_model: Annotated[int, typer.Option(help="Width at which sizes are given.")] = 64,
    n_heads: Annotated[int | None, typer.Option(help="Heads, for the layers that take it.")] = None,
    d_state: Annotated[int | None, typer.Option(help="Keys per head, for the layers that take it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table in Markdown.")] = False,
    into: Annotated[
        Path | None, typer.Option(help="Put that table into this file, between <!-- zoo --> and <!-- /zoo -->.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """List the architectures: transition, read, state, forms, what each can express, paper."""
    from ..errors import require
    from ..studies.zoo import insert_into, zoo

    check_writable(into=into, json=json)
    require(into is None or into.is_file(), f"there is no file {into}; name one that has the marks")
    if into is not None:
        insert_into(into, None)  # checks the marks before any work
    found = zoo(layers or None, family=family, d_model=d_model, n_heads=n_heads, d_state=d_state)

    def show() -> None:
        if markdown:
            typer.echo(found.to_markdown(), nl=False)
        elif into is None:
            show_wide(found)

    give(show, ("", into, lambda path: insert_into(path, found.to_markdown())), ("", json, found.save_json))


@command("show")
def show_command(
    layer: Annotated[str, typer.Argument(help="A name, name(option=value) or path/file.py:Class.")],
    d_model: Annotated[int, typer.Option(help="Width at which sizes are given.")] = 64,
) -> None:
    """Show one architecture: equations, parts, options, parameters, what it can express, an example."""
    from ..studies.card import show

    show_wide(show(layer, d_model=d_model))


@command("generate")
def generate_command(
    folder: Annotated[Path, typer.Argument(help="What LanguageModel.save_pretrained wrote.")],
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens (bytes) at most.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="Below 1: the likely ones more often. Default: 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only from so many of the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only from the likeliest that sum to so much.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Compute all anew for each token.")] = False,
) -> None:
    """Continue a text with a language model of bytes; what follows is printed as it comes."""
    from ..errors import require
    from ..models import LanguageModel, continue_text
    from ..text import read_text

    require((prompt is None) != (prompt_file is None), "give --prompt or --prompt-file, one of them")
    drawn = [x for x in (temperature, top_k, top_p, seed) if x is not None]
    require(not (greedy and drawn), "--greedy draws nothing; leave out --temperature, --top-k, --top-p and --seed")
    given = prompt if prompt_file is None else read_text(prompt_file)[1]
    assert given is not None
    try:
        pieces = continue_text(
            LanguageModel.from_pretrained(folder), given, max_new_tokens=max_new_tokens, top_k=top_k, top_p=top_p,
            temperature=1.0 if temperature is None and not greedy else temperature, seed=seed, use_cache=not no_cache,
        )  # fmt: skip
        for piece in pieces:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        typer.echo()
        typer.echo("Interrupted: this is what was generated.", err=True)
        raise typer.Exit(130) from None
    typer.echo()


@app.command("names")
def names_command() -> None:
    """List the layers that are known."""
    typer.echo("\n".join(listing.layers()))
