"""Where the runs of a sweep are computed: in processes of this machine, in this process, or on a Ray cluster.

An engine is handed runs and tells what became of them; it knows neither the store nor the plan. A run is computed by a
*runner*, a function of a module (so that other processes can import it): the experiment as plain values, a folder, a
progress callback; it returns the outcome as plain values, and goes on from what it finds in the folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import multiprocessing as mp
import os
import pickle
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ..errors import StateformError, require
from ..files import DamagedError
from ..result import Progress
from ..train.config import Experiment
from .own import Origin, Surroundings, without_script
from .store import Run, finite

WORKER = "stateform-worker"
"""The name of the processes that compute runs."""
Runner = Callable[[dict[str, Any], Path, Progress], dict[str, Any]]


def trained(experiment: dict[str, Any], folder: Path, on_progress: Progress) -> dict[str, Any]:
    """The runner of a sweep: `train`, on one device. A folder whose books are damaged is set aside."""
    from ..train import Machine, train

    made, machine = Experiment.from_dict(experiment), Machine(devices=1, threads=torch.get_num_threads())
    try:
        return train(made, folder, machine=machine, on_progress=on_progress).to_dict()
    except DamagedError as error:
        aside = folder.with_name(f"{folder.name}-damaged-{secrets.token_hex(4)}")
        folder.rename(aside)
        print(f"stateform: {error}; {folder} is now {aside}, and the run begins anew", file=sys.stderr, flush=True)
        return train(made, folder, machine=machine, on_progress=on_progress).to_dict()


@dataclass(frozen=True)
class Event:
    """What became of a run: `value` is its outcome, why it failed, how its process died, or how far it is."""

    run: Run
    kind: Literal["done", "failed", "crashed", "progress"]
    value: Any


class Engine(Protocol):
    """What computes runs."""

    @property
    def free(self) -> int:
        """How many more runs can be started now."""

    @property
    def busy(self) -> int:
        """How many are being computed."""

    def start(self, run: Run) -> None:
        """Begin one."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened; waits for it, but not for longer."""

    def stop(self) -> None:
        """End everything, the runs that are being computed too."""


class Here:
    """Computes one run at a time, in this process."""

    def __init__(
        self, folder: Path, runner: Runner = trained, on_progress: Callable[[Event], None] | None = None
    ) -> None:
        self.folder, self.runner, self.on_progress = folder, runner, on_progress
        self.run: Run | None = None

    @property
    def free(self) -> int:
        return int(self.run is None)

    @property
    def busy(self) -> int:
        return int(self.run is not None)

    def start(self, run: Run) -> None:
        self.run = run

    def wait(self, seconds: float) -> list[Event]:
        run = self.run
        assert run is not None

        def tell(what: str, done: int, total: int) -> None:
            if self.on_progress is not None:
                self.on_progress(Event(run, "progress", (what, done, total)))

        try:
            return [Event(run, "done", self.runner(run.experiment, self.folder / "runs" / run.key, tell))]
        except Exception as error:
            note(self.folder, run, traceback.format_exc())
            return [Event(run, "failed", _in_words(error))]
        finally:
            self.run = None

    def stop(self) -> None:
        pass


class Processes:
    """Computes in worker processes of this machine. One that dies takes no other with it, and is replaced.

    Args:
        folder: where the runs' folders and what they print go.
        workers: how many processes; the threads of the machine are divided among them, and its GPUs dealt out.
        runner: what computes a run.
        origins: of the user's own classes that runs are made of.
    """

    def __init__(self, folder: Path, workers: int, runner: Runner = trained, origins: Iterable[Origin] = ()) -> None:
        self.folder, self.workers, self.runner = folder, workers, runner
        self.surroundings = Surroundings.here(origins)
        # Forked from a server that has imported everything once, a new process is there at once, and is free of what
        # this process holds (locks, files, a GPU). Not every system has that.
        method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        self.context: Any = mp.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload([__name__])
        self.crew: list[_Worker | None] = [None] * workers

    @property
    def free(self) -> int:
        return sum(worker is None or worker.run is None for worker in self.crew)

    @property
    def busy(self) -> int:
        return self.workers - self.free

    def start(self, run: Run) -> None:
        place = next(i for i, worker in enumerate(self.crew) if worker is None or worker.run is None)
        worker = self.crew[place]
        if worker is not None and not worker.process.is_alive():
            worker.close()
            worker = None
        if worker is None:
            gpus = torch.cuda.device_count()
            gpu = place % gpus if gpus > 1 else None
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            given = (self.folder.absolute(), pickle.dumps(self.runner), min(threads, _threads()), gpu)
            worker = self.crew[place] = _Worker(self.context, *given, self.surroundings)
        worker.run = run
        with contextlib.suppress(OSError):  # it has just died: `wait` says so
            worker.pipe.send((run.key, run.experiment))

    def wait(self, seconds: float) -> list[Event]:
        # Pipes alone: a dead process's pipe has an end, and what it sent before is read first.
        pipes = {worker.pipe: i for i, worker in enumerate(self.crew) if worker is not None and worker.run is not None}
        events = []
        for pipe in connection.wait(list(pipes), seconds):
            place = pipes[pipe]
            worker = self.crew[place]
            assert worker is not None and worker.run is not None
            run = worker.run
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                events.append(Event(run, "crashed", _death(worker.process.exitcode)))
                worker.close()
                self.crew[place] = None
                continue
            if kind == "done":
                value = json.loads(value)
            if kind != "progress":
                worker.run = None
            events.append(Event(run, kind, value))
        return events

    def stop(self) -> None:
        for worker in self.crew:
            if worker is not None:
                worker.process.terminate() if worker.run is not None else worker.pipe.close()
        for worker in self.crew:
            if worker is not None:
                worker.process.join(10)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
                worker.close()
        self.crew = [None] * self.workers


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, context: Any, *given: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *given), name=WORKER)
        with without_script():
            self.process.start()
        theirs.close()  # only the process has it now, so that its death ends the pipe
        self.run: Run | None = None

    def close(self) -> None:
        self.pipe.close()
        self.process.close()


