"""Inside `widened`, what would be cast to fewer digits is cast to float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stateform.hub.widen import widened

CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": Tensor.float,
    "half": lambda x: x.half(),
    "bfloat16": Tensor.bfloat16,
    "to, by place": lambda x: x.to(torch.float32),
    "to, by name": lambda x: x.to(dtype=torch.bfloat16),
    "softmax, by place": lambda x: torch.softmax(x, 0, torch.float32),
    "softmax, by name": lambda x: torch.softmax(x, 0, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float16),
    "new": lambda x: torch.zeros(2, dtype=torch.float32) + x,
    "default": lambda x: torch.zeros(2),
}


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_is_to_float64(name: str) -> None:
    x = torch.full((2,), 1 / 3, dtype=torch.float64)
    with widened(torch.float64):
        y = CASTS[name](x)
        assert x.to(torch.int64).dtype == torch.int64 and x.bool().dtype == torch.bool
    assert y.dtype == torch.float64
    if name in ("float", "half", "bfloat16", "to, by place", "to, by name", "new"):
        assert torch.equal(y, x)
    with widened(torch.float32):
        assert CASTS["float"](x).dtype == torch.float32
    assert torch.zeros(1).dtype == torch.float32
