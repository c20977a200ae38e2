"""Check the contract on a layer or a language model: whatever the splits, the padding and the packing, the outputs are
those of each text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from ..errors import StateformError, require, require_seed, validate
from ..models import LanguageModel
from ..series import Given, read_series
from .law import Runner
from .layer import layer_runner
from .model import model_conditions, model_runner
from .outcome import Report
from .parts import LAYER, MODEL
from .refusals import is_language_model


def check(
    thing: str | type[nn.Module] | nn.Module, *, data: Given | None = None, project: bool = False, seed: int = 0,
    exhaustive: bool = False, on_progress: Callable[[str], None] | None = None, **options: Any,
) -> Report:  # fmt: skip
    """Check the contract on a layer, or on a causal language model, ours or of the package transformers.

    A layer is compared with the three equations of its systems and with its recurrence in float64; a model with its own
    forward over each text alone, without cache, padding and packing.

    Args:
        thing: a registered name, a file `path/file.py:Class`, a class, or a module y = layer(x) that takes
            `initial_state` and `return_state` (and, where offered, `attention_mask`, `cu_seqlens`, `form`, `step`,
            `init_state`, `system`); or a causal language model of transformers, or a LanguageModel (which needs the
            extra `hub`). A module is copied, not changed.
        data: numbers for a layer to read in place of random ones: a file (.npy, .csv, .wav) or an array [T,d], see
            `stateform.series.read_series`. Each input is a stretch of them from a drawn place on, which begins again
            after their end; they are scaled to mean square 1, as draws have it and tolerances suppose.
        project: map numbers of another width than the layer's by a fixed random matrix, which the report names;
            without it they are refused.
        seed: of all random draws, and of `project`.
        exhaustive: more shapes and longer sequences (up to 1000 tokens).
        on_progress: called with the name of each part before it runs.
        options: for `build`, e.g. d_model (default 32).

    Returns:
        A Report; print it.

    Raises:
        StateformError: if `thing` is neither; numbers that a layer cannot read, or for a model.
    """
    require_seed(seed)
    if isinstance(thing, LanguageModel):
        thing = _as_transformers_has_it(thing)
    if is_language_model(thing):
        given = f"{type(thing).__name__} reads tokens, which are drawn; numbers are for a layer"
        require(data is None, f"{given}: leave out the data")
        require(not options, f"a model is checked as it is; leave out {', '.join(options)}")
        with model_conditions():
            return _checked(model_runner(thing, seed, exhaustive), MODEL, on_progress)
    runner = layer_runner(thing, seed, exhaustive, options)
    if data is not None:
        runner.read(read_series(data), project, seed)
    with validate(False):  # what a layer makes of wrong values is the finding
        return _checked(runner, LAYER, on_progress)


def _checked(
    runner: Runner[Any], parts: Mapping[str, Callable[[Any], None]], on_progress: Callable[[str], None] | None
) -> Report:
    """Run every part; the report of what came of it."""
    for part, function in parts.items():
        if on_progress is not None:
            on_progress(part)
        runner.perform(part, function)
    return runner.report


def _as_transformers_has_it(model: LanguageModel) -> nn.Module:
    """Give a LanguageModel the arguments and outputs of transformers, by which models are checked."""
    try:
        from ..models.auto import StateformConfig, StateformForCausalLM
    except ImportError as error:
        raise StateformError(f"a model is checked by the names of transformers: {error}") from None
    return StateformForCausalLM(StateformConfig(**asdict(model.config)), model)
