"""Training: an Experiment in, an Outcome out. Killed at any moment, it goes on from its last checkpoint.

The loop is Lightning's. Batches are counted, not stored (`data`), so that a checkpoint of weights, optimizer and
counters is enough to go on. The training is cut into rounds of `eval_every` steps; each ends with a validation and a
checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import StateformError, nearest, require, validate
from ..files import DamagedError, make_folder, read_json, write_json
from ..machine import machine, stateform_version
from ..models import Classifier, LanguageModel
from ..result import Progress, Result
from ..tasks import Task
from . import checkpoint
from .checkpoint import BEST, CHECKPOINT, PREVIOUS
from .config import Experiment
from .lock import LOCK, Lock
from .parent import EXPERIMENT
from .scores import as_read, test
from .sources import Sources, changes, sources

OUTCOME = "outcome.json"
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class Machine:
    """Where and how a training runs. What it computes does not depend on it, but for rounding."""

    accelerator: str = "auto"
    """cpu, gpu, ... as Lightning names them."""
    devices: int = 1
    """How many."""
    strategy: str = "auto"
    """How several share the work: ddp, fsdp, ... as Lightning names them."""
    threads: int | None = None
    """CPU threads; None: as PyTorch has it."""
    deterministic: bool = False
    """Refuse operations whose result may differ from run to run (on a CPU none does)."""
    loggers: tuple[str, ...] = ("csv",)
    """Where numbers go as the training runs: csv, tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"devices is {self.devices}; expected a number of devices, 1 or more")
        require(self.threads is None or self.threads >= 1, f"threads is {self.threads}; expected 1 or more")
        for name in self.loggers:
            require(name in LOGGERS, f"unknown logger {name!r}: {nearest(name, LOGGERS)}")


@dataclass(frozen=True)
class Outcome(Result):
    """What a finished training came to.

    Args:
        experiment: what was trained, see `Experiment.to_dict`.
        metrics: `metric` (its name), `valid` (its value on the last validation), `best` (the best one), `test` (by
            length), `loss`, `steps`, `seconds`, `parameters`, `state_size` (numbers kept after one training length),
            `stopped` (why it ended), `history` (a row a round: step, loss, valid).
    """

    experiment: dict[str, Any]
    metrics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {"experiment": self.experiment, "metrics": self.metrics}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """What `to_dict` gave."""
        fits = isinstance(values, dict) and set(values) == {"experiment", "metrics"}
        fits = fits and all(isinstance(part, dict) for part in values.values())
        require(fits, "this is no outcome of a training; expected the tables experiment and metrics")
        return cls(values["experiment"], values["metrics"])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        m = self.metrics
        yield (
            f"{m['name']}: {m['metric']} {m['valid']:.4g} after {m['steps']} steps, {m['seconds']:.0f} s "
            f"({m['stopped']}); {m['parameters']:,} parameters, a state of {m['state_size']:,} numbers"
        )
        yield length_table(m["test"])


def length_table(found: dict[str, dict[str, float]]) -> Any:
    """What `evaluate` gives, as a table of rich."""
    from rich.table import Table

    names = [name for name in next(iter(found.values())) if name != "examples"]
    table = Table("length", *names, title="test")
    for length, values in found.items():
        table.add_row(length, *(f"{values[name]:.4g}" for name in names))
    return table


