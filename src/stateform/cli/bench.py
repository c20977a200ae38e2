"""The command that measures: bench."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..result import show_wide
from . import listing
from .common import Bar, Plotlyjs, check_writable, command, give

if TYPE_CHECKING:
    from ..timing import Bench

_MODES = ",".join(listing.constant("timing/pair.py", "MODES"))


@dataclass(frozen=True)
class Usual:
    """Defaults of the command."""

    d_model: int = 768
    lengths: str = "512,2048"
    positions: str = "10,100000"
    repeats: int = 7


FULL, QUICK = Usual(), Usual(256, "256", "10", 3)


@command("bench")
def bench_command(
    layers: Annotated[
        list[str] | None, typer.Option(help="Pairs or layers, e.g. mamba2,softmax; default: every pair.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A pretrained model instead of layers (folder or hub): as it is, and in our forms."),
    ] = None,
    rivals: Annotated[
        list[str] | None,
        typer.Option(help="Packages to compare with: transformers, mambapy, torch, fla. Default: what is installed."),
    ] = None,
    modes: Annotated[list[str] | None, typer.Option(help=f"Default: {_MODES}.")] = None,
    lengths: Annotated[list[str] | None, typer.Option(help=f"Tokens of the sequences; default {FULL.lengths}.")] = None,
    positions: Annotated[
        list[str] | None, typer.Option(help=f"Tokens before a decoded one; default {FULL.positions}.")
    ] = None,
    d_model: Annotated[int | None, typer.Option(help=f"Width of the layers; default {FULL.d_model}.")] = None,
    repeats: Annotated[int | None, typer.Option(help=f"Rounds; default {FULL.repeats}.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    memory_limit: Annotated[float, typer.Option(help="GB; larger caches of keys and values are left out.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Narrow layers, short sequences, few rounds.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Only measure the forms on this machine, for what the form auto takes.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures here.")] = None,
    plotlyjs: Plotlyjs = "inline",
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
) -> None:
    """Time layers beside what one would take instead, with the same weights, in turns; differences are told first."""
    from ..errors import StateformError, require
    from ..timing import MODEL_MODES, MODES, bench

    if calibrate:
        _calibrate(device)
        return
    usual = QUICK if quick else FULL
    check_writable(plotlyjs, html=html, json=json)
    line = shlex.join(["stateform", *sys.argv[1:]])
    if model is not None:
        given = {"--layers": layers, "--rivals": rivals, "--positions": positions, "--d-model": d_model, "--html": html}
        extra = [name for name, value in given.items() if value is not None]
        require(not extra, f"{', '.join(extra)}: about layers, not about the pretrained model {model}; leave it out")
        length = max(numbers("--lengths", lengths, usual.lengths))
        rounds = usual.repeats if repeats is None else repeats
        _model(model, words(modes) or MODEL_MODES, length, rounds, device, dtype, seed, line, json)
        return

    def keep(found: Bench) -> None:
        found.result["command"] = line
        if json is not None:  # after every pair: a process that is killed has written what it measured
            with suppress(StateformError):  # reported at the end, when it is tried again
                found.save_json(json)

    with Bar() as bar:
        found = bench(
            words(layers), rivals=words(rivals), modes=words(modes) or MODES,
            lengths=numbers("--lengths", lengths, usual.lengths),
            positions=numbers("--positions", positions, usual.positions),
            d_model=usual.d_model if d_model is None else d_model,
            repeats=usual.repeats if repeats is None else repeats,
            device=device, dtype=dtype, seed=seed, memory_limit_gb=memory_limit, on_progress=bar, keep=keep,
        )  # fmt: skip
    found.result["command"] = line
    for name, why in found.failed.items():
        typer.echo(f"{name} failed: {why}", err=True)
    page = partial(found.save_html, plotlyjs=plotlyjs)
    give(lambda: show_wide(found), ("Numbers", json, found.save_json), ("Report", html, page))
    if not found.complete:
        typer.echo("Interrupted: this is what was measured.", err=True)
        raise typer.Exit(130)
    if found.failed:
        raise typer.Exit(1)


def _model(
    name: str, modes: Sequence[str], length: int, repeats: int, device: str, dtype: str, seed: int, line: str,
    json: Path | None,
) -> None:  # fmt: skip
    from ..hub import open_model
    from ..timing import bench_model
    from ..timing.model import check_settings

    train_length = min(512, length)
    check_settings(modes, length, train_length, repeats, seed)  # before the model is loaded
    with Bar() as bar:
        bar(f"opening {name}", 0, 1)
        model = open_model(name, dtype=dtype).model.to(device)
        found = bench_model(
            model, name=name, modes=modes, length=length, train_length=train_length, repeats=repeats, seed=seed,
            on_progress=bar,
        )  # fmt: skip
    found.result["command"] = line
    give(lambda: show_wide(found), ("Numbers", json, found.save_json))
    failed = {mode: why for mode, times in found.result["modes"].items() for why in times.get("failed", {}).values()}
    for mode, why in failed.items():
        typer.echo(f"{mode} failed: {why}", err=True)
    if not found.complete:
        typer.echo("Interrupted: this is what was measured.", err=True)
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def words(given: list[str] | None) -> list[str]:
    """Split an option that may be repeated, each time with commas, into words."""
    return [word.strip() for item in given or [] for word in item.split(",") if word.strip()]


def numbers(option: str, given: list[str] | None, usual: str) -> list[int]:
    """Read the whole numbers of such an option."""
    from ..errors import StateformError

    found = words(given if given is not None else [usual])
    try:
        return [int(word) for word in found]
    except ValueError:
        raise StateformError(f"{option} is {','.join(found)}; expected whole numbers, e.g. {usual}") from None


def _calibrate(device: str) -> None:
    import torch

    from ..forms.cost.calibrate import calibrate as measure_forms

    with Bar() as bar:
        kept = measure_forms(device, on_progress=bar)
    typer.echo(f"Constants of the form auto on this machine, {torch.get_num_threads()} threads: {kept}")
