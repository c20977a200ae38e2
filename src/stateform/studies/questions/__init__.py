"""The questions: what answers each for one layer, or for a whole model, what is remarkable in it, and how it is told.

A question is one file with a `QUESTION`; what is put to layers side by side has a `BESIDE`. A new file is asked,
measured, drawn and listed without being named anywhere else. The answers are results of `stateform.analysis`, kept as
plain numbers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from ..words import Answer, Rows, answered
from .question import SHOWN, Beside, Finding, Lineup, Member, Question, Site

__all__ = [
    "BESIDE", "QUESTIONS", "SHOWN", "Answer", "Beside", "Finding", "Lineup", "Member", "Question", "Rows", "Site",
    "findings",
]  # fmt: skip

_MODULES: list[Any] = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in sorted((m.QUESTION for m in _MODULES if hasattr(m, "QUESTION")), key=lambda q: (q.order, q.name))
}
"""All questions by name, in the order of the report."""
BESIDE: list[Beside] = sorted((m.BESIDE for m in _MODULES if hasattr(m, "BESIDE")), key=lambda one: one.order)
"""What is put to layers side by side, in the order of the report."""


def findings(rows: Rows, model: Mapping[str, Answer]) -> list[Finding]:
    """List what is remarkable in the answers, most of all first."""
    said = [
        Finding(f.text, f.weight, q.name, f.layer, f.head)
        for q in QUESTIONS.values()
        if q.name in model or answered(rows, q.name)
        for f in q.found(rows, model.get(q.name, {}))
    ]
    return sorted(said, key=lambda f: -f.weight)
