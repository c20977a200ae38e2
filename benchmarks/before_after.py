"""Two checkouts side by side: has a change made anything slower?

    python benchmarks/before_after.py OTHER_CHECKOUT --turns 15

What a user waits for, in this checkout and in the other one, in turns: each has a process of its own. Only public
names are used, so that the two may look quite different inside. The table has medians, half the distance from the
least to the largest (±) and the ratio this / other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent
STEPS = 200
"""Tokens of a turn of decoding."""


def timed(run: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


# -- what is measured: each gives the seconds of a turn, which begins in a new process


def package() -> float:
    return timed(lambda: __import__("stateform"))


def names() -> float:
    import torch  # noqa: F401 - is not what is compared

    return timed(lambda: __import__("stateform").build)


def usage() -> float:
    return timed(lambda: subprocess.run([sys.executable, "-m", "stateform", "--help"], check=True, capture_output=True))


def compiles() -> float:
    import torch

    import stateform as sf

    layer, x = sf.build("gla", d_model=64), torch.randn(1, 64, 64)
    layer(x)  # its own loops are compiled once, and kept
    return timed(lambda: torch.compile(layer)(x))


def decode() -> float:
    import torch

    import stateform as sf

    layer, x = sf.build("mamba", d_model=768).eval(), torch.randn(1, 768)
    state = layer.init_state(1)

    def steps() -> None:
        nonlocal state
        for _ in range(STEPS):
            _, state = layer.step(x, state, inplace=True)

    with torch.no_grad():
        steps()
        return median(timed(steps) for _ in range(3)) / STEPS


def forward() -> float:
    import torch

    import stateform as sf

    layer, x = sf.build("gated_deltanet", d_model=768).eval(), torch.randn(1, 2048, 768)
    with torch.no_grad():
        layer(x)
        return median(timed(lambda: layer(x)) for _ in range(7))


MEASURED: dict[str, Callable[[], float]] = {
    "import stateform": package,
    "all names, after import torch": names,
    "stateform --help": usage,
    "torch.compile of GLA, nothing cached": compiles,
    "a step of Mamba, d 768": decode,
    "Gated DeltaNet, d 768, T 2048": forward,
}
"""By name. Each turn has a new process: where memory lies, which differs by process, changes a step by a tenth."""


# -- turns --------------------------------------------------------------------------------------------------------


def turn(checkout: Path, name: str) -> float:
    """The seconds of one measurement in a process of its own, which uses this checkout."""
    with tempfile.TemporaryDirectory() as empty:
        settings = {"PYTHONPATH": str(checkout / "src"), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
                    "TORCHINDUCTOR_CACHE_DIR": empty}  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, __file__, str(checkout), "--measure", name]
        run = subprocess.run(command, env=kept | settings, capture_output=True, encoding="utf-8")
    if run.returncode:
        raise SystemExit(run.stderr)
    return float(run.stdout)


def measure(checkout: Path, name: str) -> None:
    """Print the seconds of one measurement in this process."""
    print(MEASURED[name]())
    where = getattr(sys.modules.get("stateform"), "__file__", None)
    if where is not None and checkout not in Path(where).parents:
        raise SystemExit(f"{where} is not of {checkout}; uninstall it from this environment, or use another")


def both(checkouts: dict[str, Path], name: str, turns: int) -> dict[str, list[float]]:
    """The seconds of so many turns of each; who begins changes. A turn before them, not counted, writes bytecode."""
    found: dict[str, list[float]] = {who: [] for who in checkouts}
    for number in range(-1, turns):
        for who in sorted(checkouts, reverse=number % 2 == 1):
            seconds = turn(checkouts[who], name)
            if number >= 0:
                found[who].append(seconds)
    return found


def commit(checkout: Path) -> str:
    """What is checked out, "+" where files differ from it."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=checkout, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def told(seconds: list[float]) -> str:
    return f"{1e3 * median(seconds):10.3f} ms ± {1e3 * (max(seconds) - min(seconds)) / 2:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--turns", type=int, default=15, help="of each, for each measurement (compiling: a third)")
    parser.add_argument("--only", nargs="*", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "before-after.json")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.other, given.measure)
        return
    checkouts = {"this": HERE, "other": given.other.resolve()}
    commits = {who: commit(path) for who, path in checkouts.items()}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}  # fmt: skip
    found: dict[str, Any] = {}
    print(f"{'':<38}{'this ' + commits['this']:>25}{'other ' + commits['other']:>27}   this / other")
    for name in given.only:
        turns = max(3, given.turns // 3) if MEASURED[name] is compiles else given.turns
        seconds = both(checkouts, name, turns)
        ratio = median(seconds["this"]) / median(seconds["other"])
        found[name] = {**seconds, "ratio": ratio}
        print(f"{name:<38}{told(seconds['this'])}  {told(seconds['other'])}   {ratio:.3f}", flush=True)
        report = {"commits": commits, "machine": machine, "unit": "s", "measured": found}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