def _work(
    pipe: Any, folder: Path, pickled: bytes, threads: int, gpu: int | None, surroundings: Surroundings
) -> None:  # fmt: skip
    """A worker process: computes what comes through the pipe, until that ends or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent sees to it
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # nobody waits for the result any more, and another sweep may take the run

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
    sent, runner = 0.0, None

    def tell(what: str, done: int, total: int) -> None:
        nonlocal sent
        if time.monotonic() - sent > 0.2:
            sent = time.monotonic()
            pipe.send(("progress", (what, done, total)))

    while True:
        try:
            key, experiment = pipe.recv()
        except (EOFError, OSError):
            return
        with _printing_to(log_of(folder, key)):
            try:
                faulthandler.enable(2)
                if runner is None:  # here, so that what goes wrong is in the log
                    surroundings.enter()
                    runner = pickle.loads(pickled)
                said = "done", json.dumps(finite(runner(experiment, folder / "runs" / key, tell)))
            except Exception as error:  # an exit (SIGTERM) is a death like any other: the run is put back
                traceback.print_exc()
                said = "failed", _in_words(error)
        pipe.send(said)


def note(folder: Path, run: Run, text: str) -> Path:
    """Add a text to the log of a run, where there is a place for it; the log."""
    path = log_of(folder, run.key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{text.rstrip()}\n")
    return path


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Everything that is printed, by libraries in C too, at the end of that file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # no place for it: what matters is in the outcome
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


class Ray:
    """Computes on a Ray cluster, one run on each processor. The folder must be one that all its machines see.

    Args:
        folder: where the runs' folders go.
        workers: how many runs at a time; None: as many as the cluster has processors.
        address: of the cluster; None: one on this machine, for this sweep.
        gpus: of each run.
        runner: what computes a run.
        origins: of the user's own classes that runs are made of.
    """

    def __init__(
        self, folder: Path, workers: int | None = None, address: str | None = None, gpus: float = 0.0,
        runner: Runner = trained, origins: Iterable[Origin] = (),
    ) -> None:  # fmt: skip
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # as later versions have it; silences a warning
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise StateformError('--engine ray needs Ray: pip install "stateform[sweep]"') from None
        require(not ray.is_initialized(), "Ray is in use in this process already; end that with ray.shutdown()")
        self.ray, self.folder = ray, folder.absolute()
        local: dict[str, Any] = {} if address else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise StateformError(f"cannot reach the Ray cluster {address or 'here'}: {error}") from None
        self.slots = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        threads = 1 if address else max(1, (os.cpu_count() or 1) // self.slots)
        # A lost worker is replaced by Ray; what the runner raises is an answer like any other.
        self.remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3, max_calls=0)(_on_ray)
        self.given = ray.put(runner), min(threads, _threads()), ray.put(Surroundings.here(origins))
        self.running: dict[Any, Run] = {}

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    @property
    def busy(self) -> int:
        return len(self.running)

    def start(self, run: Run) -> None:
        runner, threads, surroundings = self.given
        text, folder = json.dumps(run.experiment), str(self.folder / "runs" / run.key)
        self.running[self.remote.remote(runner, text, folder, threads, surroundings)] = run

    def wait(self, seconds: float) -> list[Event]:
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        events = []
        for task in ready:
            run = self.running.pop(task)
            try:
                kind, value = self.ray.get(task)
                events.append(Event(run, kind, json.loads(value) if kind == "done" else value))
            except self.ray.exceptions.RayError as error:
                events.append(Event(run, "crashed", _in_words(error)))
        return events

    def stop(self) -> None:
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.running = {}
        self.ray.shutdown()


def _on_ray(
    runner: Runner, experiment: str, folder: str, threads: int, surroundings: Surroundings
) -> tuple[str, str]:  # fmt: skip
    torch.set_num_threads(threads)
    where = Path(folder)
    with _printing_to(log_of(where.parent.parent, where.name)):
        try:
            surroundings.enter()
            return "done", json.dumps(finite(runner(json.loads(experiment), where, lambda *_: None)))
        except Exception as error:
            traceback.print_exc()
            return "failed", _in_words(error)


def log_of(folder: Path, key: str) -> Path:
    """Where the run of that key prints, of a sweep in that folder."""
    return folder / "logs" / f"{key}.txt"


def visible_gpu(gpu: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for the worker that has this GPU of those that are visible."""
    return visible.split(",")[gpu].strip() if visible else str(gpu)


def _threads() -> int:
    """Threads that the environment grants."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    return int(granted) if granted.isdigit() and int(granted) > 0 else sys.maxsize


def _in_words(error: BaseException) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, StateformError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = next((s.name for s in signal.Signals if s == -code), str(-code))
        why = " (often for want of memory)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}"
    return f"its process ended with exit code {code}"
