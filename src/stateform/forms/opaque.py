"""`stateform::form`: a form as one operator of torch, for graphs that hold for every length.

Which chunks and levels a form makes, and how many, follows from the length. Where that is a symbol the graph holds the
form as a whole, and the form sees the length when the graph runs. Its gradient computes the form again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..loops.ops import differentiable, operator
from ..system.core import Core
from .form import FORMS

PARTS = ("q", "k", "v", "log", "rate", "phase", "sign", "matrix", "f", "w")


def opaque(form: str, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the reads [B,T,G,R,o,p] of a core and the state after it, from S [B,G,R,n,p], by one operator."""
    y, end = whole_form(*_arguments(form, core, S))
    return y, end


def pulled(form: str, core: Core, S: Tensor, gy: Tensor) -> dict[str, Tensor]:
    """Compute the gradients of the reads along gy, by the names of the core's parts, and of the state "S"."""
    found = form_backward(gy, torch.zeros_like(S), *_arguments(form, core, S))
    return dict(zip((*PARTS, "S"), found, strict=True))


def _arguments(form: str, core: Core, S: Tensor) -> list[Any]:
    parts = [getattr(core, name) for name in PARTS]
    rest = (core.exclusive, core.real, core.whole, core.length, core.batch, core.heads, core.state_heads)
    return [*parts, S, form, *rest]


def _given(*args: Any) -> tuple[str, Core, Tensor]:
    """Rebuild what `_arguments` was made of."""
    parts, S, form = args[: len(PARTS)], args[len(PARTS)], args[len(PARTS) + 1]
    exclusive, real, whole, length, batch, heads, state_heads = args[len(PARTS) + 2 :]
    core = Core(
        **dict(zip(PARTS, parts, strict=True)), exclusive=exclusive, real=real, whole=whole, length=length,
        batch=batch, heads=tuple(heads), state_heads=tuple(state_heads),
    )  # fmt: skip
    return form, core, S


def _computed(form: str, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    y, end = FORMS[form].compute(core, S)
    return core.needed(y).expand(-1, -1, *core.heads, -1, -1), end


def form_reference(*args: Any) -> tuple[Tensor, Tensor]:
    """Return what `stateform::form` computes, by its arguments."""
    return _computed(*_given(*args))


@operator("stateform::form")
def whole_form(
    q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, rate: Tensor | None, phase: Tensor | None,
    sign: Tensor | None, matrix: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    form: str, exclusive: bool, real: bool, whole: bool, length: int, batch: int, heads: Sequence[int],
    state_heads: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the reads and the last state of the Core with these parts, by the form of that name."""
    y, end = form_reference(
        q, k, v, log, rate, phase, sign, matrix, f, w, S, form, exclusive, real, whole, length, batch, heads,
        state_heads,
    )  # fmt: skip
    return y.contiguous(), end.contiguous()


@whole_form.register_fake
def _(*args):  # type: ignore[no-untyped-def]
    _, core, S = _given(*args)
    y, end = _computed("recurrent", core.slice(0, 1), S)  # a step says what comes out of many
    return y.new_empty(y.shape[0], core.length, *y.shape[2:]), end.new_empty(end.shape)


@operator("stateform::form_backward")
def form_backward(
    gy: Tensor, gend: Tensor, q: Tensor, k: Tensor, v: Tensor, log: Tensor | None, rate: Tensor | None,
    phase: Tensor | None, sign: Tensor | None, matrix: Tensor | None, f: Tensor | None, w: Tensor | None, S: Tensor,
    form: str, exclusive: bool, real: bool, whole: bool, length: int, batch: int, heads: Sequence[int],
    state_heads: Sequence[int],
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """Compute the gradients of all parts (nothing where there was none) and S."""
    given = (q, k, v, log, rate, phase, sign, matrix, f, w, S)
    rest = (form, exclusive, real, whole, length, batch, heads, state_heads)

    def of_those_there(*xs: Tensor) -> tuple[Tensor, Tensor]:
        left = iter(xs)
        return form_reference(*(x if x is None else next(left) for x in given), *rest)

    pull = torch.func.vjp(of_those_there, *(x for x in given if x is not None))[1]
    found = iter(pull((gy, gend)))
    return tuple(S.new_empty(0) if x is None else next(found).contiguous() for x in given)  # type: ignore[return-value]


@form_backward.register_fake
def _(gy, gend, *args):  # type: ignore[no-untyped-def]
    given, S = args[: len(PARTS) + 1], args[len(PARTS)]
    return tuple(S.new_empty(0) if x is None else x.new_empty(x.shape) for x in given)


differentiable(whole_form, form_backward, form_reference, len(PARTS) + 1)
