"""A layer, as the contract sees it: vectors in and out, a state that it gives and takes."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..architectures import build
from ..errors import StateformError, require, require_finite_weights
from ..layer import Layer, has_system, system_of
from ..models import SequenceModel
from ..series import Series
from ..system import System
from ..system.precision import HALF, PROJECTED, UNIT, tolerance
from ..system.state import State, grows
from .draws import copied, drawn, normal
from .law import Layout
from .outcome import Report
from .refusals import require_weights


@dataclass(frozen=True)
class Ran:
    """What a layer gave: outputs, and the states after the texts (one, where the texts are whole rows)."""

    y: Tensor
    states: list[State]
    names: Sequence[str] = ()
    """Where each state is compared, in words; none: states are not."""


@dataclass
class LayerRunner:
    """A copy of a layer in float64, and how it is called."""

    layer: Layer
    """Another class has what is asked of it: `offers` tells."""
    report: Report
    generator: torch.Generator
    exhaustive: bool
    part: str = ""
    dtype: torch.dtype = torch.float64
    allowed: float = 0.0
    """Relative error of outputs and states; `in_precision` sets it."""
    rows: Tensor | None = None
    """Numbers [T,d_model] of which inputs are stretches; None: inputs are drawn."""

    def __post_init__(self) -> None:
        self.ours = has_system(self.layer)
        self.takes = arguments(self.layer)
        self.device = next((p.device for p in self.layer.parameters()), torch.device("cpu"))
        self.d_model = int(self.layer.d_model)

    def read(self, series: Series, project: bool, seed: int) -> None:
        """Take the inputs from a series.

        Raises:
            StateformError: its steps have another width, and are not mapped.
        """
        series = series.fitted(self.d_model, self.report.name, project=project, seed=seed)
        self.rows = series.scaled().values
        self.report.notes.append(f"inputs are stretches of {series}, scaled to mean square 1, not random draws")

    # -- other layers and inputs -------------------------------------------------------------------------------------

    def drawn(self) -> LayerRunner:
        """Give the layer parameters in which every part of its system matters; another's keeps its own."""
        if not self.ours:
            return self
        return replace(self, layer=drawn(self.layer, self.input(2, 48), self.generator)[0])

    def in_precision(self, dtype: torch.dtype, T: int) -> LayerRunner:
        """Copy the layer in a precision, for texts of T tokens."""
        allowed = tolerance(dtype, T, rounded=PROJECTED)
        return replace(self, layer=copied(self.layer).to(dtype), dtype=dtype, allowed=allowed)

    def losing(self, digits: float) -> LayerRunner:
        """Allow for `digits`: outputs that change so many times as much as inputs, relatively, however computed."""
        return replace(self, allowed=self.allowed + digits * UNIT[torch.float32 if self.dtype in HALF else self.dtype])

    def input(self, B: int, T: int) -> Tensor:
        """Draw B rows of T steps each, or take them from the numbers given."""
        if self.rows is None:
            return normal((B, T, self.d_model), self.generator).to(self.device, self.dtype)
        start = torch.randint(len(self.rows), (B, 1), generator=self.generator, device="cpu")
        return self.rows[(start + torch.arange(T, device="cpu")) % len(self.rows)].to(self.device, self.dtype)

    def calls(self, T: int, n: int) -> tuple[int, ...]:
        """Cut T tokens into n calls of random length."""
        inner = torch.randperm(max(T - 1, 0), generator=self.generator, device="cpu")[: n - 1] + 1
        cuts = [0, *sorted(inner.tolist()), T]
        return tuple(high - low for low, high in itertools.pairwise(cuts))

    def lengths(self, short: Sequence[int], long: Sequence[int]) -> Sequence[int]:
        return long if self.exhaustive else short

    def offers(self, what: str) -> bool:
        there = what in self.takes or hasattr(self.layer, what)
        if not there:
            self.report.lacks(what)
        return there

    def forms(self, x: Tensor) -> list[str]:
        """List the forms in which the layer can be computed; "auto" where that is not asked for."""
        if not self.ours or "form" not in self.takes:
            return ["auto"]
        with torch.no_grad():
            return self.layer.forms(x)

    def system(self, u: Tensor) -> System:
        """Ask the layer what it computes of the input [B,T,d_model]."""
        return system_of(self.layer, u)

    # -- computing ---------------------------------------------------------------------------------------------------

    def call(self, x: Tensor, form: str = "auto", **given: Any) -> tuple[Tensor, State]:
        """Compute the outputs and the state after them."""
        if "form" in self.takes:
            given["form"] = form
        out = self.layer(x, return_state=True, **given)
        assert isinstance(out, tuple)
        return out

    def run(
        self, x: Tensor, layout: Layout, *, form: str = "auto", steps: bool = False, states: Sequence[str] = ()
    ) -> Ran:
        """Compute the calls of a layout: in a form, single tokens by `step` if `steps`. Padding is NaN.

        Args:
            states: where the state after each text is compared, in words; none: nowhere.
        """
        mask = None if layout.mask is None else layout.mask.to(x.device)
        x = x if mask is None else x.masked_fill(~mask[..., None], math.nan)
        state: State | None = None
        outputs = []
        for low, high in layout.spans():
            if steps and high - low == 1:
                y, state = self.step(x[:, low], state, low)
            else:
                given: dict[str, Any] = {} if state is None else {"initial_state": state}
                if mask is not None and not bool(mask[:, low:high].all()):
                    given["attention_mask"] = mask[:, low:high].float()
                if layout.ends is not None:
                    given["cu_seqlens"] = torch.tensor(layout.ends, device=x.device)
                y, state = self.call(x[:, low:high], form, **given)
            outputs.append(y)
        assert state is not None
        return Ran(_shown(torch.cat(outputs, 1), layout), _after(state, layout) if states else [], states)

    def step(self, x: Tensor, state: State | None, at: int) -> tuple[Tensor, State]:
        """Compute one token [B,d_model]; the state that is given stays as it was."""
        before: State = self.layer.init_state(len(x)) if state is None else state
        kept = before.clone()
        y, after = self.layer.step(x, before)
        same = all(torch.equal(kept[k], before[k]) for k in kept)
        self.report.expect(self.part, same, f"step at position {at} changed the state it was given")
        return y.unsqueeze(1), after

    def oracle(self, x: Tensor) -> tuple[Tensor, State]:
        """Compute outputs and states by the recurrence, at once."""
        return self.call(x, "recurrent" if self.ours else "auto")

    def alone(self, x: Tensor, layout: Layout) -> Ran:
        """Compute each text by itself; texts that are whole rows together, where nothing else is in the batch."""
        if layout.plain and len(layout.texts) == len(x):
            y, state = self.oracle(x)
            return Ran(_shown(y, layout), [state])
        y, states = torch.zeros_like(x), []
        for row, places in layout.texts:
            at = places.nonzero().flatten().to(x.device)
            own, state = self.oracle(x[row : row + 1, at])
            y[row, at] = own[0]
            states.append(state)
        return Ran(_shown(y, layout), states)

    # -- comparing ---------------------------------------------------------------------------------------------------

    def compare(self, where: str, got: Ran, want: Ran) -> None:
        self.report.compare(self.part, where, got.y, want.y, self.allowed)
        for name, state, expected in zip(got.names, got.states, want.states, strict=bool(got.names)):
            self.compare_states(name, state, expected, self.allowed)

    def compare_states(self, where: str, got: State, want: State, allowed: float) -> None:
        """Compare every tensor of two states."""
        for key in want:
            if key not in got:
                self.report.expect(self.part, False, f"{where}: the state has no {key}")
            else:
                logs = key.rpartition(".")[2] in ("log_scale", "log_weight")  # -inf: nothing yet, or nothing any more
                where_key = f"{where}, state {key}"
                self.report.compare(self.part, where_key, got[key], want[key], allowed, infinite=logs)

    def attempt(self, where: str) -> AbstractContextManager[None]:
        """Let through what a layer raises: it ends the part."""
        return contextlib.nullcontext()

    def perform(self, part: str, function: Callable[[LayerRunner], None]) -> None:
        """Run a part."""
        try:
            function(replace(self, part=part))
        except StateformError as error:
            self.report.expect(part, False, f"raised: {error}")
        except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
            self.report.expect(part, False, f"raised {type(error).__name__}: {error}")


