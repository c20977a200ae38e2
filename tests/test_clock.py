"""The clock: turns, how often a job runs, and one meaning of a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stateform as sf
from stateform.clock import Pace, seconds, spread, take_turns

SOURCE = Path(sf.__file__).parent


class Told:
    """A clock that jobs move: each takes as long as it says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def job(self, name: str, *takes: float) -> Callable[[], Callable[[], Any]]:
        """A job whose runs take so long, the last of them from then on."""
        left = list(takes)

        def go() -> None:
            self.ran.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return lambda: go


def timed(repeats: int, pace: Pace, **takes: tuple[float, ...]) -> tuple[dict[str, list[float]], list[str]]:
    clock, times = Told(), dict[str, list[float]]()
    take_turns({name: clock.job(name, *some) for name, some in takes.items()}, repeats, times, clock=clock, pace=pace)
    return times, clock.ran


def test_a_quick_job_runs_several_times_in_a_turn_and_its_time_is_that_of_one_run() -> None:
    times, ran = timed(
        2, Pace(span=1.0, most=4), quick=(9.0, 0.5), tiny=(9.0, 0.01)
    )  # the first run loads and compiles
    assert times == {"quick": [0.5, 0.5], "tiny": pytest.approx([0.01, 0.01])}
    assert ran == ["quick"] * 2 + ["tiny"] * 2 + (["quick"] * 2 + ["tiny"] * 4) * 2


def test_a_slow_job_has_few_rounds() -> None:
    times, ran = timed(5, Pace(slow=1.0, few=2), slow=(2.0,), quick=(0.5,))
    assert (len(times["slow"]), len(times["quick"])) == (2, 5)
    once, ran = timed(5, Pace(slow=1.0, few=1), slow=(3.0, 2.0))  # warmed up, then measured
    assert once == {"slow": [2.0]} and len(ran) == 2
    first, ran = timed(5, Pace(slow=1.0, few=0), slow=(3.0, 2.0))
    assert first == {"slow": [3.0]} and len(ran) == 1


def test_an_error_is_kept_where_it_is_asked_for_and_else_raised() -> None:
    def broken() -> Callable[[], Any]:
        raise RuntimeError("out of\nmemory")

    failed: dict[str, str] = {}
    take_turns({"a": broken}, 1, {}, failed)
    assert failed == {"a": "RuntimeError: out of memory"}
    with pytest.raises(RuntimeError):
        take_turns({"a": broken}, 1, {})


def test_a_spread_is_in_the_unit_that_is_asked_for() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2000.0, "low": 1000.0, "high": 3000.0, "rounds": 3}
    assert spread([2e-6], 1e-6)["median"] == pytest.approx(2.0)
    waited: list[int] = []
    assert seconds(lambda: None, 2, lambda: waited.append(1), lambda: 7.0) == 0.0 and len(waited) == 2


def test_nothing_else_looks_at_a_clock_to_time_something() -> None:
    looks = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"perf_counter\(\)", path.read_text(encoding="utf-8"))
    }
    assert looks == set()  # `take_turns` is given one
