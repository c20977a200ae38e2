"""How far two computations of the same thing may differ: written once, from dtype and length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = {torch.float64: 2.0**-48, torch.float32: 2.0**-23}
"""What one rounding may cost. Below float64's own 2^-52: angles and Fourier transforms lose a few bits once."""
HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half precisions compute in float32; their own rounding comes on top."""


def tolerance(dtype: torch.dtype, length: int, *, rounded: int = 1) -> float:
    """The relative error allowed after `length` steps: 24 sqrt(length) roundings, the one place where this is said.

    Roundings add up like a random walk, so their sum grows with the root of the length; the factor covers the sums over
    keys and the largest of many entries. In half precision `rounded` counts how often a value is rounded to that dtype.
    """
    steps = 24.0 * math.sqrt(max(length, 1))
    if dtype in HALF:
        return rounded * HALF[dtype] + steps * UNIT[torch.float32]
    return steps * UNIT[dtype]


GRADIENT = 16.0
"""A gradient may be off by this many times more: it passes the recurrence twice and sums over time."""
PROJECTED = 8
"""Roundings to half precision between a layer's input and output: projection, convolution, activation, read, norm,
gate, their product, output projection."""


FAINT = 0.05
"""A head whose output nearly cancels (a direct term against its kernel, say) is measured on no less than this share of
the strongest head's scale: its few digits are lost in every form alike."""


def relative_error(got: Tensor, want: Tensor, *, heads: bool = False, floor: float = 0.0) -> Tensor:
    """|got - want| / max |want|, the maximum taken per head (axis 2) if `heads`, and at least `floor`."""
    scale = want.abs()
    if heads and want.ndim > 2:
        scale = scale.amax([i for i in range(want.ndim) if i != 2], keepdim=True)
        scale = torch.maximum(scale, FAINT * scale.amax())
    else:
        scale = scale.amax()
    same = (got == want) | (torch.isnan(got) & torch.isnan(want))
    return torch.where(same, 0.0, (got - want).abs() / scale.clamp_min(max(floor, torch.finfo(scale.dtype).tiny)))


def wide(x: Tensor) -> Tensor:
    """To float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def first_difference(bad: Tensor, error: Tensor) -> str:
    """Where two tensors first differ, in words; axis 0 is the row, axis 1 the time."""
    rest = [i for i in range(bad.ndim) if i != 1]
    if bad.ndim < 2:
        return f"differs first at index {int(bad.nonzero()[0]) if bad.ndim else 0}"
    at = int(bad.any(dim=rest).nonzero()[0]) if bad.ndim > 1 else 0
    here = bad.select(1, at)
    row = int(here.flatten(1).any(1).nonzero()[0]) if here.ndim > 1 else int(here.nonzero()[0])
    size = float(error.select(1, at).nan_to_num(math.inf, math.inf).max())
    return f"differs first at position {at} of {bad.shape[1]}, row {row}, by {size:.2g}"
