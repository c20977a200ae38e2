"""A constant dense transition as a complex diagonal one, in the basis of its eigenvectors.

    A = V diag(lambda) V^-1,  S' = V^-1 S,  k' = V^-1 k,  q' = V^T q  (f' = V^-1 f,  w' = V^T w)

Source: any book on linear systems; S4D (arXiv 2206.11893) and S5 (arXiv 2208.04933, section 3.2) begin there.
"""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..system import System
from ..system.precision import complex_dtype, real_dtype, upcast
from ..system.shapes import spread_heads
from ..system.transition import eigenbasis
from .certificate import Conversion, certify, check_system


def diagonalise(system: System, *, most: float | None = None) -> Conversion:
    """Turn the system into the eigenbasis of its transition. A read of the whole state becomes the read V S'.

    Args:
        system: with a constant dense transition [H,n,n]; everything else may vary.
        most: the largest condition ||V|| ||V^-1|| accepted, by which rounding grows (default 0.1 / sqrt(rounding):
            6.7e6 in float64, 290 in float32).

    Raises:
        StateformError: another kind of system, or eigenvectors that are (nearly) dependent: a defective matrix.
    """
    check_system(system, "diagonalise")
    require(system.readout.linear and system.transition is not None and system.is_constant("transition"),
            f"{system!r} has no constant dense transition; expected transition [H,n,n]")  # fmt: skip
    assert system.transition is not None
    dtype = complex_dtype(upcast(system.k).dtype)
    values, V, condition = eigenbasis(system.transition)
    most = most if most is not None else 0.1 * torch.finfo(real_dtype(dtype)).eps ** -0.5
    worst = float(condition.detach().max())
    if not worst <= most:
        raise StateformError(
            f"head {int(condition.argmax())}: the eigenvectors have the condition {worst:.3g}, above {most:.2g}: the "
            "transition is (nearly) defective, and its eigenbasis would lose that many digits. Keep it dense"
            + ("" if real_dtype(dtype) == torch.float64 else ", or try system.to(torch.float64)")
        )
    inverse = torch.linalg.inv(V)

    def mapped(x: Tensor, M: Tensor) -> Tensor:  # M x per head, x [...,H,n]
        heads = lcm(x.shape[-2], len(M))
        x, M = spread_heads(x, heads, axis=-2), spread_heads(M, heads, axis=0)
        return torch.einsum("hmn,...hn->...hm", M, x.to(V.dtype)).to(dtype)

    new: dict[str, Any] = {"k": mapped(system.k, inverse)}
    if system.f is not None and system.w is not None:
        new |= {"f": mapped(system.f, inverse), "w": mapped(system.w, V.mT)}
    if system.w_in is not None:
        new["w_in"] = mapped(system.w_in.movedim(-1, 0), inverse).movedim(0, -1)
    if system.w_out is not None:
        new["w_out"] = mapped(system.w_out, V.mT)
    elif system.q is None:
        require(not system.is_complex, "a complex state that is read as it is has no real read; give the system a q")
        new["q"] = spread_heads(V, system.state_heads, axis=0).to(dtype)
    else:
        q = system.q if system.q.ndim in (2, 4) else system.q.movedim(-2, 0)
        q = mapped(q, V.mT)
        new["q"] = q if system.q.ndim in (2, 4) else q.movedim(0, -2)
    log, phase = values.abs().log(), values.angle()
    real = real_dtype(dtype)
    diagonal = replace(system, transition=None, log_decay=log.to(real), phase=phase.to(real), **new)
    return certify(diagonal, system, f"dense to diagonal: condition of the eigenvectors {worst:.3g}")
