"""How long `state_need` and `reduce_varying` take: python benchmarks/state_need.py ["softmax(n_heads=12)" ...]

Layers as they are initialised, on random input, in float64, heads together; and softmax heads with sharp, unrelated
weights (queries and keys drawn with --scale), which no small state can stand for: the hardest case.
"""

from __future__ import annotations

import argparse
import time

import torch

import stateform as sf
from stateform.analysis import state_need
from stateform.convert import reduce_varying

LAYERS = ["softmax(n_heads=12)", "gated_deltanet(n_heads=12)", "retention(n_heads=12)", "mamba2(d_head=128)"]


def sharp(length: int, heads: int, scale: float) -> sf.System:
    """Softmax attention of random queries and keys, logits of about `scale`."""
    q, k = (torch.randn(1, length, heads, 64, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, length, heads, 64, dtype=torch.float64)
    return sf.System(q * scale / 8, k, v, readout="exp", eta="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("layers", nargs="*", default=LAYERS)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--reduce", action="store_true", help="time reduce_varying too (a few hundred tokens)")
    options = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(1, options.length, 64 * options.heads)
    systems = {}
    for name in options.layers:
        with torch.no_grad():
            systems[name] = sf.build(name, d_model=64 * options.heads).system(x)
    systems[f"sharp softmax, scale {options.scale:g}"] = sharp(options.length, options.heads, options.scale)
    print(f"{torch.get_num_threads()} threads, {options.length} tokens, tol {options.tol:g}")
    for name, system in systems.items():
        start = time.perf_counter()
        found = state_need(system, options.tol)
        seconds = time.perf_counter() - start
        print(f"{name}: {system.H} heads in {seconds:.1f} s; need {min(found.per_head())} to {max(found.per_head())}")
        if options.reduce:
            start = time.perf_counter()
            reduced = reduce_varying(system[:256], options.tol)
            print(f"  reduce_varying, 256 tokens: {time.perf_counter() - start:.1f} s, {reduced.text}")


if __name__ == "__main__":
    main()