def _shown(y: Tensor, layout: Layout) -> Tensor:
    """Select the outputs that are compared: of the rows that hold texts, at the times that are seen."""
    y = y[sorted({row for row, _ in layout.texts})]
    return y if layout.seen is None else y[:, layout.seen.to(y.device)]


def _after(state: State, layout: Layout) -> list[State]:
    """Select the state after each text: its row, or its place in the pack. Caches are aligned at their end."""
    if layout.plain:
        return [state]
    found = []
    for i, (row, places) in enumerate(layout.texts):
        at, length = row if layout.ends is None else i, int(places.sum())
        own = {k: x[at : at + 1] for k, x in state.tensors.items()}
        found.append(State({k: x[:, max(0, x.shape[1] - length) :] if grows(k) else x for k, x in own.items()}))
    return found


# -- what is given ---------------------------------------------------------------------------------------------------


def layer_runner(thing: Any, seed: int, exhaustive: bool, options: dict[str, Any]) -> LayerRunner:
    """Prepare a layer, by name, file or class, or a module, for the check.

    Raises:
        StateformError: if it is no layer y = layer(x) with a state, or has NaN or inf in its weights.
    """
    opened = not isinstance(thing, nn.Module) and isinstance(getattr(thing, "model", None), nn.Module)
    require(not opened, f"a {type(thing).__name__} was given; give .model of what was opened")
    if not isinstance(thing, nn.Module):
        options.setdefault("d_model", 32)
        torch.manual_seed(seed)
    require(
        not isinstance(thing, SequenceModel),
        f"a {type(thing).__name__} has one answer for a text; check its layers, e.g. sf.check(model.blocks[0].mixer)",
    )
    built = build(thing, **options)
    require_weights(built)
    layer = copied(built).double().eval()
    require(
        hasattr(layer, "d_model"),
        f"{type(layer).__name__} has no d_model; expected a layer y = layer(x), x [B,T,d_model]",
    )
    name = thing if isinstance(thing, str) else type(layer).__name__
    missing = [x for x in ("initial_state", "return_state") if x not in arguments(layer)]
    require(not missing, f"{name} does not take {' and '.join(missing)}; expected both, as in sf.Layer.forward")
    require_finite_weights(layer)
    return LayerRunner(cast(Layer, layer), Report(name), torch.Generator("cpu").manual_seed(seed), exhaustive)


def arguments(layer: nn.Module) -> set[str]:
    """List what a layer's forward takes; with **kwargs, everything that Layer.forward takes."""
    known = inspect.signature(layer.forward).parameters
    passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    return {*known, *(inspect.signature(Layer.forward).parameters if passed_on else ())}
