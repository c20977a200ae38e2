"""Commands for many experiments: sweep, results."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..result import show_wide
from .common import Bar, Plotlyjs, check_writable, command, give


@command("sweep")
def sweep_command(
    file: Annotated[
        str, typer.Argument(help="A TOML file (an experiment, and what is varied of it), or a preset: `presets`.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the store and the runs.")] = Path("sweeps"),
    workers: Annotated[
        int | None,
        typer.Option(help="Runs at a time. Default: 1 here, all processors of a Ray cluster. 0: no processes."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the runs are computed: local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster. Default: one is started here.")] = None,
    gpus: Annotated[float, typer.Option(help="GPUs of each run, with --engine ray.")] = 0.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="The small version: the file's table [quick] over it.")
    ] = False,
    as_released: Annotated[
        bool, typer.Option("--as-released", help="As the authors' code has it: the file's table [as-released] over it.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="part.setting=value, e.g. train.steps=100 (may be repeated).")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs; compute nothing.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    plotlyjs: Plotlyjs = "inline",
    markdown: Annotated[Path | None, typer.Option(help="Write claims and table here, as Markdown.")] = None,
) -> None:
    """Run all experiments of a file that have no outcome yet; run it again after Ctrl-C or a kill, and it goes on."""
    from ..sweep.plan import read_plan
    from ..sweep.rows import described
    from ..sweep.run import STORE, sweep

    check_writable(plotlyjs, html=html, markdown=markdown)
    plan = read_plan(file, quick=quick, as_released=as_released, overrides=settings or ())
    if dry_run:
        for run in plan.runs:
            typer.echo("  ".join([run.label, *described(run.settings)]))
        for cell in plan.cells if plan.space else ():
            typer.echo(f"{cell.name or plan.name}: {plan.trials} trials over {', '.join(plan.space)}")
        typer.echo(f"{plan.name}: {plan.total} run{'' if plan.total == 1 else 's'}", err=True)
        return
    with Bar() as bar:

        def say(line: str) -> None:
            bar.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        found = sweep(
            plan, out, workers=workers, engine=_engine(engine), address=address, gpus=gpus, retry=retry,
            on_progress=bar, on_finished=say,
        )  # fmt: skip
    page = partial(found.save_html, plotlyjs=plotlyjs)
    give(lambda: show_wide(found), ("Report", html, page), ("Table", markdown, found.save_markdown))
    typer.echo(f"Store: {(out / STORE).resolve()}")
    if not found.complete:
        typer.echo("Interrupted: what is finished is kept; the same command goes on.", err=True)
        raise typer.Exit(130)
    if found.failed:
        flags = [flag for flag, on in (("--quick", quick), ("--as-released", as_released)) if on]
        flags += [word for setting in settings or () for word in ("--set", setting)]
        flags += [] if out == Path("sweeps") else ["--out", str(out)]
        again = shlex.join(["stateform", "sweep", file, *flags, "--retry"])
        many = f"{len(found.failed)} run{'' if len(found.failed) == 1 else 's'} failed"
        typer.echo(f"{many}; see {out / 'logs'}. To try again: {again}", err=True)
        raise typer.Exit(1)


def _engine(name: str) -> Literal["local", "ray"]:
    return name  # type: ignore[return-value]  # `sweep` refuses others, and says which there are


@command("results")
def results_command(
    store: Annotated[Path, typer.Argument(help="The store of sweeps, or the folder that has it.")] = Path("sweeps"),
    name: Annotated[str | None, typer.Option("--sweep", help="Of this sweep alone.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="column=value: of these runs alone, e.g. model.pattern=linear.")
    ] = None,
    x: Annotated[str | None, typer.Option(help="What figures have on their axis, e.g. model.d_state.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each run here.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="The same as a Parquet file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures here.")] = None,
    plotlyjs: Plotlyjs = "inline",
    markdown: Annotated[Path | None, typer.Option(help="Write the table here, as Markdown.")] = None,
    claims: Annotated[
        str | None, typer.Option(help="The sweep's file or preset, whose claims are held against its numbers.")
    ] = None,
) -> None:
    """Show what sweeps came to: means over seeds, files, figures."""
    from ..sweep.plan import read_plan
    from ..sweep.results import arrow, results
    from ..sweep.run import store_of

    check_writable(plotlyjs, csv=csv, parquet=parquet, html=html, markdown=markdown)
    if parquet is not None:
        arrow()
    plan = None if claims is None else read_plan(claims)
    if plan is not None:
        name = name or plan.name  # other sweeps may have the same labels
    found = results(store_of(store), name, where or (), x, () if plan is None else plan.claims)
    files = [(csv, found.save_csv), (parquet, found.save_parquet)]
    page = partial(found.save_html, plotlyjs=plotlyjs)
    files += [(html, page), (markdown, found.save_markdown)]
    give(lambda: show_wide(found), *(("Written", path, save) for path, save in files))


@command("presets")
def presets_command() -> None:
    """List the presets: sweeps that ask whether published findings hold."""
    from ..sweep.plan import read_plan
    from ..sweep.presets import preset_names

    width = max(len(name) for name in preset_names())
    for name in preset_names():
        plan = read_plan(name, check=False)  # the package's own presets are checked by its tests
        typer.echo(f"{name:<{width}}  {plan.total:>5} runs  {plan.about}")
