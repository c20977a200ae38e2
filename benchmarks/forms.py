"""Time every form of systems of a few structures, at many lengths: what the choice of a form is fitted to.

    python benchmarks/forms.py [--device cuda] [--batch 1 8] [--lengths 16 64 ...] [--out build/bench/forms.json]

Forms and structures take turns, and the device is waited for before and after each run. The JSON names the machine and
the sizes; its rows hold milliseconds (median of the rounds), the peak of memory and, on a GPU, how many kernels a run
starts and how long they keep the device busy.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

import stateform as sf
from stateform.clock import seconds
from stateform.forms import choose, exists
from stateform.forms.cost.predict import features
from stateform.machine import machine

Draw = Callable[..., Tensor]
SIZES = {
    "identity": "H = 12, n = p = 64", "scalar": "H = 12, n = p = 64", "scalar, shared keys": "H = 24, n = 128, p = 64",
    "diagonal": "H = 12, n = p = 64", "complex diagonal": "H = 12, n = p = 64",
    "scalar + feedback": "H = 12, n = p = 64", "diagonal + feedback": "H = 12, n = p = 64",
    "product, one value": "H = 1536, n = 16, p = 1", "elementwise": "H = 768, n = p = 1",
    "complex elementwise": "H = 384, n = p = 1, constant", "complex diagonal, constant": "H = 768, n = 32, p = 1",
    "dense, n = 8": "H = 48, n = 8, p = 1", "dense, n = 16": "H = 48, n = 16, p = 1",
    "dense, n = 64": "H = 12, n = 64, p = 1", "softmax": "H = 12, n = p = 64",
}  # fmt: skip
"""The structures, at the widths of layers of d_model 768."""


def system(structure: str, B: int, T: int, device: str) -> sf.System:
    """A system of a structure, drawn at random, with decays of the size that layers have."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def decay(*shape: int) -> Tensor:
        return logsigmoid(r(*shape) + 3)

    def turn(*shape: int) -> Tensor:
        return torch.polar(torch.ones(shape, device=device), r(*shape))

    match structure:
        case "product, one value":
            dt, rate = -decay(B, T, 1536), torch.arange(1, 17, device=device).float().neg()
            product = dt, rate.expand(1536, 16)
            return sf.System(r(B, T, 1, 16), r(B, T, 1, 16), r(B, T, 1536, 1), log_decay=product, b=dt)
        case "elementwise":
            return sf.System(None, r(B, T, 768, 1), None, log_decay=decay(B, T, 768))
        case "complex elementwise":
            return sf.System(None, turn(B, T, 384, 1), None, log_decay=decay(384), phase=r(384))
        case "complex diagonal, constant":
            ones = torch.ones(1, 32, device=device)
            return sf.System(turn(768, 32), ones, r(B, T, 768, 1), log_decay=decay(768, 32), phase=r(768, 32))
        case "dense, n = 8" | "dense, n = 16" | "dense, n = 64":
            n = int(structure.split()[-1])
            H = 12 if n == 64 else 48
            return sf.System(None, r(B, T, H, n), None, transition=0.5 * r(B, T, H, n, n) / n**0.5)
        case "scalar, shared keys":
            return sf.System(r(B, T, 1, 128), r(B, T, 1, 128), r(B, T, 24, 64), log_decay=decay(B, T, 24))
    q, k, v = r(B, T, 12, 64) / 8, normalize(r(B, T, 12, 64), dim=-1), r(B, T, 12, 64)
    if structure == "softmax":
        return sf.System(q, k, v, readout="exp", eta="sum")
    parts: dict[str, Any] = {}
    if "scalar" in structure:
        parts["log_decay"] = decay(B, T, 12)
    if "diagonal" in structure:
        parts["log_decay"] = decay(B, T, 12, 64)
    if "complex" in structure:
        q, k, parts["phase"] = q * turn(B, T, 12, 64), k * turn(B, T, 12, 64), r(B, T, 12, 64)
    if "feedback" in structure:
        strength = torch.sigmoid(r(B, T, 12))
        g = parts["log_decay"].exp()
        w = k * g if g.ndim == 4 else g.unsqueeze(-1) * k
        parts |= {"b": strength, "f": -strength.unsqueeze(-1) * k, "w": w}
    return sf.System(q, k, v, **parts)


def job(made: sf.System, form: str, gradients: bool) -> Callable[[], None]:
    """One run; with gradients to every part."""
    if not gradients:
        return torch.no_grad()(lambda: sf.run(made, form))
    leaf = made.map(lambda name, x: x if name == "sign" else x.detach().requires_grad_())
    parts = list(leaf.tensors().values())

    def both() -> None:
        y = sf.run(leaf, form)
        torch.autograd.grad((y.real if y.is_complex() else y).sum(), parts, allow_unused=True)

    return both


def milliseconds(run: Callable[[], None], wait: Callable[[], None]) -> float:
    """Of one run, from an idle device to an idle device."""
    return 1e3 * seconds(run, sync=wait)


