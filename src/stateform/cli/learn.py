"""Commands that train and test: train, eval, tasks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import listing
from .common import Bar, app, check_writable, command, give


@command("train")
def train_command(
    task: Annotated[
        str | None,
        typer.Argument(help='A task, "mqar(n_pairs=8)"; `stateform tasks` lists them. Default: the file\'s.'),
    ] = None,
    model: Annotated[str | None, typer.Option(help='The pattern of layers: "mamba2*2".')] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with task, [model] and [train].")] = None,
    run: Annotated[
        Path | None,
        typer.Option("--from", help="The folder of a run: begin with its weights, in its settings but those given."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, e.g. train.lr=3e-3, model.d_state=16, task.length=128; repeatable."),
    ] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of the model; default 64.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps at most.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    stop_at: Annotated[float | None, typer.Option(help="End once the validation is this good.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; a training begun there goes on. Default: runs/TASK-KEY.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu, ...")] = "auto",
    devices: Annotated[int, typer.Option(help="How many devices or processes.")] = 1,
    strategy: Annotated[str, typer.Option(help="How they share the work: ddp, fsdp, ...")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only operations that repeat exactly.")
    ] = False,
    logger: Annotated[
        list[str] | None, typer.Option(help="Besides csv: tensorboard, wandb, mlflow; repeatable.")
    ] = None,
) -> None:
    """Train a model on a task and test it. Killed or interrupted, the same command goes on from the last checkpoint."""
    from ..errors import require
    from ..layer.spec import names_file
    from ..train import Experiment, Machine, overridden, read_toml, train
    from ..train.checkpoint import CHECKPOINT
    from ..train.folder import OUTCOME
    from ..train.process import first_process

    values: dict[str, Any] = {} if config is None else read_toml(config)
    if task is not None:
        values["task"] = task
    if run is not None:
        values["from"] = str(run)
    missing = "there is no task; name one (`stateform tasks` lists them), or give --config FILE"
    require("task" in values or "from" in values, missing)
    short = {
        "model.pattern": model, "model.d_model": d_model, "train.steps": steps, "train.lr": lr,
        "train.batch_size": batch_size, "train.stop_at": stop_at, "train.seed": seed,
    }  # fmt: skip
    table = values.setdefault("model", {})
    require(isinstance(table, dict), f"model is {table!r} in {config}; expected a table, [model], with pattern in it")
    if "from" not in values:
        table.setdefault("d_model", 64)
    given = [f"{name}={value}" for name, value in short.items() if value is not None]
    experiment = Experiment.from_dict(overridden(values, [*given, *(set_ or [])]), run_files=True)
    machine = Machine(
        accelerator, devices, strategy, threads, deterministic, tuple(dict.fromkeys(["csv", *(logger or [])]))
    )
    called = type(experiment.task).__name__ if names_file(experiment.task.name) else experiment.task.name
    folder = out or Path("runs") / f"{called}-{experiment.key}"
    speaks = first_process()
    begun = time.monotonic()

    def on_round(row: dict[str, Any]) -> None:
        typer.echo(
            f"step {row['step']:>6} of {experiment.train.steps}   loss {row['loss']:<8.4g} "
            f"{experiment.task.metric} {row['valid']:<8.4g} lr {row['lr']:<8.2g} {time.monotonic() - begun:6.0f} s"
        )

    if speaks:
        typer.echo(experiment.name)
        if os.path.isfile(folder / CHECKPOINT) and not os.path.isfile(folder / OUTCOME):
            typer.echo(f"Going on from the last checkpoint in {folder}")
    try:
        with Bar() as bar:
            outcome = train(experiment, folder, machine=machine, on_progress=bar, on_round=on_round)
    except (KeyboardInterrupt, SystemExit) as end:
        code = 130 if isinstance(end, KeyboardInterrupt) else end.code
        if code and speaks:
            kept = os.path.isfile(folder / CHECKPOINT)
            left = "run the same command to go on" if kept else "there was no checkpoint yet"
            typer.echo(f"Interrupted; {left}.", err=True)
        raise SystemExit(code) from None
    Console().print(outcome)
    typer.echo(f"Model, outcome and logs: {folder.resolve()}")


@command("eval")
def eval_command(
    folder: Annotated[Path, typer.Argument(help="What `stateform train` wrote.")],
    lengths: Annotated[
        str | None, typer.Option(help="Tokens an example, 64,128,256; default: as it was tested.")
    ] = None,
    examples: Annotated[int | None, typer.Option(help="Examples at each length.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="How many at once.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    code: Annotated[
        list[Path] | None,
        typer.Option(help="A file of your own that its task or layers are from; it is run (repeatable)."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here.")] = None,
) -> None:
    """Test a trained model over lengths."""
    from ..errors import StateformError
    from ..files import write_json
    from ..layer.spec import run_file
    from ..train import evaluate
    from ..train.folder import length_table

    check_writable(json=json)
    try:
        several = None if lengths is None else [int(x) for x in lengths.split(",")]
    except ValueError:
        raise StateformError(f"lengths is {lengths!r}; expected whole numbers with commas, e.g. 64,128,256") from None
    for file in code or ():
        run_file(file)
    found = evaluate(folder, lengths=several, examples=examples, batch_size=batch_size, device=device)
    give(lambda: Console().print(length_table(found)), ("Numbers", json, lambda path: write_json(path, found)))


@app.command("tasks")
def tasks_command() -> None:
    """List the tasks that are known."""
    known = listing.tasks()
    width = max(len(name) for name in known)
    for name, summary in known.items():
        typer.echo(f"{name:<{width}}  {summary}")
