"""The process that trains: where it runs, what it prints, and which of its settings Lightning may change."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import StateformError, nearest, require

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class Machine:
    """The place where a training runs, and in how many processes. Its results do not depend on it, but for rounding."""

    accelerator: str = "auto"
    """cpu, gpu, ... as Lightning names them."""
    devices: int = 1
    """The number of devices."""
    strategy: str = "auto"
    """The way in which several devices share the work: ddp, fsdp, ... as Lightning names them."""
    threads: int | None = None
    """CPU threads; None: as PyTorch has it."""
    deterministic: bool = False
    """Refuse operations whose result may differ from run to run (on a CPU none does)."""
    loggers: tuple[str, ...] = ("csv",)
    """Loggers of the numbers of a training: csv, tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"devices is {self.devices}; expected a number of devices, 1 or more")
        require(self.threads is None or self.threads >= 1, f"threads is {self.threads}; expected 1 or more")
        for name in self.loggers:
            require(name in LOGGERS, f"unknown logger {name!r}: {nearest(name, LOGGERS)}")


def lightning() -> Any:
    """Import Lightning, or raise an error that names the extra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_lightning
    except ImportError:
        raise StateformError('training needs Lightning: pip install "stateform[train]"') from None
    return pytorch_lightning


def say(text: str) -> None:
    """Print a line to the standard error about something unexpected that is no error."""
    if first_process():
        print(f"stateform: {text}", file=sys.stderr, flush=True)


def first_process() -> bool:
    """True if this is the one of several processes that prints and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextlib.contextmanager
def quiet(threads: int | None) -> Iterator[None]:
    """Silence Lightning, and restore the settings of the process that it changes. Ctrl-C stays an interrupt."""
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

        if isinstance(end, SIGTERMException):  # its exit code would be 0
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
