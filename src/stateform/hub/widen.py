"""Run a module in float64 throughout, also where its code says float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Widened(TorchFunctionMode):
    """Inside this mode a cast to a narrower float is a cast to float64: `x.float()`, `x.to(torch.float32)`,
    `softmax(x, dtype=torch.float32)`. So a module written for half precision shows what it computes, not its roundings.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.float, Tensor.half, Tensor.bfloat16):
            function = Tensor.double
        args, kwargs = pytree.tree_map_only(torch.dtype, _wide, (args, kwargs or {}))
        return function(*args, **kwargs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in _NARROW else dtype


@contextmanager
def widened(dtype: torch.dtype) -> Iterator[None]:
    """`Widened`, and new tensors in float64, if `dtype` is float64; else nothing."""
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
