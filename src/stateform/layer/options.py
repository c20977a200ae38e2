"""The options a layer is made with: checked against the types that its signature says, and kept as its `config`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import StateformError
from ..system.precision import HALF

SIZES = {"d_model", "n_heads", "n_kv_heads", "n_groups", "d_state", "d_head", "d_conv", "expand", "dt_rank",
         "gate_rank", "mix_rank", "decay_rank", "rate_rank", "value_rank"}  # fmt: skip
"""Names that are sizes in every layer: 1 or more."""
LARGEST = 2**53
"""A larger whole number is a slip: no tensor could have such a size."""


def recorded(init: Callable[..., None]) -> Callable[..., None]:
    """Make an __init__ of a layer check its arguments and keep them in `config`; that of a base class, called from it,
    leaves them as they are.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording(self: nn.Module, *args: Any, **options: Any) -> None:
        bound = signature.bind(self, *args, **options)
        bound.apply_defaults()
        check_options(bound, init)
        if "config" in self.__dict__:
            init(*bound.args, **bound.kwargs)
            return
        self.__dict__["config"] = {k: v for k, v in list(bound.arguments.items())[1:]}
        _make_in_full(self, functools.partial(init, *bound.args, **bound.kwargs))
        if not any(is_lazy(p) for p in self.parameters()):
            _ = self.fingerprint  # known from here on: no call computes it, and torch.compile need not trace it

    return recording


def _make_in_full(layer: nn.Module, init: Callable[[], None]) -> None:
    """Make a layer. Where the default is half precision, its parameters are computed in float32, then rounded to it."""
    wanted = torch.get_default_dtype()
    if wanted not in HALF:
        init()
        return
    torch.set_default_dtype(torch.float32)
    try:
        init()
    finally:
        torch.set_default_dtype(wanted)
    layer.to(wanted)


def check_options(bound: inspect.BoundArguments, init: Callable[..., None]) -> None:
    """Raise unless the arguments are of the types that `init` says: bool, int, float, str, Literal, None, or a union of
    these. Other annotations are not looked at. Numbers of other libraries become plain ones.
    """
    hints = _hints(init)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, value in bound.arguments.items():
        if name in hints and bound.signature.parameters[name].kind not in several:
            bound.arguments[name] = _checked(name, value, hints[name])


def checked_fields(made: Any) -> dict[str, Any]:
    """Give the fields of a dataclass by name, checked as `check_options` does."""
    init = type(made).__init__
    given = _signature(init).bind(made, **{f.name: getattr(made, f.name) for f in dataclasses.fields(made)})
    check_options(given, init)
    return {name: value for name, value in given.arguments.items() if value is not made}


@functools.lru_cache(maxsize=256)  # reading them takes longer than all the rest of a layer that is small
def _hints(init: Callable[..., None]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(init)
    except Exception:  # annotations may name what exists for type checkers alone
        return {}


@functools.lru_cache(maxsize=256)
def _signature(init: Callable[..., None]) -> inspect.Signature:
    return inspect.signature(init)


def _checked(name: str, value: Any, hint: Any) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    expected = []
    for kind in typing.get_args(hint) if union else (hint,):
        if kind in (bool, str, type(None)):
            if isinstance(value, kind):
                return value
            expected.append({bool: "True or False", str: "a string"}.get(kind, "None"))
        elif kind is int:
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if whole and abs(int(value)) <= LARGEST and (int(value) >= 1 or name not in SIZES):
                return int(value)
            most = f", {LARGEST:.0e} at most" if whole and abs(int(value)) > LARGEST else ""
            expected.append(("a whole number, 1 or more" if name in SIZES else "a whole number") + most)
        elif kind is float:
            if isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value):
                return value if isinstance(value, int) else float(value)
            expected.append("a number")
        elif typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
            expected.append(" or ".join(repr(allowed) for allowed in typing.get_args(kind)))
        else:
            return value
    raise StateformError(f"{name} is {value!r}; expected {', or '.join(expected)}")
