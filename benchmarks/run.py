"""Time every form of every registered layer on one machine, in one process, layers taking turns.

    python benchmarks/run.py [--d-model 256] [--max-length 2048] [--repeats 7] [--out build/bench/forms.json]

Prints the tables of `stateform compare` and writes its numbers. A ratio between two rows of one run means something; a
time by itself depends on the machine, which the file names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import stateform as sf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layers", nargs="*", default=sf.names())
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/bench/forms.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    found = sf.compare(
        options.layers,
        d_model=options.d_model,
        max_length=options.max_length,
        repeats=options.repeats,
        on_progress=lambda what, done, total: console.print(f"[{done}/{total}] {what}", highlight=False),
    )
    Console().print(found)
    found.save_json(options.out)
    print(f"Numbers: {options.out}")


if __name__ == "__main__":
    main()
