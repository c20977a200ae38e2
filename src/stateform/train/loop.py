"""Training: an Experiment in, an Outcome out. Killed at any moment, it goes on from its last checkpoint.

The loop is Lightning's. Batches are counted, not stored (`data`), so that a checkpoint of weights, optimizer and
counters is enough to go on. The training is cut into rounds of `eval_every` steps; each ends with a validation and a
checkpoint.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import StateformError, require, validate
from ..files import write_json
from ..machine import machine, stateform_version
from ..models import Classifier, LanguageModel
from ..result import Progress
from .config import Experiment
from .folder import OUTCOME, Outcome, check_folder, check_sources, prepare, resume, tidy
from .lock import Lock
from .process import Machine, first_process, lightning, quiet, say
from .scores import state_size, test
from .sources import Sources, sources


def train(
    experiment: Experiment, folder: str | Path | None = None, *, machine: Machine | None = None,
    on_progress: Progress | None = None, on_round: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:  # fmt: skip
    """Train a model on a task and test it.

    Args:
        experiment: what to train.
        folder: where the model (as `save_pretrained` writes it), the checkpoint, the logs and the outcome go. If it
            holds a checkpoint of the same experiment, the training goes on from there. A damaged one is reported, and
            the one before it is taken, or the training begins anew. If it holds the outcome, that is returned. None:
            nothing is written.
        machine: where it runs.
        on_progress: called as it goes, with (what, steps done, steps at most).
        on_round: called with each new row of the history, once its checkpoint is written.

    Returns:
        The Outcome. The trained model: `LanguageModel.from_pretrained(folder)` (or `Classifier`).

    Raises:
        StateformError: a folder with another experiment, or in use by another training; a loss that is not finite (the
            last checkpoint is kept), a missing extra.
        KeyboardInterrupt: after Ctrl-C; the last checkpoint is kept.
        SystemExit: 143 after SIGTERM; the last checkpoint is kept. 0, of several processes, in all but the first.
    """
    machine = machine or Machine()
    where = None if folder is None else Path(folder)
    known = None if where is None else check_folder(where, experiment)
    try:
        now = sources(experiment)
    except StateformError as error:
        if known is None:
            raise
        say(f"{error}: the outcome in {where} cannot be held against it")
        return known
    if where is not None:
        check_sources(where, experiment, now)
    if known is not None:
        return known
    lightning()
    from .trainee import Rounds, Trainee

    with Lock(where if first_process() else None) as lock, quiet(machine.threads):
        if where is not None and os.path.isdir(where):
            lock.take()
        torch.manual_seed(experiment.train.seed)
        model = experiment.build()
        if experiment.train.precision == "64-true":
            model.double()
        rounds = Rounds(experiment, where, on_progress, on_round)
        start = None if where is None else resume(where, model, rounds)
        if start is None and experiment.parent is not None:
            experiment.parent.load_into(model)
        if not rounds.finished:  # finished already: it was killed after its last checkpoint
            _fit(Trainee(model, experiment), rounds, machine, where, start, lock, now)
        return _finish(model, experiment, rounds, where, on_progress, now)


def _fit(
    trainee: Any, rounds: Any, machine: Machine, folder: Path | None, start: Path | None, lock: Lock, now: Sources
) -> None:  # fmt: skip
    """Train from the beginning or from a checkpoint; the model stays on the device."""
    trainer = _trainer(trainee, rounds, machine, folder)
    launcher = trainer.strategy.launcher
    if folder is not None and trainer.is_global_zero:
        prepare(folder, trainee.experiment, lock, now)
    try:
        with validate(False):
            trainer.fit(trainee, ckpt_path=start)
    except BaseException as error:
        if launcher is not None:  # the processes that the first one started would wait for it
            launcher.kill(signal.SIGKILL)
        if isinstance(error, OSError):
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
            raise StateformError(f"the training stopped ({what}); what was saved last is kept") from None
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads, left to the interpreter's end, may abort the process
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the other processes have done their part
    trainee.model.to(trainer.strategy.root_device)  # Lightning left it on the CPU


def _trainer(trainee: Any, rounds: Any, machine: Machine, folder: Path | None) -> Any:
    """Make Lightning's trainer. Raises StateformError if the machine is not one that can train this."""
    import pytorch_lightning as L
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

    from .trainee import PlainFiles, loggers

    given = trainee.experiment.train
    try:
        trainer = L.Trainer(
            accelerator=machine.accelerator, devices=machine.devices, strategy=machine.strategy,
            precision=given.precision, max_steps=given.steps, max_epochs=-1,
            accumulate_grad_batches=given.accumulate, gradient_clip_val=given.clip,
            logger=loggers(machine.loggers, folder, trainee.experiment), callbacks=[rounds], plugins=[PlainFiles()],
            deterministic=machine.deterministic, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
    except StateformError:
        raise
    except Exception as error:  # errors of many classes, all about what the machine lacks
        raise StateformError(
            f"cannot train with accelerator {machine.accelerator!r}, devices {machine.devices} and strategy "
            f"{machine.strategy!r}: {' '.join(str(error).split())}"
        ) from None
    require(trainer.precision == given.precision,
            f"the precision {given.precision} does not exist here (Lightning would take {trainer.precision}); choose "
            "another")  # fmt: skip
    require(not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher),
            f"the strategy {machine.strategy!r} trains in copies of this process; take ddp instead")  # fmt: skip
    rows = min(given.batch_size, len(trainee.valid))
    require(trainer.world_size <= rows,
            f"{trainer.world_size} devices share batches of {given.batch_size} examples and {len(trainee.valid)} of "
            "validation; ask for fewer devices, or a larger batch_size or eval_examples")  # fmt: skip
    return trainer


def _finish(
    model: LanguageModel | Classifier, experiment: Experiment, rounds: Any, folder: Path | None,
    on_progress: Progress | None, now: Sources,
) -> Outcome:  # fmt: skip
    """Test the trained model, then write model and outcome into the folder."""
    steps = experiment.train.steps
    if on_progress is not None:
        on_progress("testing", steps, steps)
    rounds.use_kept_weights(model)
    last, best = rounds.history[-1], rounds.best_row()
    metrics = {
        "name": experiment.name, "metric": experiment.task.metric, "valid": last["valid"], "best": best["valid"],
        "test": test(model, experiment.task, experiment.test_lengths, experiment.train.test_examples,
                     experiment.train.batch_size),
        "loss": last["loss"], "steps": last["step"], "stopped": rounds.stopped, "seconds": round(rounds.seconds, 2),
        "parameters": sum(p.numel() for p in model.parameters()), "state_size": state_size(model, experiment.task),
        "history": rounds.history, "stateform": stateform_version(), "machine": machine(str(model.device)),
        "sources": now,
    }  # fmt: skip
    outcome = Outcome(experiment.to_dict(), metrics)
    if folder is not None:
        model.save_pretrained(folder)
        write_json(folder / OUTCOME, outcome.to_dict())
        tidy(folder)
    return outcome
