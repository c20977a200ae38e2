"""The engine that computes in worker processes of this machine."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing as mp
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ..own import Origin, Surroundings, without_script
from ..rows import Run, finite
from .engine import Event
from .runner import Runner, in_words, log_of, printing_to, threads_granted, trained

WORKER = "stateform-worker"
"""The name of the processes that compute runs."""


class Processes:
    """An engine that computes in worker processes of this machine. One that dies is replaced; the others go on.

    Args:
        folder: where the runs' folders and what they print go.
        workers: how many processes; the threads of the machine are divided among them, and its GPUs dealt out.
        runner: what computes a run.
        origins: of the user's own classes that runs are made of.
    """

    def __init__(self, folder: Path, workers: int, runner: Runner = trained, origins: Iterable[Origin] = ()) -> None:
        self.folder, self.workers, self.runner = folder, workers, runner
        self.surroundings = Surroundings.here(origins)
        # Forked from a server that has imported everything once, a new process starts at once and holds nothing of
        # this one (locks, files, a GPU). Not every system has that.
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
            given = (self.folder.absolute(), pickle.dumps(self.runner), min(threads, threads_granted()), gpu)
            worker = self.crew[place] = _Worker(self.context, *given, self.surroundings)
        worker.run = run
        with contextlib.suppress(OSError):  # it has just died: `wait` says so
            worker.pipe.send((run.key, run.experiment))

    def wait(self, seconds: float) -> list[Event]:
        # Waiting for pipes is enough: a dead process's pipe ends, after all that it sent has been read.
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
    """Compute, in a worker process, the runs that come through the pipe, until it ends or the parent is gone."""
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
        with printing_to(log_of(folder, key)):
            try:
                faulthandler.enable(2)
                if runner is None:  # not earlier, so that errors are in the log
                    surroundings.enter()
                    runner = pickle.loads(pickled)
                said = "done", json.dumps(finite(runner(experiment, folder / "runs" / key, tell)))
            except Exception as error:  # an exit (SIGTERM) is a death like any other: the run is put back
                traceback.print_exc()
                said = "failed", in_words(error)
        pipe.send(said)


def visible_gpu(gpu: int, visible: str | None) -> str:
    """Make CUDA_VISIBLE_DEVICES for the worker that has this GPU of those that are visible."""
    return visible.split(",")[gpu].strip() if visible else str(gpu)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = next((s.name for s in signal.Signals if s == -code), str(-code))
        why = " (often for want of memory)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{why}"
    return f"its process ended with exit code {code}"
