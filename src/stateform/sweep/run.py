"""Sweeps: many experiments from one file, their outcomes in one store. After a kill, the next call does the rest."""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import nearest, require
from ..train.config import Experiment
from ..train.sources import Sources, changes, sources
from .engines import WORKER, Engine, Event, Here, Processes, Ray, Runner, note, trained
from .own import Origin, by_value, origins
from .plan import Plan, Planned, read_plan
from .results import Results, headline
from .rows import Run
from .search import Search
from .store import Store

STORE = "store.db"
"""The store's file in the folder of sweeps."""
ENGINES = ("local", "ray")
_LOOK = 10.0
"""Seconds between looks for runs of other processes that were killed."""

Said = Callable[[str], None]
Bar = Callable[[str, int, int], None]


def sweep(
    source: str | Path | Mapping[str, Any] | Plan, folder: str | Path = "sweeps", *, workers: int | None = None,
    engine: Literal["local", "ray"] = "local", address: str | None = None, gpus: float = 0.0, quick: bool = False,
    as_released: bool = False, overrides: Sequence[str] = (), retry: bool = False, runner: Runner = trained,
    on_progress: Bar | None = None, on_finished: Said | None = None,
) -> Results:  # fmt: skip
    """Run every experiment of a sweep that has no outcome yet.

    Several may work on one store at a time, and share the runs. Called again after it was interrupted or killed, it
    goes on: no outcome is computed twice, and a training goes on from its checkpoint.

    Args:
        source: the file (see `stateform.sweep.plan`), the name of a preset, its tables as a dict, or a plan.
        folder: where the store (`store.db`), the runs' folders (`runs/KEY`) and what they print (`logs/KEY.txt`) go.
        workers: processes, or runs on the cluster, at a time; default: one on this machine, all of a cluster's
            processors. 0: this process computes the runs itself, one after the other.
        engine: where they are computed.
        address: of a Ray cluster; None: one is started here.
        gpus: of each run on the cluster.
        quick: with the file's table [quick].
        as_released: with the file's table [as-released].
        overrides: "part.setting=value", see `read_plan`.
        retry: try again what failed.
        runner: what computes a run.
        on_progress: called with (what, thousandths of runs done, thousandths of all).
        on_finished: called with a line for each run that is over.

    Returns:
        The results of this sweep, those of earlier calls among them; `.complete` is False after Ctrl-C.

    Raises:
        StateformError: before any work, a file or a store that cannot be used; later, a disk that is full or a cluster
            that is gone (what is finished is kept).
    """
    plan = source
    if not isinstance(plan, Plan):
        plan = read_plan(plan, quick=quick, as_released=as_released, overrides=overrides)
    require(engine in ENGINES, f"unknown engine {engine!r}: {nearest(engine, ENGINES)}")
    require(workers is None or workers >= 0, f"workers is {workers}; expected a number of them, or 0 for this process")
    require(engine == "ray" or (address is None and gpus == 0), "an address and gpus are for the engine ray")
    require(not (engine == "ray" and workers == 0), "the engine ray needs workers, 1 or more")
    require(mp.current_process().name != WORKER,
            "a worker of a sweep has come upon a sweep: the script that it runs again for what is defined in it starts "
            'one; put that below `if __name__ == "__main__":`')  # fmt: skip
    folder = Path(folder)
    known = origins(plan.experiments(), runner)
    alone = [name for name in known if isinstance(name, str)]
    if alone and engine == "local" and workers != 0:
        where = f"{', '.join(alone)}: defined in a notebook, a function or after `python -c`, where worker processes"
        require(workers is None, f"{where} cannot find it; put it in a file, and name it as file.py:Class, or take "
                "workers=0")  # fmt: skip
        print(f"stateform: {where} cannot find it; the runs are computed in this one", file=sys.stderr, flush=True)
        workers = 0
    with contextlib.ExitStack() as cleared:
        store = cleared.enter_context(Store(folder / STORE, create=True))
        store.add(plan.name, (run.row for run in plan.runs))
        search = None
        if plan.space:
            search = Search(store.path, plan)
            cleared.callback(search.close)
        work = _Work(store, plan, search, folder, on_progress, on_finished)
        if retry:
            store.retry(plan.name, work.keys)
        store.recover()
        if work.waits():
            at: Engine
            if engine == "ray":
                at = Ray(folder, workers, address, gpus, runner, by_value(plan.experiments()))
            elif workers == 0:
                at = Here(folder, runner, work.tell)
            else:
                at = Processes(folder, workers or 1, runner, [one for one in known if isinstance(one, Origin)])
            work.run_all(at)
        return Results(store.runs(plan.name, work.keys), str(store.path), not work.interrupted, claims=plan.claims)


