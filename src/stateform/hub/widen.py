"""Running a module in float64 throughout, also where its code casts to float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = frozenset((Tensor.float, Tensor.half, Tensor.bfloat16))


class Widened(TorchFunctionMode):
    """A mode in which a cast to a narrower float is one to float64: `x.float()`, `x.to(torch.float32)`,
    `softmax(x, dtype=torch.float32)`. So a module written for half precision computes without its roundings.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _CASTS:
            function = Tensor.double
        # Every function that a module calls comes through here, most without a dtype: only arguments themselves are
        # looked at, as a dtype is never part of one.
        if torch.dtype in map(type, args):
            args = [_wide(x) for x in args]
        return function(*args, **{name: _wide(x) for name, x in kwargs.items()}) if kwargs else function(*args)


def _wide(x: Any) -> Any:
    return torch.float64 if type(x) is torch.dtype and x in _NARROW else x


@contextmanager
def widened(dtype: torch.dtype) -> Iterator[None]:
    """Enter `Widened`, with new tensors in float64, if `dtype` is float64; else do nothing."""
    if dtype != torch.float64:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Widened():
            yield
    finally:
        torch.set_default_dtype(before)
