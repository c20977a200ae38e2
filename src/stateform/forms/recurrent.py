"""The recurrence itself, one step after the other: the definition, the oracle, and the form for decoding.

On a CPU the same steps run as compiled loops where there are any for the system (see `backend`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import any_length
from ..system import System
from ..system.core import Core, contract
from . import compiled
from .form import register_form
from .opaque import opaque


class Recurrent:
    """T steps, memory of one state."""

    name, letter, order = "recurrent", "r", 10
    forward, of_systems = True, True

    def refuses(self, system: System) -> str | None:
        if not system.causal:
            return "a non-causal system has no state; use the form matrix"
        return None

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        if compiled.worthwhile(core) and compiled.usable(core):
            return compiled.compute(core, S)
        if any_length(core.length):
            return opaque(self.name, core, S)
        y, turn = [], core.turn()
        for t in range(core.length):
            step = core.slice(t, t + 1)
            before = S.unsqueeze(1)
            after = step.transition(turn).apply(before) + step.k.unsqueeze(-1) * step.v.unsqueeze(-2)
            S = after.squeeze(1)
            y.append(contract("...on,...np->...op", step.q, before if core.exclusive else after))
        return torch.cat(y, 1), S


register_form(Recurrent())