class _Work:
    """The runs to do, and the progress with them."""

    def __init__(
        self, store: Store, plan: Plan, search: Search | None, folder: Path, on_progress: Bar | None,
        on_finished: Said | None,
    ) -> None:  # fmt: skip
        self.store, self.plan, self.search, self.folder = store, plan, search, folder
        self.on_progress, self.on_finished = on_progress, on_finished
        self.interrupted = False
        self.shares: dict[str, float] = {}
        """By key of a run in progress: the share of it that is done."""
        self.keys = [run.experiment.key for run in plan.runs]
        if search is not None:
            self._plan(search.resume())
            for run in store.runs(plan.name, search.open):
                if run.status in ("done", "failed"):
                    search.tell(run)
        _unchanged(store.runs(plan.name, self.keys), str(store.path))
        self._count()

    def _plan(self, runs: list[Planned]) -> None:
        self.store.add(self.plan.name, (run.row for run in runs))
        self.keys = list(dict.fromkeys([*self.keys, *(run.experiment.key for run in runs)]))

    def waits(self) -> bool:
        """True if there is anything to do."""
        return self.search is not None or "waiting" in self.store.counts(self.plan.name, self.keys)

    def _count(self) -> None:
        """Count the runs that are over, those of other processes too."""
        counts = self.store.counts(self.plan.name, self.keys)
        self.over = counts.get("done", 0) + counts.get("failed", 0)

    def _next(self) -> Run | None:
        """Claim a run for this process, None if there is none; a search is asked for one if none waits."""
        run = self.store.claim(self.plan.name, self.keys)
        while run is None and self.search is not None and (asked := self.search.ask()) is not None:
            self._plan([asked])
            run = self.store.claim(self.plan.name, self.keys)
            if run is None:  # tried before, here or in another process: its value is known, or will be
                for known in self.store.runs(self.plan.name, [asked.experiment.key]):
                    if known.status in ("done", "failed"):
                        self.search.tell(known)
        return run

    def run_all(self, engine: Engine) -> None:
        """Run everything. Whatever happens, end the engine and put back the runs that are not finished."""
        with self.store.beating():
            try:
                looked = time.monotonic()
                while True:
                    while engine.free and (run := self._next()) is not None:
                        self.shares[run.key] = 0.0
                        self._show(run.name)
                        engine.start(run)
                    if engine.busy:
                        for event in engine.wait(1.0):
                            self.tell(event)
                    elif "waiting" in self.store.counts(self.plan.name, self.keys):
                        time.sleep(1.0)  # the same experiment is running in another sweep of the store
                    else:
                        break
                    if time.monotonic() - looked > _LOOK:
                        looked = time.monotonic()
                        self.store.recover()
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                with _uninterrupted():
                    try:
                        engine.stop()
                    finally:
                        self.store.release()

    def tell(self, event: Event) -> None:
        """Record what became of a run, or its progress."""
        run = event.run
        if event.kind == "progress":
            what, done, total = event.value
            self.shares[run.key] = min(done / max(total, 1), 1.0)
            self._show(f"{run.name}: {what}")
            return
        self.shares.pop(run.key, None)
        if event.kind == "crashed":
            how = f"{event.value}; see {note(self.folder, run, f'stateform: {event.value}')}"
            if self.store.record_crash(run, how):
                self._say(f"{run.name}   {how}; it will be tried again")
                return
        elif event.kind == "done":
            self.store.finish(run, event.value)
        else:
            self.store.fail(run, event.value)
        (now,) = self.store.runs(run.sweep, [run.key])
        if self.search is not None and now.status in ("done", "failed"):  # else another process has taken it over
            self.search.tell(now)
        self._count()
        self._say(f"{self.over}/{self._total}  {now.name}   {headline(now)}")
        self._show(now.name)

    @property
    def _total(self) -> int:
        return max(self.plan.total, len(self.keys))

    def _say(self, line: str) -> None:
        if self.on_finished is not None:
            self.on_finished(line)

    def _show(self, what: str) -> None:
        if self.on_progress is not None:
            share = self.over + sum(self.shares.values())
            self.on_progress(f"{self.over}/{self._total}  {what}", round(1000 * share), 1000 * self._total)


def _unchanged(runs: Sequence[Run], store: str) -> None:
    """Raise if an outcome came from other data or code than today's; print once where that is not known."""
    now: dict[str, tuple[Experiment, Sources]] = {}
    said: set[str] = set()
    for run in runs:
        if run.status != "done":
            continue
        alike = json.dumps([run.experiment["task"], run.experiment["model"]], sort_keys=True)
        if alike not in now:
            made = Experiment.from_dict(run.experiment)
            now[alike] = made, sources(made)
        made, found = now[alike]
        changed, notes = changes((run.outcome or {}).get("metrics", {}).get("sources"), found, made)
        where = f"{store} has the outcome of {run.name}"
        require(changed is None, f"{where}, but {changed}; bring it back, or name another folder")
        said |= set(notes)
    for text in sorted(said):
        print(f"stateform: {store}: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C inside: while workers are ended and runs put back, a second one must not stop that."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def store_of(path: str | Path) -> Path:
    """Find the store's file: that path, or the one in that folder."""
    path = Path(path)
    return path / STORE if os.path.isdir(path) else path


__all__ = ["ENGINES", "STORE", "store_of", "sweep"]
