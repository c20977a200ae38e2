"""Operations on a GPU: every form of ours beside the published kernels, on the same tensors.

    python benchmarks/gpu.py [--operations gla/op kda/op ...] [--dtypes bfloat16 float32] [--rows 8] [--lengths 512 ...]

The parties are those of `stateform bench` and a few more. Each is first compared with our form in float64, on fresh
inputs: outputs, and the gradient of every input, by the norm of the difference over the norm. Then all take turns, and
the device is waited for. One more row says what a token takes from a state. The JSON has everything; what is printed is
its table.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

import stateform as sf
from stateform.clock import RECOVERABLE, one_line, spread, take_turns
from stateform.forms import choose, exists
from stateform.machine import machine
from stateform.timing.rivals.fla import OPERATIONS
from stateform.timing.rivals.party import Begin, Inputs

DEVICE = "cuda"
LONGEST = {"recurrent": 512, "matrix": 1024}
"""Tokens up to which these forms are timed."""
CHECKED = (2, 1000)
"""Rows and tokens on which the parties are compared."""
ALLOWED = 0.03
"""A party that is further from float64 than this is not timed."""
PACKAGES = ("triton", "fla-core", "mamba-ssm", "tilelang")


@dataclass
class Op:
    """One operation: what it takes, its system, and the kernels that compute it."""

    name: str
    sizes: str
    inputs: Callable[[int, int, torch.dtype, torch.Generator], Inputs]
    system: Callable[..., sf.System]
    kernels: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    steps: dict[str, Begin] = field(default_factory=dict)


def operations(d_model: int) -> dict[str, Op]:
    """Those of `stateform bench`, Mamba-2's own kernel and the elementwise recurrence."""
    found = {}
    for op in OPERATIONS:
        setting = op.setting(d_model, "cpu", torch.Generator())
        parties = {rival.name: rival.make(None) for rival in op.rivals if rival.missing() is None}
        steps = {name: party.begin for name, party in {"ours": setting.ours, **parties}.items() if party.begin}
        kernels = {name: party.run for name, party in parties.items()}
        found[op.name] = Op(op.name, setting.sizes, setting.inputs, op.system, kernels, steps)
    H = d_model // 64

    def normal(rows: int, tokens: int, heads: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return torch.randn(rows, tokens, heads, 64, generator=generator).to(dtype)

    def for_ssd(rows: int, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        C, B = (normal(rows, tokens, 1, dtype, generator) / 8 for _ in range(2))
        dt = softplus(torch.randn(rows, tokens, H, generator=generator) - 3)
        return C, B, normal(rows, tokens, H, dtype, generator), dt

    def ssd(C: Tensor, B: Tensor, x: Tensor, dt: Tensor) -> Tensor:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        y: Tensor = mamba_chunk_scan_combined(x, dt, -torch.ones(H, device=x.device), B, C, chunk_size=256)
        return y

    found["mamba2/shared keys"] = Op(
        "mamba2/shared keys", f"n_heads={H}, d_state=64", for_ssd,
        lambda C, B, x, dt: sf.System(C, B, x, log_decay=-dt, b=dt),
        {"mamba_chunk_scan_combined": ssd} if find_spec("mamba_ssm") else {},
    )  # fmt: skip

    def for_hgrn(rows: int, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        x, g = (normal(rows, tokens, H, dtype, generator).flatten(2) for _ in range(2))
        return x, torch.nn.functional.logsigmoid(g.float() + 3).to(dtype)

    def hgrn(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor, g: Tensor) -> Tensor:
            from fla.ops import hgrn

            y: Tensor = getattr(hgrn, name)(x, g)[0]
            return y.unsqueeze(-1)

        return run

    found["elementwise/op"] = Op(
        "elementwise/op", f"n_heads={d_model}, d_state=1", for_hgrn,
        lambda x, g: sf.System(None, x.unsqueeze(-1), None, log_decay=g),
        {name: hgrn(name) for name in ("chunk_hgrn", "fused_recurrent_hgrn") if find_spec("fla")},
    )  # fmt: skip
    return found


def of_form(op: Op, form: str) -> Callable[..., Tensor]:
    """Our computation in one form."""

    def run(*xs: Tensor) -> Tensor:
        y = sf.run(op.system(*xs), form)
        assert isinstance(y, Tensor)
        return y

    return run


def answers(run: Callable[..., Tensor], xs: Inputs, seed: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs, and the gradients of all inputs for a fixed direction of the outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in xs]
    y = run(*leaves)
    direction = torch.randn(y.shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE)
    return y.detach(), torch.autograd.grad(y, leaves, direction.to(y.dtype))


def off(got: Tensor, want: Tensor) -> float:
    """The norm of the difference over the norm."""
    return float((got.double() - want).norm() / want.norm())


def errors(op: Op, runs: dict[str, Callable[..., Tensor]], dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """How far each party is from float64: outputs, and the worst gradient; or why it fails."""
    xs = tuple(x.to(DEVICE) for x in op.inputs(*CHECKED, dtype, torch.Generator().manual_seed(7)))
    want, gradients = answers(of_form(op, "auto"), tuple(x.double() for x in xs))
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        about = found[name] = {}
        try:
            with torch.no_grad():
                about["y"] = off(run(*xs), want)
            _, got = answers(run, xs)
            about["gradient"] = max(off(a, b) for a, b in zip(got, gradients, strict=True))
        except RECOVERABLE as error:
            about["fails"] = one_line(error)
    return found


def measure(op: Op, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """One operation in one precision: errors, then times."""
    probe = op.system(*op.inputs(1, 64, dtype, torch.Generator()))
    forms = ["matrix"] if probe.readout.cached else exists(probe)  # softmax in blocks is for memory, not for time
    runs = {f"ours, {form}": of_form(op, form) for form in forms} | op.kernels
    entry: dict[str, Any] = {
        "operation": op.name, "sizes": op.sizes, "dtype": str(dtype).removeprefix("torch."),
        "errors": errors(op, runs, dtype), "times": [],
    }  # fmt: skip
    for rows in options.rows:
        one = [x.to(DEVICE) for x in op.inputs(1, max(options.lengths), dtype, torch.Generator().manual_seed(rows))]
        longest = [torch.cat([x.roll(i, 1) for i in range(rows)]) for x in one]  # every row another text
        for T in options.lengths:
            xs = tuple(x[:, :T].contiguous() for x in longest)
            for mode in ("forward", "training"):
                entry["times"].append(timed(op, runs, entry["errors"], xs, mode, options.repeats))
                gc.collect()
    if op.steps:
        entry["times"].append(decoding(op, dtype, options))
    return entry


def timed(
    op: Op, runs: dict[str, Callable[..., Tensor]], found: dict[str, dict[str, Any]], xs: Inputs, mode: str,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    """All parties in turns, forward or with gradients."""
    rows, T = xs[0].shape[:2]
    jobs: dict[str, Callable[[], Callable[[], Any]]] = {}
    for name, run in runs.items():
        good = found[name].get("y" if mode == "forward" else "gradient", 1.0) < ALLOWED
        if not good or LONGEST.get(name.removeprefix("ours, "), T) < T or (mode == "training" and "recurrent" in name):
            continue
        jobs[name] = prepared(run, xs, mode == "training")
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    take_turns(jobs, repeats, times, failed, torch.cuda.synchronize)
    auto = choose(op.system(*xs))
    return {
        "mode": mode, "rows": rows, "T": T, "auto": f"ours, {auto}", "left_out": failed,
        "found": {name: spread(t) for name, t in times.items()},
    }  # fmt: skip


def prepared(run: Callable[..., Tensor], xs: Inputs, gradients: bool) -> Callable[[], Callable[[], Any]]:
    """A job for `take_turns`."""
    if not gradients:
        return lambda: torch.no_grad()(lambda: run(*xs))
    leaves = [x.detach().requires_grad_() for x in xs]
    given: list[Tensor] = []

    def begin() -> Callable[[], Any]:
        if not given:
            given.append(torch.randn_like(run(*leaves)))
        return lambda: torch.autograd.grad(run(*leaves), leaves, given)

    return begin


def decoding(op: Op, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """One token from the state after a hundred."""
    rows = options.rows[-1]
    xs = tuple(x.to(DEVICE) for x in op.inputs(rows, 100, dtype, torch.Generator().manual_seed(3)))
    token = tuple(x[:, :1] for x in xs)

    def begin(make: Begin) -> Callable[[], Callable[[], Any]]:
        def job() -> Callable[[], Any]:
            with torch.no_grad():
                step = make(xs, 100)
            return torch.no_grad()(lambda: step(*token))

        return job

    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    jobs = {name: begin(make) for name, make in op.steps.items()}
    take_turns(jobs, options.repeats, times, failed, torch.cuda.synchronize)
    return {
        "mode": "step", "rows": rows, "T": 100, "auto": "ours", "left_out": failed,
        "found": {name: spread(t) for name, t in times.items()},
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The medians in milliseconds as Markdown: a line for each party; `auto` marks what the form auto takes."""
    lines = []
    for dtype in dict.fromkeys(entry["dtype"] for entry in result["operations"]):
        entries = [entry for entry in result["operations"] if entry["dtype"] == dtype]
        cases = list(dict.fromkeys((t["mode"], t["rows"], t["T"]) for e in entries for t in e["times"]))
        heads = [f"{mode}, {rows} x {T}" if mode != "step" else f"a token, {rows} rows" for mode, rows, T in cases]
        lines += ["", f"{dtype}:", "", f"| operation | party | error | {' | '.join(heads)} |"]
        lines.append(f"| --- | --- | --- |{' ---: |' * len(heads)}")
        for entry in entries:
            by_case = {(t["mode"], t["rows"], t["T"]): t for t in entry["times"]}
            names = [*entry["errors"], *(["ours"] if any("ours" in t["found"] for t in entry["times"]) else [])]
            for name in names:
                about = entry["errors"].get(name, {})
                error = f"{about['y']:.1e}, {about['gradient']:.1e}" if "gradient" in about else f"{about.get('y', '')}"
                cells = []
                for case in cases:
                    t = by_case.get(case, {"found": {}, "auto": ""})
                    ms = t["found"].get(name)
                    cells.append("" if ms is None else f"{ms['median']:.3g}{' (auto)' if t['auto'] == name else ''}")
                if any(cells):
                    lines.append(f"| {entry['operation']} | {name} | {error} | {' | '.join(cells)} |")
    fails = [
        f"- {entry['operation']}, {entry['dtype']}, {name}: {about['fails']}"
        for entry in result["operations"]
        for name, about in entry["errors"].items()
        if "fails" in about
    ]
    return "\n".join([*lines, "", *fails])


def versions() -> dict[str, str]:
    """Of the packages whose kernels are timed, and of the driver."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", nargs="*")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--rows", type=int, nargs="*", default=[8])
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/bench/gpu.json"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(DEVICE), "versions": versions(), "operations": [],
    }  # fmt: skip
    known = operations(options.d_model)
    for dtype in options.dtypes:
        for name in options.operations or known:
            print(f"{name}, {dtype}", file=sys.stderr, flush=True)
            result["operations"].append(measure(known[name], getattr(torch, dtype), options))
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