def train(
    experiment: Experiment, folder: str | Path | None = None, *, machine: Machine | None = None,
    on_progress: Progress | None = None, on_round: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:  # fmt: skip
    """Train a model on a task and test it.

    Args:
        experiment: what to train.
        folder: where the model (as `save_pretrained` writes it), the checkpoint, the logs and the outcome go. If it
            holds a checkpoint of the same experiment, the training goes on from there (from the one before, or from the
            beginning, where it is damaged; that is said); if it holds the outcome, that is returned. None: nothing is
            written.
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
    known = None if where is None else _begun(where, experiment)
    try:
        now = sources(experiment)
    except StateformError as error:
        if known is None:
            raise
        _say(f"{error}: the outcome in {where} cannot be held against it")
        return known
    if where is not None:
        _unchanged(where, experiment, now)
    if known is not None:
        return known
    lightning()
    from .trainee import Rounds, Trainee

    with Lock(where if first_process() else None) as lock, _quiet(machine.threads):
        if where is not None and os.path.isdir(where):
            lock.take()
        torch.manual_seed(experiment.train.seed)
        model = experiment.build()
        if experiment.train.precision == "64-true":
            model.double()
        rounds = Rounds(experiment, where, on_progress, on_round)
        start = None if where is None else _start(where, model, rounds)
        if start is None and experiment.parent is not None:
            experiment.parent.load_into(model)
        if not rounds.finished:  # else killed between the last checkpoint and the outcome
            _fit(Trainee(model, experiment), rounds, machine, where, start, lock, now)
        return _finished(model, experiment, rounds, where, on_progress, now)


def _fit(
    trainee: Any, rounds: Any, machine: Machine, folder: Path | None, start: Path | None, lock: Lock, now: Sources
) -> None:  # fmt: skip
    """The training itself, from the beginning or from a checkpoint; the model stays on the device."""
    import pytorch_lightning as L
    from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

    from .trainee import PlainFiles, loggers

    experiment = trainee.experiment
    given = experiment.train
    try:
        trainer = L.Trainer(
            accelerator=machine.accelerator, devices=machine.devices, strategy=machine.strategy,
            precision=given.precision, max_steps=given.steps, max_epochs=-1,
            accumulate_grad_batches=given.accumulate, gradient_clip_val=given.clip,
            logger=loggers(machine.loggers, folder, experiment), callbacks=[rounds], plugins=[PlainFiles()],
            deterministic=machine.deterministic, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
    except StateformError:
        raise
    except Exception as error:  # of many kinds, all of what the machine is not or has not
        raise StateformError(
            f"cannot train with accelerator {machine.accelerator!r}, devices {machine.devices} and strategy "
            f"{machine.strategy!r}: {' '.join(str(error).split())}"
        ) from None
    require(trainer.precision == given.precision,
            f"the precision {given.precision} does not exist here (Lightning would take {trainer.precision}); choose "
            "another")  # fmt: skip
    launcher = trainer.strategy.launcher
    require(not isinstance(launcher, _MultiProcessingLauncher),
            f"the strategy {machine.strategy!r} trains in copies of this process; take ddp instead")  # fmt: skip
    rows = min(given.batch_size, len(trainee.valid))
    require(trainer.world_size <= rows,
            f"{trainer.world_size} devices share batches of {given.batch_size} examples and {len(trainee.valid)} of "
            "validation; ask for fewer devices, or a larger batch_size or eval_examples")  # fmt: skip
    if folder is not None and trainer.is_global_zero:
        _make(folder, experiment, lock, now)
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


def lightning() -> Any:
    """Lightning, or an error that names the extra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_lightning
    except ImportError:
        raise StateformError('training needs Lightning: pip install "stateform[train]"') from None
    return pytorch_lightning


def _begun(folder: Path, experiment: Experiment) -> Outcome | None:
    """Raise unless the folder can be that of this training; the outcome, if it is there already."""
    try:
        require(not folder.exists() or folder.is_dir(), f"{folder} is a file; choose another folder")
        if not os.path.isfile(folder / EXPERIMENT):
            foreign = [x.name for x in folder.iterdir() if not _passing(x)] if folder.is_dir() else []
            require(not foreign,
                    f"{folder} is not empty ({sorted(foreign)[0] if foreign else ''}) and holds no experiment; choose "
                    "another folder")  # fmt: skip
            return None
    except OSError as error:
        raise StateformError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    there = _read_experiment(folder)
    differ = differences(there, experiment)
    require(there.key == experiment.key, f"{folder} holds another experiment ({differ}); choose another folder")
    if not os.path.isfile(folder / OUTCOME):
        return None
    outcome = _read_outcome(folder)
    _tidy(folder)
    return outcome


def _unchanged(folder: Path, experiment: Experiment, now: Sources) -> None:
    """Raise if data or code are others than when the training in a folder was begun; say what else is to be said."""
    if not os.path.isfile(folder / EXPERIMENT):
        return
    changed, notes = changes(read_json(folder / EXPERIMENT).get("sources"), now, experiment)
    require(changed is None, f"{folder} holds this training, but {changed}; bring it back, or choose another folder")
    for note in notes:
        _say(f"{folder}: {note}")


def _make(folder: Path, experiment: Experiment, lock: Lock, now: Sources) -> None:
    """The folder with the experiment, this process's own, and without what a kill left half written."""
    make_folder(folder)
    lock.take()
    try:
        for path in filter(_half_written, folder.iterdir()):
            path.unlink()
    except OSError as error:
        raise StateformError(f"cannot write in the folder {folder}: {error.strerror or error}") from None
    if not os.path.isfile(folder / EXPERIMENT):
        write_json(folder / EXPERIMENT, experiment.to_dict() | {"sources": now})


def _half_written(path: Path) -> bool:
    """Whether it is the temporary file of a writing that was killed."""
    return re.fullmatch(r"\.\w+\.(json|safetensors)\.[0-9a-f]{8}", path.name) is not None


def _passing(path: Path) -> bool:
    """Whether a kill may have left it: a lock that nobody holds, or a file that is half written."""
    return path.name == LOCK or _half_written(path)


def _start(folder: Path, model: LanguageModel | Classifier, rounds: Any) -> Path | None:
    """The checkpoint to go on from, read into model and books; None: there is none, begin at the beginning."""
    there = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.is_file()]
    try:
        if there and rounds.experiment.train.keep == "best":
            rounds.best_weights()
    except DamagedError as error:
        _say(f"{error}; this training begins anew")
        return None
    for path in there:
        try:
            _go_on(path, model, rounds)
            if path.name == PREVIOUS and first_process():  # in the place of the damaged one, which is not kept again
                os.replace(path, folder / CHECKPOINT)
            return folder / CHECKPOINT
        except DamagedError as error:
            left = "the one before it is looked for" if path != there[-1] else "this training begins anew"
            _say(f"{error}; {left}")
    return None


