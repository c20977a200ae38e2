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
    """|got - want| / max |want|, the maximum taken per head (axis 2) if `heads`, and at least `floor`.

    Equal infinities are 0 apart and set no scale. NaN is equal to nothing: where there is one, so is the error.
    """
    scale = torch.where(want.isfinite(), want.abs(), 0.0)
    if heads and want.ndim > 2:
        scale = scale.amax([i for i in range(want.ndim) if i != 2], keepdim=True)
        scale = torch.maximum(scale, FAINT * scale.amax())
    else:
        scale = scale.amax()
    return torch.where(
        got == want, 0.0, (got - want).abs() / scale.clamp_min(max(floor, torch.finfo(scale.dtype).tiny))
    )


def largest(error: Tensor) -> float:
    """The largest error; inf if one is NaN."""
    return float(error.nan_to_num(math.inf, math.inf).max()) if error.numel() else 0.0


def why_no_proof(want: Tensor) -> str:
    """Why nothing is proved by being equal to `want`: its first entry that is not finite, in words; "" if all are."""
    bad = ~want.isfinite()
    if not bool(bad.any()):
        return ""
    at = tuple(bad.nonzero()[0].tolist())
    if want.ndim > 1:  # the first in time, as in `first_difference`
        time = int(bad.transpose(0, 1).flatten(1).any(1).nonzero()[0])
        at = tuple(bad[:, time].nonzero()[0].tolist())
        value, where = want[:, time][at].item(), f"position {time} of {want.shape[1]}, row {at[0]}"
    else:
        value, where = want[at].item(), f"index {at[0] if at else 0}"
    return f"no proof: what it is compared with is not finite, {value} first at {where}"


def is_constant(want: Tensor) -> bool:
    """True if all rows and times [B,T,...] hold the same: an output that does not depend on the input."""
    return want.ndim > 1 and want.shape[0] * want.shape[1] > 1 and bool((want == want[:1, :1]).all())


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
