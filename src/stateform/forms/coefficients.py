"""The effective attention of a system, and what each token contributes: sizes are estimated first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import require
from ..system import System
from ..system.precision import complex_dtype, real_dtype, upcast
from ..system.shapes import indices, spread_heads
from .form import reads_of
from .stabilise import exponential, stabilise


def coefficients(
    system: System, heads: Sequence[int] | int | None, queries: Sequence[int] | None, limit: float
) -> Tensor:
    """See `System.coefficients`."""
    require(system.v is not None and system.q is not None and system.q.ndim in (2, 4),
            "coefficients are scalar weights of values; for vector states use contributions()")  # fmt: skip
    return _weights_of_inputs(system, heads, queries, limit).squeeze(2)


def contributions(
    system: System, heads: Sequence[int] | int | None, queries: Sequence[int] | None, limit: float
) -> Tensor:
    """See `System.contributions`."""
    scalar = system.v is not None and system.q is not None and system.q.ndim in (2, 4)
    require(scalar or system.v is None, "contributions of a matrix read need q without an output axis, or v = None")
    width = system.p if scalar else system.outputs
    alpha = _weights_of_inputs(system, heads, queries, limit / max(1, width))
    system = system if heads is None else system.select_heads(heads)
    if system.v is not None:
        v = spread_heads(upcast(system.v), system.H)
        parts = alpha.squeeze(2).unsqueeze(-1) * v.movedim(1, 2).unsqueeze(2)
        return parts.real if parts.is_complex() else parts
    parts = alpha.movedim(2, -1)
    if system.w_out is not None:
        w_out = upcast(system.w_out).to(parts.dtype)
        parts = torch.einsum("bhijn,ohn->bijo", parts, w_out).unsqueeze(1)
        parts = parts.real if parts.is_complex() else parts
    return parts


def _weights_of_inputs(
    system: System, heads: Sequence[int] | int | None, queries: Sequence[int] | None, limit: float
) -> Tensor:
    """Compute alpha with the output axis, [B,H,o,queries,T*micro]."""
    system = system if heads is None else system.select_heads(heads)
    queries = None if queries is None else indices(queries, system.T, "queries")
    rows = system.T if queries is None else len(queries)
    size = system.B * system.H * rows * system.T * system.micro * upcast(system.k).element_size()
    require(
        size <= limit,
        f"coefficients [{system.B},{system.H},{rows},{system.T * system.micro}] would take {size / 1e9:.2g} GB; "
        f"the limit is {limit / 1e9:.2g} GB: choose heads=, queries=, a shorter system[start:stop], or limit=; for "
        "the last tokens of every query without T x T, analysis.influence_band",
    )
    if size == 0:
        shape = (system.B, system.H, system.outputs, rows, system.T * system.micro)
        real = real_dtype(upcast(system.k).dtype)
        whole = system.is_complex and system.q is None
        return torch.zeros(shape, dtype=complex_dtype(real) if whole else real, device=system.device)
    if exponential(system):
        system = stabilise(system)[0]  # the weights do not depend on the coordinates of the state
    return reads_of(system).weights(system, queries)
