"""The folder of a training: its experiment, the checkpoint to resume from, its outcome, and what a kill leaves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StateformError, require
from ..files import DamagedError, is_half_written, make_folder, read_json, write_json
from ..models import Classifier, LanguageModel
from ..result import Result
from . import checkpoint
from .checkpoint import BEST, CHECKPOINT, PREVIOUS
from .config import Experiment
from .lock import LOCK, Lock
from .parent import EXPERIMENT
from .process import first_process, say
from .sources import Sources, changes

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Outcome(Result):
    """The outcome of a finished training.

    Args:
        experiment: the experiment, see `Experiment.to_dict`.
        metrics: `metric` (its name), `valid` (its value on the last validation), `best` (the best one), `test` (by
            length), `loss`, `steps`, `seconds`, `parameters`, `state_size` (numbers kept after one training length),
            `stopped` (why it ended), `history` (a row a round: step, loss, valid).
    """

    experiment: dict[str, Any]
    metrics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts."""
        return {"experiment": self.experiment, "metrics": self.metrics}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """Make it from what `to_dict` gave."""
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
    """Make a table for the terminal (rich) of what `evaluate` returns."""
    from rich.table import Table

    names = [name for name in next(iter(found.values())) if name != "examples"]
    table = Table("length", *names, title="test")
    for length, values in found.items():
        table.add_row(length, *(f"{values[name]:.4g}" for name in names))
    return table


def read_experiment(folder: Path) -> Experiment:
    """Read the experiment of a folder."""
    try:
        return Experiment.from_dict(read_json(folder / EXPERIMENT))
    except StateformError as error:
        raise _about(folder / EXPERIMENT, error) from None


def read_outcome(folder: Path) -> Outcome:
    """Read the outcome of the training in a folder. Raises DamagedError if it is not whole."""
    try:
        return Outcome.from_dict(read_json(folder / OUTCOME))
    except StateformError as error:
        raise DamagedError(f"{_about(folder / OUTCOME, error)}; delete it to train again") from None


def _about(path: Path, error: StateformError) -> StateformError:
    """Add to an error the file that it is about."""
    return error if str(path) in str(error) else StateformError(f"{path}: {error}")


def load_trained(folder: str | Path) -> tuple[Experiment, LanguageModel | Classifier]:
    """Open the experiment and the model of a training's folder, ready to use.

    Raises:
        StateformError: a folder that holds no finished training, or files that are not whole.
    """
    folder = Path(folder)
    require(
        os.path.isfile(folder / EXPERIMENT), f"{folder} has no {EXPERIMENT}; expected a folder that a training wrote"
    )
    experiment = read_experiment(folder)
    require(os.path.isfile(folder / OUTCOME), f"the training in {folder} is not finished; run it again to go on")
    kind = LanguageModel if experiment.speaks else Classifier
    return experiment, kind.from_pretrained(folder)


def check_folder(folder: Path, experiment: Experiment) -> Outcome | None:
    """Raise unless the folder can be that of this training. Returns the outcome, if it is there already."""
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
    there = read_experiment(folder)
    differ = differences(there, experiment)
    require(there.key == experiment.key, f"{folder} holds another experiment ({differ}); choose another folder")
    if not os.path.isfile(folder / OUTCOME):
        return None
    outcome = read_outcome(folder)
    tidy(folder)
    return outcome


def check_sources(folder: Path, experiment: Experiment, now: Sources) -> None:
    """Raise if data or code have changed since the training in a folder was begun; print smaller differences."""
    if not os.path.isfile(folder / EXPERIMENT):
        return
    changed, notes = changes(read_json(folder / EXPERIMENT).get("sources"), now, experiment)
    require(changed is None, f"{folder} holds this training, but {changed}; bring it back, or choose another folder")
    for note in notes:
        say(f"{folder}: {note}")


def prepare(folder: Path, experiment: Experiment, lock: Lock, now: Sources) -> None:
    """Make and lock the folder, delete half-written files that a kill left, and write the experiment into it."""
    make_folder(folder)
    lock.take()
    try:
        for path in filter(is_half_written, folder.iterdir()):
            path.unlink()
    except OSError as error:
        raise StateformError(f"cannot write in the folder {folder}: {error.strerror or error}") from None
    if not os.path.isfile(folder / EXPERIMENT):
        write_json(folder / EXPERIMENT, experiment.to_dict() | {"sources": now})


def _passing(path: Path) -> bool:
    """True if a kill may have left it: a lock that nobody holds, or a file that is half written."""
    return path.name == LOCK or is_half_written(path)


def resume(folder: Path, model: LanguageModel | Classifier, rounds: Any) -> Path | None:
    """Read the latest whole checkpoint into model and rounds. Returns its file, None if there is none."""
    there = [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.is_file()]
    try:
        if there and rounds.experiment.train.keep == "best":
            rounds.best_weights()
    except DamagedError as error:
        say(f"{error}; this training begins anew")
        return None
    for path in there:
        try:
            _read_into(path, model, rounds)
            if path.name == PREVIOUS and first_process():  # it takes the damaged one's place
                os.replace(path, folder / CHECKPOINT)
            return folder / CHECKPOINT
        except DamagedError as error:
            left = "the one before it is looked for" if path != there[-1] else "this training begins anew"
            say(f"{error}; {left}")
    return None


def _read_into(path: Path, model: LanguageModel | Classifier, rounds: Any) -> None:
    """Take the books and the weights from a checkpoint."""
    saved = checkpoint.read(path)
    try:
        rounds.load_state_dict(saved["callbacks"][rounds.state_key])
        model.load_state_dict({name.removeprefix("model."): x for name, x in saved["state_dict"].items()})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise StateformError(
            f"{path} is not of this training: {' '.join(str(error).split())}; delete it to begin this training anew"
        ) from None


def tidy(folder: Path) -> None:
    """Delete the checkpoints of a finished training. Also called at the start, in case a kill came just before this."""
    with contextlib.suppress(OSError):
        for name in (CHECKPOINT, PREVIOUS, BEST):
            (folder / name).unlink(missing_ok=True)
        for path in filter(_passing, folder.iterdir()):
            path.unlink()


def differences(a: Experiment, b: Experiment) -> str:
    """Name the settings in which two experiments differ."""
    one, two = flat(a.to_dict()), flat(b.to_dict())
    found = [f"{k} {one.get(k)!r}, here {two.get(k)!r}" for k in {**one, **two} if one.get(k) != two.get(k)]
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Make one dict of nested ones, with dotted names: "train.lr"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found
