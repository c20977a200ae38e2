"""How well posed the equations of a ridge readout are, and how well they were solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import StateformError, require
from ...forms import FORMS, choose
from ...forms.ridge import bound, plus, problem, queries
from ...system import System
from ...system.core import fold
from ...system.readout import RidgeRead
from ...system.shapes import indices


@dataclass(frozen=True)
class Condition:
    """The equations (G_t + R_t) x_t = q_t of a ridge readout at some tokens."""

    numbers: Tensor
    """Condition numbers of G_t + R_t, largest over least eigenvalue, [B,tokens,H]."""
    bound: Tensor
    """What is known of them without eigenvalues: (||G_t||_F + max R_t) / min R_t, [B,tokens,H]."""
    residual: Tensor
    """||q_t - (G_t + R_t) x_t|| / ||q_t|| of the x that the system's solver found, [B,tokens,H]."""
    tokens: list[int]

    @property
    def worst(self) -> float:
        """The largest condition number: digits lost are its logarithm."""
        return float(self.numbers.max())

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "condition": self.worst, "bound": float(self.bound.max()), "residual": float(self.residual.max()),
            "tokens": list(self.tokens),
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"condition number of G + R up to {self.worst:.3g} over {len(self.tokens)} tokens (at most "
            f"{float(self.bound.max()):.3g} by the norms); equations left unsolved by {float(self.residual.max()):.2g}"
        )


@torch.no_grad()
def condition(system: System, tokens: Sequence[int] | None = None) -> Condition:
    """Compute the condition numbers of a ridge readout, from a zero state.

    Args:
        system: with readout "ridge".
        tokens: indices into time (default: up to 32 spread evenly).

    Raises:
        StateformError: for another readout, or no tokens.
    """
    read = system.readout
    if not isinstance(read, RidgeRead):
        raise StateformError(f"the readout is '{read}': only \"ridge\" solves equations")
    require(system.B * system.T > 0, "an empty sequence has no equations")
    spread = sorted({int(t) for t in torch.linspace(0, system.T - 1, 32)})
    index = spread if tokens is None else indices(tokens, system.T, "tokens")
    core, form = fold(system), choose(system)
    S = core.zero_state()
    G, R = problem(system, core, S, FORMS[form])
    x = queries(G, R, core.q, read.solver)
    q = core.q.expand_as(x)
    left = (q - G.product(x) - R * x).norm(dim=-1) / q.norm(dim=-1).clamp_min(torch.finfo(q.dtype).tiny)

    def chosen(values: Tensor) -> Tensor:  # [B|1,T|1,G|1,R|1] to [B,tokens,H]
        return values.expand(core.batch, core.length, *core.heads).flatten(2)[:, index]

    numbers = [_numbers(here.G, R if R.shape[1] == 1 else R[:, at]) for at, here in G.written()]
    return Condition(chosen(torch.cat(numbers, 1)), chosen(bound(G, R).squeeze((-2, -1))), chosen(left.amax(-1)), index)


def _numbers(G: Tensor, R: Tensor) -> Tensor:
    M = plus(G, R)
    values = torch.linalg.eigvalsh((M + M.mT) / 2)
    return values[..., -1] / values[..., 0]
