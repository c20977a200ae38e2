"""Every number about rounding: dtypes, exact angles, and how far two computations of the same thing may differ."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import require


def wrap(phase: Tensor) -> Tensor:
    """Reduce the angle in float64 to [-pi, pi): sums of many stay small, and so exact."""
    return torch.remainder(phase.double() + math.pi, 2 * math.pi) - math.pi


def angles(phase: Tensor, block: int = 64) -> Tensor:
    """Sum phase_1 + ... + phase_t along axis -2, in float64 and modulo 2 pi (not reduced to a range).

    Summed within blocks, and over the reduced sums of the blocks: the terms stay small at any length, and so exact.
    """
    x = wrap(phase)
    length = x.shape[-2]
    if torch.compiler.is_exporting():  # torch does not see that blocks fit every length
        return torch.cumsum(x, -2)
    if torch.compiler.is_compiling():  # two or more, so that one graph holds for any length
        blocks = length // block + 2
    elif length <= block:
        return torch.cumsum(x, -2)
    else:
        blocks = -(-length // block)
    x = torch.nn.functional.pad(x, (0, 0, 0, blocks * block - length)).unflatten(-2, (blocks, block)).cumsum(-2)
    totals = wrap(x[..., -1:, :])
    return (x + (totals.cumsum(-3) - totals)).flatten(-3, -2)[..., :length, :]


def cis(phase: Tensor) -> Tensor:
    """Compute exp(i phase), reduced modulo 2 pi in float64. Complex, as precise as `phase` (complex64 at least)."""
    angle = wrap(phase)
    unit = torch.polar(torch.ones_like(angle), angle)
    return unit if phase.dtype == torch.float64 else unit.to(torch.complex64)


DOUBLE = (torch.float64, torch.complex128)
FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_REAL = {torch.complex128: torch.float64, torch.complex64: torch.float32, torch.complex32: torch.float16}


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the real part."""
    return _REAL.get(dtype, dtype)


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the complex dtype that goes with a dtype. There is no complex half: complex64 goes with half precision."""
    return torch.complex128 if dtype in DOUBLE else torch.complex64


def asked_of_to(what: str, *args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None]:
    """Read the arguments of `Tensor.to`: a device, a floating dtype, or both; `what` is what they are given for."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    floating = dtype is None or dtype.is_floating_point or dtype.is_complex
    require(floating, f"a {what} cannot be cast to {dtype}; expected a floating dtype")
    return device, dtype


def upcast(x: Tensor) -> Tensor:
    """Cast to the precision in which states and sums of log decays are kept: float32 or complex64 at least."""
    if x.dtype in FULL:
        return x
    return x.to(torch.complex64 if x.is_complex() else torch.float32)


NO_AUTOCAST = frozenset(x for x in ("meta", "vulkan", "lazy") if not torch.amp.is_autocast_available(x))
"""Devices that have none; looked up here, because torch.compile does not trace the question in torch 2.11."""


def autocast_on(device: torch.device) -> bool:
    """True if autocast is on for a device."""
    return device.type not in NO_AUTOCAST and torch.is_autocast_enabled(device.type)


def one_dtype(x: Tensor, weight: Tensor) -> bool:
    """True if operations take both: they have one dtype, or autocast gives them one (it leaves float64 as it is)."""
    double = x.dtype in DOUBLE or weight.dtype in DOUBLE
    return x.dtype == weight.dtype or (not double and autocast_on(x.device))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Open a block in which autocast does not lower the precision."""
    return torch.autocast(device.type, enabled=False) if autocast_on(device) else nullcontext()


# -- tolerances, from dtype and length: written here alone -----------------------------------------------------------

UNIT = {torch.float64: 2.0**-48, torch.float32: 2.0**-23}
"""What one rounding may cost. Below float64's own 2^-52: angles and Fourier transforms lose a few bits once."""
HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half precisions compute in float32; their own rounding comes on top."""


def tolerance(dtype: torch.dtype, length: int, *, rounded: int = 1) -> float:
    """Give the relative error allowed after `length` steps: 24 sqrt(length) roundings, the one place where this is
    said.

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
    """Compute |got - want| / max |want|, the maximum taken per head (axis 2) if `heads`, and at least `floor`.

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
    """Find the largest error; inf if one is NaN."""
    return float(error.nan_to_num(math.inf, math.inf).max()) if error.numel() else 0.0


def why_no_proof(want: Tensor) -> str:
    """Say why being equal to `want` proves nothing: its first entry that is not finite, in words; "" if all are."""
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
    """Cast to float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def first_difference(bad: Tensor, error: Tensor) -> str:
    """Say where two tensors first differ, in words; axis 0 is the row, axis 1 the time."""
    rest = [i for i in range(bad.ndim) if i != 1]
    if bad.ndim < 2:
        return f"differs first at index {int(bad.nonzero()[0]) if bad.ndim else 0}"
    at = int(bad.any(dim=rest).nonzero()[0]) if bad.ndim > 1 else 0
    here = bad.select(1, at)
    row = int(here.flatten(1).any(1).nonzero()[0]) if here.ndim > 1 else int(here.nonzero()[0])
    size = float(error.select(1, at).nan_to_num(math.inf, math.inf).max())
    return f"differs first at position {at} of {bad.shape[1]}, row {row}, by {size:.2g}"