def kernels(run: Callable[[], None]) -> dict[str, float]:
    """How many kernels a run starts, and how long they take together."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    events = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(events), "busy_ms": sum(e.device_time for e in events) / 1e3}


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The constants of `forms.cost.predict` with the least relative errors, and how much the form they choose is
    slower than the fastest; the same for what `auto` took. What it never takes is left out: softmax has ways of its
    own, and the matrix of dense transitions.
    """
    rows = [row for row in rows if row["structure"] != "softmax"]
    rows = [row for row in rows if not (row["form"] == "matrix" and row["structure"].startswith("dense"))]
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["structure"], row["B"], row["T"], row["gradients"]), {})[row["form"]] = row
    taken = [(found, next(iter(found.values()))["auto"]) for found in cases.values()]
    result: dict[str, Any] = {"auto": lost([(found, auto) for found, auto in taken if auto in found])}
    values = {id(row): features(system(row["structure"], row["B"], row["T"], "meta"), row["form"]) for row in rows}
    constants: dict[tuple[str, bool], np.ndarray] = {}
    for key in sorted({(row["form"], row["gradients"]) for row in rows}):
        mine = [row for row in rows if (row["form"], row["gradients"]) == key]
        A = np.array([values[id(row)] for row in mine]) / np.array([[row["ms"] / 1e3] for row in mine])
        scale = A.max(0)
        scale[scale == 0] = 1.0
        constants[key] = nnls(A / scale, np.ones(len(mine)))[0] / scale
    choices = []
    for found in cases.values():
        expected = {f: float(constants[f, row["gradients"]] @ values[id(row)]) for f, row in found.items()}
        choices.append((found, min(expected, key=lambda f: expected[f])))
    return result | {
        "fitted": lost(choices)
        | {
            name: {f: [float(f"{c:.3g}") for c in x] for (f, g), x in constants.items() if g == gradients}
            for name, gradients in (("inference", False), ("training", True))
        }
    }


def lost(choices: list[tuple[dict[str, dict[str, Any]], str]]) -> dict[str, Any]:
    """Time of the form chosen over that of the fastest."""
    ratios = [found[form]["ms"] / min(row["ms"] for row in found.values()) for found, form in choices]
    return {
        "cases": len(ratios), "mean": round(sum(ratios) / len(ratios), 2), "over 1.5": sum(r > 1.5 for r in ratios),
        "worst": round(max(ratios), 1),
    }  # fmt: skip


def measure(options: argparse.Namespace, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Every structure, batch and length: all forms in turns, forward and with gradients."""
    cuda = options.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else lambda: None
    begin, rows = time.perf_counter(), list[dict[str, Any]]()
    for structure in options.structures:
        for B in options.batch:
            predicted: dict[tuple[str, bool], float] = {}
            for T in options.lengths:
                if time.perf_counter() - begin > options.budget:
                    print(f"out of time before {structure}, B = {B}, T = {T}", file=sys.stderr)
                    return rows
                made = system(structure, B, T, options.device)
                jobs, found = {}, dict[tuple[str, bool], dict[str, Any]]()
                for form in exists(made):
                    for gradients in (False, True):
                        key = form, gradients
                        if predicted.get(key, 0.0) > options.longest:
                            continue
                        try:
                            run = job(made, form, gradients)
                            if cuda:
                                torch.cuda.reset_peak_memory_stats()
                            first = [milliseconds(run, wait) for _ in range(2)]
                            jobs[key], found[key] = run, {"ms": []}
                            if first[1] > 500:
                                found[key]["ms"].append(first[1])
                            if cuda:
                                found[key]["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
                        except torch.OutOfMemoryError:
                            predicted[key] = float("inf")
                            torch.cuda.empty_cache()
                for i in range(options.repeats):
                    for key, run in jobs.items():
                        if i == 0 or sum(found[key]["ms"]) < 500:
                            found[key]["ms"].append(milliseconds(run, wait))
                for (form, gradients), numbers in found.items():
                    numbers["ms"] = median(numbers["ms"])
                    predicted[form, gradients] = numbers["ms"] * (16 if form == "matrix" else 4)
                    if cuda and numbers["ms"] < 100 and options.profiled == T:
                        numbers |= kernels(jobs[form, gradients])
                    auto = choose(made.map(lambda _, x, g=gradients: x.detach().requires_grad_(g)))
                    rows.append({
                        "structure": structure, "B": B, "T": T, "form": form, "gradients": gradients, **numbers,
                        "auto": auto,
                    })  # fmt: skip
                del made, jobs
                gc.collect()
                save(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--structures", nargs="*", default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 64, 256, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--longest", type=float, default=600.0, help="leave out what is expected to take more ms")
    parser.add_argument("--profiled", type=int, default=1024, help="the length at which kernels are counted")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing new is begun")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="files of earlier runs on the same machine")
    parser.add_argument("--out", type=Path, default=Path("build/bench/forms.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    earlier = [json.loads(path.read_text(encoding="utf-8")) for path in options.add]
    own = {
        "command": " ".join(["python", "benchmarks/forms.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    head: dict[str, Any] = {
        "runs": [run for x in earlier for run in x["runs"]] + [own] * bool(options.structures),
        "machine": earlier[0]["machine"] if earlier else machine(options.device), "dtype": "float32", "sizes": SIZES,
    }  # fmt: skip
    before = [row for x in earlier for row in x["rows"]]

    def save(rows: list[dict[str, Any]]) -> None:
        lines = ",\n".join("  " + json.dumps(row) for row in [*before, *rows])
        text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
        options.out.write_text(text, encoding="utf-8")

    rows = measure(options, save)
    head["choice"] = fitted([*before, *rows])
    save(rows)
    print(json.dumps(head["choice"], indent=1))
    print(f"Numbers: {options.out}")


if __name__ == "__main__":
    main()
