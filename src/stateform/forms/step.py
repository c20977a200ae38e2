"""One token of a system by one call of the compiled loops: for decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..loops.backend import compiled_for
from ..loops.ops import alone
from ..loops.token import PARTS, TokenPlan
from ..system import System


def token(system: System, S: Tensor | None) -> tuple[Tensor, Tensor, bool] | None:
    """Compute y and the next state of a system of one token, and whether a decay exceeds 1 (or is not a number).

    None where the loops cannot, or where more than numbers is wanted (gradients, a graph).
    """
    shared = system.shared
    if "token" not in shared:
        shared["token"] = _plan(system)
    plan: TokenPlan | None = shared["token"]
    if plan is None or S is None or S.shape != plan.state or S.dtype != system.k.dtype or not S.is_contiguous():
        return None
    parts = tuple(system.parts.values())
    return plan(parts, S) if compiled_for(S) and alone((S, *parts)) else None


def _plan(system: System) -> TokenPlan | None:
    """Plan how to compute one token of real numbers from S and these parts as they are, where there is such a way."""
    parts, dtype = system.parts, system.k.dtype
    plain = (
        system.readout.linear and system.eta is None and system.micro == system.T == 1 and system.B > 0
        and dtype in (torch.float32, torch.float64) and system.state_heads == system.H
        and {"q", "k", "v"} <= parts.keys() <= PARTS and system.layouts["q"] in ("BtHn", "Hn")
        and all(x.dtype == dtype for x in parts.values())
    )  # fmt: skip
    if not plain:
        return None
    shapes = {name: x.shape for name, x in parts.items()}
    return TokenPlan(system.layouts, shapes, (system.B, system.H, system.n, system.p), system.exclusive)
