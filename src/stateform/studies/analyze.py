"""A layer or a model on a text: its memory, state, stability, expressivity, layer by layer and head by head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..analysis import describe
from ..errors import StateformError, nearest, require, validate
from ..hub import Opened
from ..report.wording import Wording
from ..result import Progress, Steps, header, until_interrupted
from ..series import Array, Given
from ..system import System
from .analysis import Analysis
from .questions import QUESTIONS, Question, Site, findings
from .subject import DTYPES, subject_of
from .words import wording


def analyze(
    thing: str | Path | type[nn.Module] | nn.Module | Opened, text: str | Path | Array | None = None, *,
    data: Given | None = None, project: bool = False, only: Sequence[str] | str | None = None,
    d_model: int = 64, n_heads: int | None = None, d_state: int | None = None, max_length: int = 1024,
    dtype: str = "float64", seed: int = 0, on_progress: Progress | None = None,
) -> Analysis:  # fmt: skip
    """Look at a layer, or at every layer of a model, on a text, or on numbers.

    A model is run once; each of its layers is then looked at by itself, on the input that it had there, so that one
    System is held at a time. A layer reads the bytes of the text as fixed random vectors, as in `compare`, and numbers
    as they are; the report then speaks of steps, or of a recording's samples.

    Args:
        thing: a registered name, with options ("mamba2(d_state=16)"), a file "path/file.py:Class", a class, a layer, a
            LanguageModel or Classifier, or the folder of one that `save_pretrained` or a training wrote; or a model of
            transformers (with token ids), or what `hub.open_model` opened: each of its mixers then comes with the
            certificate that its System computes what the module computes.
        text: a file whose bytes are the tokens (default: an example of its task for a folder that a training wrote,
            else Python's own documentation), or token ids [T] or [1,T] for a model with another tokenizer. An array or
            a tensor of floating-point numbers is taken as `data`.
        data: numbers in its place, for a layer or a Classifier of numbers: a file (.npy, .csv, .wav) or an array
            [T,d], see `stateform.series.read_series`.
        project: map numbers of another width than a layer's by a fixed random matrix, which the result names; without
            it they are refused.
        only: names of questions (`stateform.studies.questions.QUESTIONS`); default: all.
        d_model: width of a layer that is built here; n_heads and d_state for those that take them.
        n_heads: see d_model.
        d_state: see d_model.
        max_length: tokens of the text, or steps of the numbers, that are read.
        dtype: in which all is computed.
        seed: of the weights of a layer that is built here, of the embedding of bytes, and of `project`.
        on_progress: called as the work goes on.

    Returns:
        An Analysis. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: before any work: an unknown name or question, an unreadable or empty text, numbers that
            are not finite, of another width, or for a model of tokens, a folder that holds no model, a model that has
            no bytes for tokens, a weight that is not finite.
    """
    questions = check_settings(only, dtype, max_length)
    subject = subject_of(
        thing, text, data, project=project, d_model=d_model, n_heads=n_heads, d_state=d_state, max_length=max_length,
        dtype=dtype, seed=seed,
    )  # fmt: skip
    if subject.whole is None:
        alone = [q for q in questions if q.layer is not None]
        require(not only or len(alone) == len(questions),
                f"{', '.join(q.name for q in questions if q.layer is None)}: about the layers of a model together; "
                "give a model of stateform, or leave it out")  # fmt: skip
        questions = alone
    name, many, whole, read = subject.name, len(subject.kinds), subject.whole, subject.read
    said = Wording(read.unit)
    result: dict[str, Any] = {
        **header(),
        **read.to_dict(),
        "settings": {"d_model": subject.d_model, "batch": 1, "dtype": dtype,
                     "seed": None if subject.is_model else seed},
        "subject": {"name": name, "kind": "model" if subject.is_model else "layer", "layers": many,
                    "parameters": sum(p.numel() for p in subject.module.parameters())},
        "questions": {q.name: said({x: getattr(q, x) for x in ("title", "heads", "depth", "reading", "through")})
                      for q in questions},
        "complete": False, "layers": [], "model": {}, "refused": {}, "findings": [],
    }  # fmt: skip
    step = Steps(on_progress, 1 + sum(
        many * (q.layer is not None) + (q.model is not None and whole is not None) for q in questions
    ))  # fmt: skip
    with until_interrupted(result), torch.no_grad(), validate(False):
        step(f"{name} reads {read.inputs.shape[1]} {read.unit}s")
        for look, label, kind in zip(subject.looks(), subject.labels, subject.kinds, strict=True):
            about_it = about(look.layer, look.system)
            row = {"name": label, "kind": kind, **about_it, **_finite(look.known), "answers": {}, "refused": {}}
            result["layers"].append(row)
            if look.system is None:
                continue
            site = Site(label, look.layer, look.system, read.shown, many)
            for q in questions:
                if q.layer is not None:
                    step(f"{label}: {q.name}")
                    _answer(q.name, row["answers"], row["refused"], lambda q=q, site=site: q.layer(site))
        for q in questions:
            if q.model is not None and whole is not None:
                step(f"{name}: {q.name}")
                _answer(q.name, result["model"], result["refused"], lambda q=q: q.model(whole, read.inputs))
    result["findings"] = [asdict(f) for f in wording(result)(findings(result["layers"], result["model"]))]
    step.end()
    return Analysis(result)


def about(layer: nn.Module, system: System | None) -> dict[str, Any]:
    """Say what a layer is, in its row of the result."""
    parameters = sum(p.numel() for p in layer.parameters())
    if system is None:
        return {"transition": "no System", "heads": 0, "state_size": None, "state_growth": 0, "parameters": parameters}
    grows = system.readout.cached
    return {
        "transition": describe(system), "heads": 1 if system.w_out is not None else system.H,
        "state_size": 0 if grows else system.state_size, "state_growth": system.state_size if grows else 0,
        "parameters": parameters,
    }  # fmt: skip


def _answer(name: str, answers: dict[str, Any], refused: dict[str, str], ask: Any) -> None:
    """Keep the answer to a question, or why there is none. What is not finite is None: JSON has no other name."""
    try:
        answers[name] = _finite(ask())
    except StateformError as error:
        refused[name] = str(error)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_settings(only: Sequence[str] | str | None, dtype: str, max_length: int) -> list[Question]:
    """List the questions of these names; raise for one that is unknown, and for settings that cannot be used."""
    require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    require(max_length >= 2, f"max_length is {max_length}; expected 2 tokens or more")
    names = list(QUESTIONS) if not only else [only] if isinstance(only, str) else list(only)
    for name in names:
        require(name in QUESTIONS, f"unknown question {name!r}: {nearest(name, QUESTIONS)}")
    return [q for q in QUESTIONS.values() if q.name in names]
