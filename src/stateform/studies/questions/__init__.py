"""The questions of an analysis: what answers each for one layer, or for a whole model, and what is remarkable in it.

A question is one entry of `QUESTIONS`. The answers are results of `stateform.analysis`, kept as plain numbers; an
answer with `heads` (one number a head) is drawn by the report as a map of depth and heads, one with `depth` (one number
a layer) as a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...analysis import describe
from ...system import System
from . import depth, dynamics, memory
from .memory import SPLITS, TOLERANCE, effective_attention
from .question import SHOWN, Answer, Finding, Question, Rows, Site, answered, rounded

__all__ = [
    "QUESTIONS", "SHOWN", "SPLITS", "TOLERANCE", "Answer", "Finding", "Question", "Rows", "Site", "about",
    "effective_attention", "findings", "rounded",
]  # fmt: skip

QUESTIONS: dict[str, Question] = {q.name: q for family in (memory, dynamics, depth) for q in family.QUESTIONS}
"""All questions by name, in the order of the report."""


def findings(rows: Rows, model: Mapping[str, Answer]) -> list[Finding]:
    """What is remarkable in the answers, most of all first."""
    said = [
        Finding(f.text, f.weight, q.name, f.layer, f.head)
        for q in QUESTIONS.values()
        if q.name in model or answered(rows, q.name)
        for f in q.found(rows, model.get(q.name, {}))
    ]
    return sorted(said, key=lambda f: -f.weight)


def about(layer: nn.Module, system: System | None) -> dict[str, Any]:
    """What a layer is, in a row of the result."""
    if system is None:
        return {"transition": "no System", "heads": 0, "state_size": None, "state_growth": 0,
                "parameters": sum(p.numel() for p in layer.parameters())}  # fmt: skip
    grows = system.readout.cached
    return {
        "transition": describe(system), "heads": 1 if system.w_out is not None else system.H,
        "state_size": 0 if grows else system.state_size, "state_growth": system.state_size if grows else 0,
        "parameters": sum(p.numel() for p in layer.parameters()),
    }  # fmt: skip
