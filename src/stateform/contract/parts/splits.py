"""A text in pieces, and one token at a time, each from what the piece before left: the same outputs and the same state
as all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...system.precision import GRADIENT, tolerance, wide
from ..draws import normal, sensitivity, short, some_state
from ..law import Layout, holds, span
from ..layer import LayerRunner
from ..model import ModelRunner
from .gradients import floor_of

DTYPES = (torch.float64, torch.float32)

# -- a layer ---------------------------------------------------------------------------------------------------------


def _sizes(b: LayerRunner) -> Iterator[tuple[int, torch.dtype]]:
    for T in b.lengths((3, 83), (1, 2, 5, 64, 65, 130, 257, 1000)):
        for dtype in (*DTYPES, torch.bfloat16):
            yield T, dtype


def layer_splits(b: LayerRunner) -> None:
    """Compare the whole sequence by the recurrence with each form: at once, and in pieces."""
    for T, dtype in _sizes(b):
        exact = b.drawn()
        layer = exact.in_precision(dtype, T)
        x = layer.input(2, T)
        with torch.no_grad():
            layer = layer.losing(_lost(exact, x))
            whole = Layout.rows(2, T)
            want = layer.alone(x, whole)
            for form in layer.forms(x):
                split = Layout.rows(2, *layer.calls(T, 3))
                for text, layout in (("whole", whole), (f"split at {_cuts(split)}", split)):
                    where = f"{text}, form {form}, {short(dtype)}, T = {T}"
                    holds(layer, where, x, layout, want, form=form, states=[where])
        if dtype == torch.float64:
            _split_gradient(layer, x)


def _lost(b: LayerRunner, x: Tensor) -> float:
    """Estimate the digits that solving the equations of a ridge readout costs: those of their condition number."""
    if not b.ours:
        return 0.0
    system = b.system(wide(x)).to(torch.float64)
    if not system.readout.gram:
        return 0.0
    return 4 * sensitivity(system, some_state(system), b.generator)


def _cuts(split: Layout) -> list[int]:
    return [low for low, _ in split.spans()[1:]]


def _split_gradient(layer: LayerRunner, x: Tensor) -> None:
    """Compare gradients to the input and the parameters through the pieces with those through the whole."""
    T = x.shape[1]
    weight = normal(x.shape, layer.generator).to(x.device)
    split, module = Layout.rows(2, *layer.calls(T, 3)), layer.layer
    leaves = [x.clone().requires_grad_(), *module.parameters()]
    whole, pieces = layer.alone(leaves[0], Layout.rows(2, T)).y, layer.run(leaves[0], split).y
    want, got = (torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (whole, pieces))
    floor = floor_of(w for w in want if w is not None)
    report, at = layer.report, f"split at {_cuts(split)}"
    for name, g, w in zip(["x", *(n for n, _ in module.named_parameters())], got, want, strict=True):
        if g is None or w is None:
            report.expect(layer.part, g is None and w is None, f"{at}: {name} has a gradient on one side only")
            continue
        allowed = GRADIENT * tolerance(torch.float64, T)
        report.compare(layer.part, f"{at}, gradient of {name}", g, w, allowed, floor=floor)
    report.expect(layer.part, want[0] is not None and bool(want[0].abs().max() > 0), "the gradient of x is zero")


def layer_steps(b: LayerRunner) -> None:
    """Token by token from init_state, and continuing by steps after a prefix; the given state stays as it was."""
    if not (b.offers("step") and b.offers("init_state")):
        return
    T = 24
    for dtype in DTYPES:
        layer = b.drawn().in_precision(dtype, T)
        x = layer.input(2, T)
        with torch.no_grad():
            for begin in (0, 9):
                where = f"steps from position {begin}, {short(dtype)}"
                layout = Layout.rows(2, *_one_by_one(begin, T), seen=span(T, begin, T))
                holds(layer, where, x, layout, steps=True, states=[where])


def _one_by_one(begin: int, T: int) -> list[int]:
    """List the calls of single tokens, after a prefix."""
    return [*([begin] if begin else []), *[1] * (T - begin)]


# -- a model ---------------------------------------------------------------------------------------------------------


def model_cache(b: ModelRunner) -> None:
    """Compute texts with and without a cache, with an empty one given, and one text after another."""
    if not b.offers("a cache"):
        return
    T = min(24, b.longest)
    one, two, layout = b.input(2, T), b.input(2, T), Layout.rows(2, T)

    def after_another() -> Any:
        b.onward(one, T, None, b.fresh())
        return b.empty()

    holds(b, "use_cache=True", one, layout, call=b.onward)
    holds(b, "a second text after the first", two, layout, call=b.onward, start=after_another)
    if b.dynamic:
        holds(b, "an empty cache given", two, layout, call=b.onward, start=b.given_anew)


def model_continue(b: ModelRunner) -> None:
    """Compute a prefix, then many tokens at once from the cache, chunk after chunk."""
    if b.cache_name is None:
        return
    T = min(300 if b.exhaustive else 80, b.longest)
    tokens = b.input(2, T)
    for split in _splits(T, b.exhaustive):
        text = " then ".join(map(str, split)) + " tokens"
        holds(b, text, tokens[:, : sum(split)], Layout.rows(2, *split), call=b.onward)


def _splits(T: int, exhaustive: bool) -> list[tuple[int, ...]]:
    chosen: list[tuple[int, ...]] = [
        (1, 12), (2, 11), (3, 3, 3, 3), (7, 13), (7, 1, 13), (1, 1, 6, 1), (20, 9, 2, 5), (T - 10, 10), (10, T - 10),
        (T // 2, 1, T - T // 2 - 1),
    ]  # fmt: skip
    if exhaustive:
        chosen += [(n, T - n) for n in range(1, T)]
    return [c for c in chosen if min(c) > 0 and sum(c) <= T]


def model_steps(b: ModelRunner) -> None:
    """Compute one token at a time from an empty cache, and after a prefix."""
    if b.cache_name is None:
        return
    T = min(24, b.longest)
    for rows in (1, 3):
        tokens = b.input(rows, T)
        for begin in (0, 2, 9):
            text = f"{rows} row{'s' * (rows > 1)}, from " + (f"position {begin}" if begin else "an empty cache")
            holds(b, text, tokens, Layout.rows(rows, *_one_by_one(begin, T)), call=b.onward)
