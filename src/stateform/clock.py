"""The one clock: jobs are warmed up, then take turns, so that a slow moment of the machine hits all alike.

It stands low in the order of imports, as the form `auto` is calibrated with it too. A time is always that of one run:
the mean over the runs of a turn. Reported are the median over the turns, the least and the largest.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

Job = Callable[[], Callable[[], Any]]
"""Prepares a measurement, untimed, and returns the function to time."""
Clock = Callable[[], float]
"""Seconds."""
K = TypeVar("K", bound=Hashable)

RECOVERABLE = (Exception,)
"""Errors of a party that do not end the others: out of memory, no such kernel, a module that a package of
another version lacks, an error of a kernel's own compiler.
"""


@dataclass(frozen=True)
class Pace:
    """The number of runs of a job.

    Args:
        span: seconds that a turn takes at least: a quick job runs several times in it.
        most: how often at most.
        slow: seconds above which a job has `few` rounds at most.
        few: rounds of a slow job; with 0, the run that warmed it up is the measurement.
    """

    span: float = 0.02
    most: int = 64
    slow: float = 5.0
    few: int = 3


def take_turns(
    jobs: Mapping[K, Job], repeats: int, times: dict[K, list[float]], failed: dict[K, str] | None = None,
    sync: Callable[[], None] = lambda: None, clock: Clock = time.perf_counter, pace: Pace = Pace(),
) -> None:  # fmt: skip
    """Run `repeats` rounds over all jobs, each warmed up before; no garbage is collected within a round.

    Args:
        jobs: by name.
        repeats: rounds.
        times: filled with seconds a run, by job, as the rounds go on; after an interruption it is still valid.
        failed: filled with why a job could not run; None: an error is raised.
        sync: waits for the device.
        clock: seconds; for tests.
        pace: how often a job runs.
    """
    counts, rounds = {}, {}
    for name, job in jobs.items():
        try:
            go = job()
            first = seconds(go, 1, sync, clock)  # loads, compiles, fills caches
            if first <= pace.slow or pace.few > 1:
                first = seconds(go, 1, sync, clock)  # from this, how often it will run in a turn
        except RECOVERABLE as error:
            if failed is None:
                raise
            failed[name] = one_line(error)
            continue
        counts[name] = max(1, min(pace.most, round(pace.span / max(first, 1e-9))))
        rounds[name] = min(repeats, pace.few) if first > pace.slow else repeats
        times[name] = [] if rounds[name] else [first]
    for i in range(max(rounds.values(), default=0)):
        with without_collection():
            for name in counts:
                if i < rounds[name]:
                    go = jobs[name]()
                    times[name].append(seconds(go, counts[name], sync, clock) / counts[name])


def seconds(
    go: Callable[[], Any], count: int = 1, sync: Callable[[], None] = lambda: None, clock: Clock = time.perf_counter
) -> float:
    """Time `count` runs."""
    sync()
    start = clock()
    for _ in range(count):
        go()
    sync()
    return clock() - start


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage inside."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def spread(times: list[float], unit: float = 1e-3) -> dict[str, Any]:
    """Give median, least and largest of times in seconds, in a unit (default: milliseconds), and count the rounds."""
    found = [t / unit for t in times]
    return {"median": median(found), "low": min(found), "high": max(found), "rounds": len(found)}


def one_line(error: BaseException) -> str:
    """Write an error as a reason in a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
