"""The terminal tables and the HTML page, from a made-up comparison and from broken, hostile and incomplete ones."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stateform.report import figures, render_html, tables

LENGTHS = [256, 512, 1024, 2048, 4096]
TEXT = 'The "assert" statement\n**********************\n\nAssert statements are a convenient way to insert debugging assertions'
# name, transition, state at start and per token, contractive, |eigenvalues|, complex, forms, ms at T = 256, power of T
KINDS: list[tuple[str, str, int, int, str, tuple[float, float], bool, list[str], float, float]] = [
    ("softmax", "identity: nothing is forgotten", 0, 128, "no", (1, 1), False, ["recurrent", "matrix"], 0.35, 1.75),
    ("linear", "identity", 4096, 0, "no", (1, 1), False, ["recurrent", "chunkwise", "matrix"], 0.9, 1),
    ("mamba2", "scalar decay per head, from the input", 8960, 0, "by construction", (0.55, 0.9998), False,
     ["recurrent", "chunkwise", "matrix"], 1.4, 1),
    ("gated_deltanet", "scalar decay and delta rule, from the input", 4864, 0, "by construction", (-0.6, 0.9991), False,
     ["recurrent", "chunkwise", "matrix"], 2.1, 1.02),
    ("qlstm(reversed=True)", "scalar decay per head, a convex gate", 1024, 0, "by construction", (0.05, 0.97), False,
     ["recurrent", "chunkwise", "matrix"], 1.1, 1),
    ("s5", "diagonal, complex, constant", 256, 0, "by construction", (0.8, 0.9995), True,
     ["recurrent", "scan", "matrix", "convolution"], 0.7, 1.05),
    ("lru", "diagonal, complex, constant", 128, 0, "by construction", (0.9, 0.9999), True,
     ["recurrent", "scan", "matrix", "convolution"], 0.6, 1.05),
    ("my_experiments/layer.py:WonderfulRecurrence", "dense, from the input; a rank-1 update of an orthogonal matrix", 65536, 0,
     "on this text", (0.2, 1.03), True, ["recurrent", "scan", "matrix"], 21.0, 1),
]  # fmt: skip


def example(n: int = 4) -> dict[str, Any]:
    """A comparison of `n` layers, as one might come out."""
    found = [_layer(k, random.Random(k)) for k in range(n)]
    names = [layer["name"] for layer in found]
    pairs = []
    for i in range(n):
        for j in range(i + 1, n):
            equal = (names[i], names[j]) == ("mamba2", "qlstm(reversed=True)")
            pairs.append(
                {
                    "a": names[i],
                    "b": names[j],
                    "equal": equal,
                    "error": 2.1e-16 if equal else round(0.3 + 0.17 * i + 0.09 * j, 3),
                    "first": None if equal else {"row": 0, "position": (i * j) % 3},
                    "shared": 6 if equal else 4,
                    "unshared": 0 if equal else 2,
                    "text": f"{names[i]} and {names[j]} " + ("compute the same function." if equal else "differ."),
                }
            )
    return {
        "stateform": "0.1.0",
        "created": "2026-01-31T12:00:00",
        "machine": {"cpu": "A processor", "threads": 2, "torch": "2.13.0", "python": "3.12.3", "device": "cpu"},
        "text": {"source": "pydoc_data.topics", "tokens": 4096, "excerpt": TEXT},
        "settings": {
            "d_model": 64,
            "lengths": LENGTHS,
            "batch": 1,
            "dtype": "float32",
            "seed": 0,
            "memory_limit_gb": 1.0,
        },
        "complete": True,
        "layers": found,
        "pairs": pairs,
    }


def _layer(k: int, rng: random.Random) -> dict[str, Any]:
    name, transition, size, growth, contractive, (low, high), is_complex, forms, start, power = KINDS[k]
    factor = {"recurrent": 1.6, "chunkwise": 1.0, "scan": 1.2, "matrix": 0.9, "convolution": 1.4}
    slope = {"matrix": 1.9, "recurrent": 1.0 + (k == 0)}
    times: dict[str, dict[str, Any]] = {}
    memory: dict[str, dict[str, float]] = {}
    left_out = []
    for form in forms:
        times[form], memory[form] = {}, {}
        for T in LENGTHS:
            memory[form][str(T)] = 4.0 * (64 * T + (T * T * 4 if form == "matrix" else size * 8))
            if form == "matrix" and T == 4096 and k:
                left_out.append(
                    {"form": form, "T": T, "reason": "its estimated memory, 1.3 GB, is over the limit of 1 GB"}
                )
                continue
            median = start * factor[form] * (T / 256) ** slope.get(form, power) * rng.uniform(0.95, 1.05)
            times[form][str(T)] = {"median": median, "low": median * 0.93, "high": median * rng.uniform(1.05, 1.3)}
    spectrum = [rng.betavariate(4, 1) * (high - low) + low for _ in range(500)]
    angles = [rng.gauss(0, 0.9) if is_complex else 0.0 for _ in spectrum]
    head_decays = [0.5, 0.85, 0.97, 0.995][: 1 if k == 4 else 4]
    reach = [5.0, 20.0, 98.0, 590.0] if size else [230.0, 700.0, 1400.0, 1900.0]
    where = [2**p for p in range(13)]
    return {
        "name": name,
        "summary": f"A summary of {name} in a sentence of words.",
        "paper": "arXiv 2405.21060",
        "parameters": 16640 + 1000 * k,
        "identity": {
            "system": "System(...)",
            "transition": transition,
            "state_size": size,
            "state_growth": growth,
            "contractive": contractive,
            "contractive_why": "decay in (0, 1] and no feedback"
            if contractive == "by construction"
            else "nothing decays",
            "spectral_radius": high,
            "eigenvalue_range": {
                "abs_min": abs(low),
                "abs_max": high,
                "real_min": low,
                "real_max": high,
                "complex": is_complex,
            },
        },
        "certificate": {
            "ok": True,
            "worst": 3.1e-15 * (k + 1),
            "tolerance": 1e-10,
            "dtype": "float64",
            "length": 256,
            "forms": {form: 0.0 if form == "recurrent" else 1.1e-15 * (k + 1) for form in forms},
            "refused": {"scan": "its transition is cheaper step by step"} if "scan" not in forms else {},
        },
        "cost": {
            "forward_ms": times,
            "left_out": left_out,
            "auto_form": {str(T): forms[min(1, len(forms) - 1)] for T in LENGTHS},
            "decode_us": {"median": 60.0 + 31 * k, "low": 55.0 + 31 * k, "high": 80.0 + 31 * k},
            "flops": {str(T): 2.0 * T * (16640 + (size or T * 64)) for T in LENGTHS},
            "memory_bytes": memory,
            "crossover": {"T": None, "text": "the reference"}
            if k == 0
            else {
                "T": 1024 if k < 4 else None,
                "text": "faster than softmax from T = 1024 on" if k < 4 else "never faster here",
            },
        },
        "dynamics": {
            "eigenvalues": {
                "re": [r * math.cos(a) for r, a in zip(spectrum, angles)],
                "im": [r * math.sin(a) for r, a in zip(spectrum, angles)],
            },
            "horizon": {
                "heads": reach[: len(head_decays)],
                "quantiles": {"0.1": reach[0] * 0.8, "0.5": reach[1] * 1.3, "0.9": reach[2] * 4 if size else 3300.0},
                "by_position": {"t": where, "median": [min(t * 0.9 + 0.5, reach[2] if size else 1e9) for t in where]},
            },
            "coefficients": {
                "tokens": list(TEXT[:64]),
                "heads": [{"head": h, "alpha": _alpha(rng, k, decay)} for h, decay in enumerate(head_decays)],
                "what": "norm of the contribution" if is_complex else "weights alpha_ij",
            },
        },
    }


def _alpha(rng: random.Random, k: int, decay: float) -> list[list[float]]:
    """A lower triangle of weights: non-negative rows that sum to 1 for softmax, signed and fading ones otherwise."""
    keys = {c: [rng.gauss(0, 1) for _ in range(4)] for c in sorted(set(TEXT[:64]))}
    queries = {c: [rng.gauss(0, 1) for _ in range(4)] for c in sorted(set(TEXT[:64]))}
    alpha = []
    for i in range(64):
        score = [sum(a * b for a, b in zip(queries[TEXT[i]], keys[TEXT[j]])) for j in range(i + 1)]
        if k == 0:
            weight = [math.exp(s) for s in score]
            weight = [w / sum(weight) for w in weight]
        else:
            weight = [0.1 * s * (1.0 if k == 1 else decay ** (i - j)) for j, s in enumerate(score)]
            weight = [abs(w) for w in weight] if k in (5, 6) else weight
        alpha.append([float(f"{w:.4g}") for w in weight] + [0.0] * (63 - i))
    return alpha
