"""Measure the constants behind the form `auto` on the machine at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...clock import Pace, take_turns
from ...errors import require
from ...files import write_atomically
from ...loops.backend import backend
from ...machine import machine
from ...result import Progress, Steps
from ...system import System
from .. import compiled
from .predict import features, path, stored, stored_in, ways_of
from .work import work

LENGTHS = (16, 128, 1024)
ROOM = 1e9
"""Bytes: ways that need more are not measured."""
PACE = Pace(most=1, slow=0.5, few=0)
"""A way that takes longer is run once, and not measured at greater lengths."""


def samples(T: int, device: str) -> dict[str, System]:
    """Draw systems of every structure that has ways of its own, at widths of real layers."""
    generator = torch.Generator(device).manual_seed(0)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def decay(*shape: int) -> Tensor:
        return -torch.rand(*shape, generator=generator, device=device)

    q, k, v = r(1, T, 8, 64), r(1, T, 8, 64) / 64, r(1, T, 8, 64)
    narrow = r(1, T, 4, 16), r(1, T, 4, 16) / 16, r(1, T, 4, 16)
    rate, turned = decay(512, 16), torch.complex(r(1, T, 1, 128), r(1, T, 1, 128))
    return {
        "scalar": System(q, k, v, log_decay=decay(1, T, 8)),
        "scalar, narrow": System(*narrow, log_decay=decay(1, T, 4)),
        "diagonal": System(q, k, v, log_decay=decay(1, T, 8, 64)),
        "feedback": System(q, k, v, log_decay=decay(1, T, 8), f=-k, w=k),
        "one value": System(r(1, T, 1, 16), r(1, T, 1, 16), r(1, T, 512, 1), log_decay=(-decay(1, T, 512), rate)),
        "elementwise": System(r(1, 1), r(1, 1), r(1, T, 512, 1), log_decay=decay(1, T, 512)),
        "complex elementwise": System(None, turned, None, log_decay=decay(1, 128), phase=r(1, 128)),
        "constant": System(r(256, 16), r(256, 16), r(1, T, 256, 1), log_decay=decay(256, 16)),
        "constant, complex": System(torch.complex(r(256, 16), r(256, 16)), r(256, 16), r(1, T, 256, 1),
                                    log_decay=decay(256, 16), phase=r(256, 16)),
        "dense": System(None, r(1, T, 16, 8), None, transition=0.3 * r(1, T, 16, 8, 8) / 8**0.5),
        "dense, constant": System(None, r(1, T, 64, 4), None, transition=0.3 * r(64, 4, 4) / 2),
    }  # fmt: skip


def job(system: System, way: str, training: bool) -> Callable[[], Any]:
    """Make one run of a way; in training with the gradients of all parts."""
    from ..run import run

    form = "recurrent" if way == "compiled" else way
    leaf = system.map(lambda _, x: x.detach().requires_grad_(training))
    parts = [x for x in leaf.tensors().values() if x.requires_grad]

    def once() -> None:
        with backend("compiled" if way == "compiled" else "torch"), torch.set_grad_enabled(training):
            y = run(leaf, form)
            if training:
                torch.autograd.grad((y.real if y.is_complex() else y).sum(), parts, allow_unused=True)
            if y.is_cuda:
                torch.cuda.synchronize()

    return once


def room(system: System, way: str, training: bool) -> float:
    """Estimate the bytes that a way needs."""
    return work(system, "recurrent" if way == "compiled" else way)[1] * (4 if training else 1)


def measure(device: str, on_progress: Progress | None = None) -> list[dict[str, Any]]:
    """Measure the time of every way for every sample and length."""
    rows: list[dict[str, Any]] = []
    slow: set[tuple[str, str, bool]] = set()
    step = Steps(on_progress, len(LENGTHS) * len(samples(1, "cpu")))
    for T in LENGTHS:
        for name, system in samples(T, device).items():
            step(f"{name}, {T} tokens")
            every = [(way, training) for way in ways_of(system, compiled.usable(system)) for training in (False, True)]
            jobs = {
                (way, training): partial(job, system, way, training)
                for way, training in every
                if (name, way, training) not in slow and room(system, way, training) <= ROOM
            }
            times: dict[tuple[str, bool], list[float]] = {}
            take_turns(jobs, 3, times, pace=PACE)
            for (way, training), found in times.items():
                if median(found) > PACE.slow:
                    slow.add((name, way, training))
                rows.append({"system": name, "T": T, "way": way, "training": training, "seconds": median(found),
                             "features": features(system, way)})  # fmt: skip
    return rows


def fit(rows: list[dict[str, Any]], device: str) -> dict[str, dict[str, list[float]]]:
    """Fit the constants that minimise the relative errors, none below 0, for inference and for training."""
    from scipy.optimize import nnls  # here: it is slow to import

    found: dict[str, dict[str, list[float]]] = {}
    for training, name in ((False, "inference"), (True, "training")):
        table = found.setdefault(f"{device}, {name}", {})
        for way in sorted({row["way"] for row in rows}):
            mine = [row for row in rows if row["way"] == way and row["training"] == training]
            if not mine:
                continue
            A = np.array([row["features"] for row in mine], dtype=float)
            t = np.array([row["seconds"] for row in mine])
            scale = A.max(0)
            scale[scale == 0] = 1.0
            x, _ = nnls(A / scale / t[:, None], np.ones(len(t)))
            table[way] = [float(c) for c in x / scale]
    return found


def calibrate(device: str = "cpu", *, on_progress: Progress | None = None) -> Path:
    """Measure how long every form takes on this machine, and keep it for the form `auto`; about a minute.

    Args:
        device: "cpu" or "cuda".
        on_progress: called with what is measured, how much is done, and of how much.

    Returns:
        The file, in the folder of the compiled loops; its constants hold for the number of threads torch uses now.

    Raises:
        StateformError: another device, or none of the kind here.
    """
    require(device in ("cpu", "cuda"), f"device is {device!r}; expected cpu or cuda")
    require(device == "cpu" or torch.cuda.is_available(), "device is cuda, and torch sees none; use cpu")
    rows = measure(device, on_progress)
    target = path()
    kept = stored().get("constants", {})
    content = {"machine": machine(device), "date": datetime.now(UTC).strftime("%Y-%m-%d"),
               "constants": {**kept, **fit(rows, device)}, "rows": rows}  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(target, json.dumps(content).encode())
    stored_in.cache_clear()
    return target