def _say(text: str) -> None:
    """Tell on the standard error what is not an error, and not as one would expect."""
    if first_process():
        print(f"stateform: {text}", file=sys.stderr, flush=True)


def _read_experiment(folder: Path) -> Experiment:
    try:
        return Experiment.from_dict(read_json(folder / EXPERIMENT))
    except StateformError as error:
        raise _about(folder / EXPERIMENT, error) from None


def _read_outcome(folder: Path) -> Outcome:
    try:
        return Outcome.from_dict(read_json(folder / OUTCOME))
    except StateformError as error:
        raise DamagedError(f"{_about(folder / OUTCOME, error)}; delete it to train again") from None


def _about(path: Path, error: StateformError) -> StateformError:
    """The error, with the file that it is about."""
    return error if str(path) in str(error) else StateformError(f"{path}: {error}")


def _go_on(path: Path, model: LanguageModel | Classifier, rounds: Any) -> None:
    """Take the books and the weights from a checkpoint."""
    saved = checkpoint.read(path)
    try:
        rounds.load_state_dict(saved["callbacks"][rounds.state_key])
        model.load_state_dict({name.removeprefix("model."): x for name, x in saved["state_dict"].items()})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise StateformError(
            f"{path} is not of this training: {' '.join(str(error).split())}; delete it to begin this training anew"
        ) from None


def _finished(
    model: LanguageModel | Classifier, experiment: Experiment, rounds: Any, folder: Path | None,
    on_progress: Progress | None, now: Sources,
) -> Outcome:  # fmt: skip
    """Test the trained model, and write it down."""
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
        _tidy(folder)
    return outcome


def _tidy(folder: Path) -> None:
    """Without what only an unfinished training needs; a kill after the outcome leaves that too."""
    with contextlib.suppress(OSError):
        for name in (CHECKPOINT, PREVIOUS, BEST):
            (folder / name).unlink(missing_ok=True)
        for path in filter(_passing, folder.iterdir()):
            path.unlink()


