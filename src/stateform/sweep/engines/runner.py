"""Computing a run, on any engine: by a runner, its output in the run's log, its failure in a line."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...errors import StateformError
from ...files import DamagedError
from ...result import Progress
from ...train.config import Experiment
from ..rows import Run

Runner = Callable[[dict[str, Any], Path, Progress], dict[str, Any]]
"""A function of an experiment as plain values, a folder and a progress callback, that gives its outcome."""


def trained(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    """Train on one device: a sweep's default runner. A folder with damaged files is set aside, the run begins anew."""
    from ...train import Machine, train

    made, machine = Experiment.from_dict(experiment), Machine(devices=1, threads=torch.get_num_threads())
    try:
        return train(made, folder, machine=machine, on_progress=on_progress).to_dict()
    except DamagedError as error:
        aside = folder.with_name(f"{folder.name}-damaged-{secrets.token_hex(4)}")
        folder.rename(aside)
        print(f"stateform: {error}; {folder} is now {aside}, and the run begins anew", file=sys.stderr, flush=True)
        return train(made, folder, machine=machine, on_progress=on_progress).to_dict()


def note(folder: Path, run: Run, text: str) -> Path:
    """Add a text to the log of a run, if that can be written. Returns the log's path."""
    path = log_of(folder, run.key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{text.rstrip()}\n")
    return path


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append all that is printed inside, by libraries in C too, to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # no log can be written: the outcome matters more
        file = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for one in (file, *kept):
            os.close(one)


def log_of(folder: Path, key: str) -> Path:
    """Give the path of the log of a run, of a sweep in that folder."""
    return folder / "logs" / f"{key}.txt"


def threads_granted() -> int:
    """Read from the environment how many threads may be used (no limit: `sys.maxsize`)."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    return int(granted) if granted.isdigit() and int(granted) > 0 else sys.maxsize


def in_words(error: BaseException) -> str:
    """Put an error in a line, with its class unless it is a StateformError."""
    said = " ".join(str(error).split())
    if isinstance(error, StateformError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
