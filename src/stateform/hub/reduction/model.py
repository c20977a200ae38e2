"""reduce: a model with as little state as an error allows, and the loss that this costs on a text.

Layers whose parts are constant (S4D, DSS, S4, LSSL, LRU, S5) become layers with fewer states, see convert/smaller.py.
A layer that varies in time has a reduced system for one text alone (convert/reduce_varying.py), which no weights can
hold: the model is run on that text with this system in the layer's place, and its loss is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from ...convert import Conversion
from ...convert import reduce as reduce_system
from ...convert.smaller import can_be_smaller, smaller
from ...errors import StateformError, require
from ...layer import Layer
from ...models import SequenceModel
from ...report.wording import TOKEN, Wording
from ...result import Progress, Steps
from ...series import NO_NUMBERS, Array, Given, Series, read_series, tensor_of
from ...system import System
from ...text import read_text
from ..runs import Runs, TextScore
from .on_text import OnText
from .result import ModelReduction, ReducedLayer
from .written import name_of_layer, with_layers, written_as


@overload
def reduce(model: System, tol: float = 1e-2) -> Conversion: ...


@overload
def reduce(
    model: nn.Module, tol: float = 1e-2, tokens: Array | str | Path | None = None, *, data: Given | None = None,
    by: Literal["bound", "error"] = "bound", layers: Sequence[str] | str | None = None, max_length: int = 256,
    limit: float = 5e8, on_progress: Progress | None = None,
) -> ModelReduction: ...  # fmt: skip


def reduce(
    model: nn.Module | System, tol: float = 1e-2, tokens: Array | str | Path | None = None, *,
    data: Given | None = None, by: Literal["bound", "error"] = "bound", layers: Sequence[str] | str | None = None,
    max_length: int = 256, limit: float = 5e8, on_progress: Progress | None = None,
) -> ModelReduction | Conversion:  # fmt: skip
    """Reduce a model to as little state as an error of `tol` allows, and measure what that costs on a text.

    The constant layers of a LanguageModel, a Classifier or a Layer are truncated, channel by channel, and written back
    as layers with a smaller d_state: an ordinary model with fewer weights, which saves, streams and trains. Layers that
    vary in time keep their weights. Given tokens, each of these is also run as the system of fewest states that is
    within `tol` of it on this text, alone and all together, and the loss of the model is measured.

    Args:
        model: a LanguageModel, a Classifier, a Layer, or a model of transformers of a supported type. It is not
            changed. Or a System, for `convert.reduce(system, tol)`.
        tol: of a constant channel, the largest gain of the error over its largest Hankel singular value; of a head that
            varies in time, the relative error of its operator on this text in the Frobenius norm; above 0, below 1.
        tokens: what to measure on: ids [T] or [B,T]; for a model of bytes also a file; for a Layer (or a Classifier of
            numbers) numbers [B,T,d].
        data: numbers in their place, for a Layer or a Classifier of numbers: a file (.npy, .csv, .wav) or an array
            [T,d], see `stateform.series.read_series`.
        by: what must stay below `tol` in a constant channel: the Hankel bound (a guarantee for every input), or the
            error measured over frequencies (which is smaller, so that more is left out).
        layers: only these modules (`blocks.0.mixer`, ...); default: all.
        max_length: tokens of the text, or steps of the numbers, that are read; each head takes several steps of linear
            algebra for each.
        limit: bytes allowed for the matrices of the heads that are reduced together.
        on_progress: called as the work goes on.

    Returns:
        A ModelReduction. After Ctrl-C it holds what was finished, and is not `complete`.

    Raises:
        StateformError: before any work: a bad tol, another model, unknown layers, tokens that it cannot read.
    """
    if isinstance(model, System):
        return reduce_system(model, tol)
    check_settings(tol, max_length)
    require(by in ("bound", "error"), f'by is {by!r}; expected "bound" or "error"')
    series = None if data is None else _series(model, tokens, data, max_length)
    inputs = _inputs(model, tokens, max_length) if series is None else series.values.unsqueeze(0)
    numbers = inputs is not None and inputs.is_floating_point()
    unit = series.unit if series is not None else "step" if numbers else TOKEN
    work = _Work(model, float(tol), by, inputs, unit, layers, limit, on_progress)
    try:
        work.go()
        work.complete = True
    except KeyboardInterrupt:
        pass
    return work.found()


def check_settings(tol: float, max_length: int) -> None:
    """Raise unless the settings of `reduce` can be used."""
    whole = isinstance(tol, float | int) and not isinstance(tol, bool)
    require(whole and 0 < tol < 1, f"tol is {tol!r}; expected a number above 0, below 1")
    require(isinstance(max_length, int) and max_length >= 2, f"max_length is {max_length!r}; expected 2 or more")


def _series(model: nn.Module, tokens: Array | str | Path | None, data: Given, most: int) -> Series:
    """Read the numbers for a layer or a model of numbers, in its dtype."""
    require(tokens is None, "tokens and numbers were given, of which one can be read; leave one out")
    name = type(model).__name__
    of_model = model.config.d_input if isinstance(model, SequenceModel) else None
    width = model.d_model if isinstance(model, Layer) else of_model
    require(width is not None, f"{name} {NO_NUMBERS}")
    series = read_series(data).first(most).fitted(width or 0, name)
    weight = next(model.parameters(), series.values)
    return replace(series, values=series.values.to(weight))


def _inputs(model: nn.Module, tokens: Array | str | Path | None, most: int) -> Tensor | None:
    if tokens is None:
        return None
    if isinstance(tokens, np.ndarray):
        tokens = tensor_of(tokens)
    if isinstance(tokens, str | Path):
        kind = model.config.tokenizer if isinstance(model, SequenceModel) else None
        require(kind == "bytes", f"a text is read as bytes, which are no tokens of this {type(model).__name__}; give "
                "token ids")  # fmt: skip
        tokens = torch.frombuffer(bytearray(read_text(tokens)[1][:most]), dtype=torch.uint8).long()
    require(isinstance(tokens, Tensor), f"the tokens are a {type(tokens).__name__}; expected ids [T] or [B,T]")
    rank = 3 if isinstance(model, Layer) or (isinstance(model, SequenceModel) and model.embedding is None) else 2
    return tokens[:most] if tokens.ndim == rank - 1 else tokens[:, :most]


class _Work:
    """A reduction at work: the rows and losses found so far."""

    def __init__(
        self, model: nn.Module, tol: float, by: Literal["bound", "error"], inputs: Tensor | None,
        unit: str, wanted: Sequence[str] | str | None, limit: float, on_progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.tol, self.by, self.limit = model, tol, by, limit
        self.runs, self.unit = Runs(model, inputs), unit
        names = list(self.runs.modules)
        require(names, "the model has no layers")
        wanted = [wanted] if isinstance(wanted, str) else wanted
        missing = [name for name in wanted or [] if name not in names]
        require(not missing, f"there is no layer {missing[:1]}; there are {', '.join(names)}")
        self.names = names if wanted is None else [name for name in names if name in wanted]
        self.rows: dict[str, ReducedLayer] = {}
        self.new: dict[str, Layer] = {}
        self.losses: dict[str, float] = {}
        self.off: dict[str, float] = {}
        self.complete = False
        self.step = Steps(on_progress, len(self.names) + (0 if inputs is None else len(self.names) + 3))

    def go(self) -> None:
        for name in self.names:
            module = self.runs.modules[name]
            self.step(f"{name}: weights")
            self._write(name, module)
        if self.runs.inputs is None:
            return
        self.step("the model as it is")
        before = self.runs()
        self._keep("before", before, before)
        same = self.runs.same()
        changes: dict[str, Any] = {}
        for name in self.names:
            self.step(Wording(self.unit)(f"{name}: on the text"))
            change = self.new.get(name) or self._on_text(name, same[name])
            if change is None:
                continue
            try:
                score = self.runs({name: change})
            except StateformError as error:
                self.rows[name] = replace(self.rows[name], why=str(error))
                continue
            changes[name] = change
            if isinstance(change, OnText):
                self.rows[name] = change.fill_row(self.rows[name])
            self.rows[name] = replace(self.rows[name], alone=score.nats, off=score.off(before))
        if self.new:
            self.step("the layers written back")
            self._keep("written", self.runs(self.new), before)
        if len(changes) > len(self.new):
            self.step("all layers together")
            every = {k: c.again() if isinstance(c, OnText) else c for k, c in changes.items()}
            self._keep("together", self.runs(every), before)
        self.step.end()

    def _keep(self, name: str, score: TextScore, before: TextScore) -> None:
        if score.nats is not None:
            self.losses[name] = score.nats
        if score is not before:
            self.off[name] = score.off(before)

    def _write(self, name: str, module: nn.Module) -> None:
        count = sum(p.numel() for p in module.parameters())
        row = ReducedLayer(name, name_of_layer(module), parameters=(count, count))
        self.rows[name] = row
        if not (isinstance(module, Layer) and can_be_smaller(module)):
            return
        try:
            made = smaller(module, self.tol, by=self.by)
        except StateformError as error:
            self.rows[name] = replace(row, why=str(error))
            return
        row = replace(row, state=made.states, orders=made.orders)
        if made.written:
            self.new[name] = made.layer
            row = replace(
                row, became=written_as(made.layer), bound=float(made.bound.max()), error=float(made.error.max()),
                parameters=(count, sum(p.numel() for p in made.layer.parameters())),
            )  # fmt: skip
        else:
            row = replace(row, why="no state can be left out at this tolerance, in the precision of its weights")
        self.rows[name] = row

    def _on_text(self, name: str, same: float) -> OnText | None:
        row = self.rows[name]
        if row.state is not None:  # a constant layer, none of whose states can be left out
            return None
        if not same <= 1:
            known = "there is no System of it" if same != same else "its outputs are not those of one linear System"
            why = self.runs.refused.get(name, f"{known} (a nonlinear cell, say)")
            self.rows[name] = replace(row, why=f"{why}: not measured")
            return None
        return OnText(self.tol, self.limit)

    def found(self) -> ModelReduction:
        model = with_layers(self.model, self.new) if self.new else self.model
        counts = tuple(sum(p.numel() for p in m.parameters()) for m in (self.model, model))
        tokens = self.runs.inputs
        kind = getattr(getattr(self.model, "config", None), "tokenizer", None)
        return ModelReduction(
            model, self.tol, tuple(self.rows.values()), (counts[0], counts[1]), 0 if tokens is None else
            tokens.shape[0] * tokens.shape[1], kind == "bytes", self.losses, self.off, self.complete, self.unit,
        )  # fmt: skip