def load_trained(folder: str | Path) -> tuple[Experiment, LanguageModel | Classifier]:
    """The experiment and the model of a training's folder, ready to use.

    Raises:
        StateformError: a folder that holds no finished training, or files that are not whole.
    """
    folder = Path(folder)
    require(
        os.path.isfile(folder / EXPERIMENT), f"{folder} has no {EXPERIMENT}; expected a folder that a training wrote"
    )
    experiment = _read_experiment(folder)
    require(os.path.isfile(folder / OUTCOME), f"the training in {folder} is not finished; run it again to go on")
    kind = LanguageModel if experiment.speaks else Classifier
    return experiment, kind.from_pretrained(folder)


def evaluate(
    folder: str | Path, *, lengths: Sequence[int] | None = None, examples: int | None = None,
    batch_size: int | None = None, device: str = "cpu",
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Test a trained model at some lengths, on examples that no training saw.

    Args:
        folder: what a training wrote.
        lengths: tokens an example; default: those at which it was tested.
        examples: how many at each length; default: as it was tested.
        batch_size: how many at once; default: that of the training.
        device: where.

    Returns:
        By length, the metric, and for accuracies the share of examples that are `whole`, every answer right.

    Raises:
        StateformError: see `load_trained`; a length for which the task does not exist.
    """
    experiment, model = load_trained(folder)
    changed, _ = changes(read_json(Path(folder) / EXPERIMENT).get("sources"), sources(experiment), experiment)
    if changed is not None:
        _say(f"{changed} the training in {folder}: this tests on what is there now")
    task, given = experiment.task, experiment.train
    lengths = tuple(experiment.test_lengths if lengths is None else lengths)
    require(lengths, "lengths is empty; expected one or more")
    for length in lengths:
        task.check_length(length)
    limit = model.config.max_positions
    require(limit is None or max(lengths) <= limit,
            f"the model has learned {limit} positions; ask for lengths up to that, not {max(lengths)}")  # fmt: skip
    n = given.test_examples if examples is None else examples
    rows = given.batch_size if batch_size is None else batch_size
    for name, value in (("examples", n), ("batch_size", rows)):
        require(isinstance(value, int) and value >= 1, f"{name} is {value!r}; expected a whole number, 1 or more")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise StateformError(f"cannot use the device {device!r}: {str(error).splitlines()[0]}") from None
    return test(model, task, lengths, n, rows)


@torch.no_grad()
def state_size(model: LanguageModel | Classifier, task: Task) -> int:
    """Numbers that the model keeps after one example of the training length (a complex one counts twice)."""
    example = task.sample(1)
    _, state = model.eval().hidden(as_read(model, example.inputs.to(model.device)), return_state=True)
    assert state is not None
    kept = [x for name, x in state.tensors.items() if not name.endswith("position")]
    return sum(x.numel() * (2 if x.is_complex() else 1) for x in kept)


def differences(a: Experiment, b: Experiment) -> str:
    """The settings in which two experiments differ, in words."""
    one, two = flat(a.to_dict()), flat(b.to_dict())
    found = [f"{k} {one.get(k)!r}, here {two.get(k)!r}" for k in {**one, **two} if one.get(k) != two.get(k)]
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names: "train.lr"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def first_process() -> bool:
    """Whether this is the one of several processes that speaks."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextlib.contextmanager
def _quiet(threads: int | None) -> Iterator[None]:
    """Lightning without its notes; settings of the process that it changes are put back, Ctrl-C stays an interrupt."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")
    levels = {name: logging.getLogger(name).level for name in names}
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SystemExit as end:
        from pytorch_lightning.utilities.exceptions import SIGTERMException

        if isinstance(end, SIGTERMException):  # whose exit code would be that of success
            raise SystemExit(128 + signal.SIGTERM) from None
        if end.code:  # Lightning's way out after Ctrl-C
            raise KeyboardInterrupt from None
        raise
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.set_num_threads(threads_before)
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
