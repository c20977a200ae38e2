"""The engine that computes on a Ray cluster."""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...errors import StateformError, require
from ..own import Origin, Surroundings
from ..rows import Run, finite
from .engine import Event
from .runner import Runner, in_words, log_of, printing_to, threads_granted, trained


class Ray:
    """An engine that computes on a Ray cluster, one run a processor. All its machines must see the folder.

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
        # Ray replaces a lost worker and tries again; an error of the runner is an outcome, and not tried again.
        self.remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3, max_calls=0)(_on_ray)
        self.given = ray.put(runner), min(threads, threads_granted()), ray.put(Surroundings.here(origins))
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
                events.append(Event(run, "crashed", in_words(error)))
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
    with printing_to(log_of(where.parent.parent, where.name)):
        try:
            surroundings.enter()
            return "done", json.dumps(finite(runner(json.loads(experiment), where, lambda *_: None)))
        except Exception as error:
            traceback.print_exc()
            return "failed", in_words(error)
