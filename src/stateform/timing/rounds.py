"""Measuring in turns: in every round each party runs once, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

Job = Callable[[], Callable[[], Any]]
"""What prepares a measurement, untimed, and gives what is timed."""
Clock = Callable[[], float]
"""Seconds."""

SPAN = 0.02
"""Seconds that a turn takes at least: a quick job runs several times in it."""
MOST = 64
"""How often at most."""
SLOW, FEW = 5.0, 3
"""A job of more than so many seconds has so many rounds at most."""
RECOVERABLE = (Exception,)
"""What a party may fail with without ending the others: out of memory, no such kernel, a module that a package of
another version lacks, an error of a kernel's own compiler.
"""


def take_turns(
    jobs: dict[str, Job], repeats: int, times: dict[str, list[float]], failed: dict[str, str],
    sync: Callable[[], None] = lambda: None, clock: Clock = time.perf_counter,
) -> None:  # fmt: skip
    """Warm every job up, then run `repeats` rounds over all of them.

    Args:
        times: filled with seconds a run, by job, as the rounds go on: what is in it after an interruption is good.
        failed: filled with why a job could not run.
        sync: waits for the device.
    """
    counts, rounds = {}, {}
    for name, job in jobs.items():
        try:
            go = job()
            seconds(go, 1, sync, clock)  # loads, compiles, fills caches
            first = seconds(go, 1, sync, clock)
        except RECOVERABLE as error:
            failed[name] = one_line(error)
            continue
        counts[name] = max(1, min(MOST, round(SPAN / max(first, 1e-9))))
        rounds[name] = min(repeats, FEW) if first > SLOW else repeats
        times[name] = []
    for i in range(max(rounds.values(), default=0)):
        with collected():
            for name in counts:
                if i < rounds[name]:
                    go = jobs[name]()
                    times[name].append(seconds(go, counts[name], sync, clock) / counts[name])


def seconds(go: Callable[[], Any], count: int, sync: Callable[[], None], clock: Clock) -> float:
    """The time of `count` runs."""
    sync()
    start = clock()
    for _ in range(count):
        go()
    sync()
    return clock() - start


@contextmanager
def collected() -> Iterator[None]:
    """Garbage is collected before, and not inside."""
    gc.collect()
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def spread(times: list[float]) -> dict[str, Any]:
    """Median, least and largest, in milliseconds, and how many rounds they are of."""
    ms = [1e3 * t for t in times]
    return {"median": median(ms), "low": min(ms), "high": max(ms), "rounds": len(ms)}


def one_line(error: BaseException) -> str:
    """An error as a reason in a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
