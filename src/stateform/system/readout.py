"""Solver: which method solves the equations of a ridge readout, and how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import require


@dataclass(frozen=True)
class Solver:
    """How (G_t + R_t) x_t = q_t is solved.

    Args:
        method: "exact" (Cholesky), "cg" (conjugate gradients from q / diag(G + R)) or "chebyshev" (between the least
            R_t and ||G_t||_F + the largest R_t, which hold all eigenvalues; from their mean).
        steps: of an iterative method; the published layers take 30. None takes as many as the precision of the state
            asks for: for chebyshev they follow from the condition number, cg goes on until its residual says so.

    Gradients are those of the exact solution, whatever the method.
    """

    method: Literal["exact", "cg", "chebyshev"] = "exact"
    steps: int | None = None

    def __post_init__(self) -> None:
        known = self.method in ("exact", "cg", "chebyshev")
        require(known, f"the solver's method is {self.method!r}; expected 'exact', 'cg' or 'chebyshev'")
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 0
        require(self.steps is None or whole, f"the solver's steps are {self.steps!r}; expected 0 or more, or None")
        require(self.steps is None or self.method != "exact",
                f"the exact solver has no steps, {self.steps} are given; expected None, or method 'cg'")  # fmt: skip
