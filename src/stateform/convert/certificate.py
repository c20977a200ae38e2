"""What a conversion gives back: the new system, and how far its outputs are from those of the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..contract.equivalence import Equivalence, equivalent
from ..errors import require
from ..forms import run
from ..system import System
from ..system.precision import largest, relative_error, tolerance, wide

S = TypeVar("S", System, Tensor)


@dataclass(frozen=True)
class Conversion:
    """A system made from another one (or from numbers), and the certificate, measured on the inputs it holds."""

    system: System
    original: System | Tensor
    exact: bool
    """Equal in exact arithmetic; else an approximation."""
    certificate: Equivalence
    """Outputs of `system` as it runs, from a zero state, against those of the original in float64."""
    errors: tuple[float, ...]
    """The largest difference of each head over its largest output."""
    text: str
    """What was done, with the numbers that matter."""

    @property
    def ok(self) -> bool:
        """True if the difference is within the tolerance."""
        return bool(self.certificate)

    @property
    def error(self) -> float:
        """The largest difference over the largest output."""
        return self.certificate.error

    @property
    def tolerance(self) -> float:
        """The largest error allowed: rounding if the conversion is exact, else what was asked for."""
        return self.certificate.tolerance

    def __str__(self) -> str:
        off = f"relative error {self.error:.2g} (allowed {self.tolerance:.2g})"
        found = f"exact, {self.certificate.text}" if self.exact else f"an approximation, {off}"
        heads = f"; per head {min(self.errors):.1g} to {max(self.errors):.1g}" if len(self.errors) > 1 else ""
        return f"{self.text}: {found}{heads}\n{self.system!r}"


@torch.no_grad()
def certify(system: System, original: System, text: str, *, rtol: float | None = None) -> Conversion:
    """Measure how far `system` is from `original`: by rounding if the conversion is exact, else by at most `rtol`."""
    want, got = reference(original), outputs(system)
    allowed = tolerance(system.dtype, system.T) if rtol is None else rtol
    return Conversion(system, original, rtol is None, equivalent(got, want, rtol=allowed), per_head(got, want), text)


def outputs(system: System) -> Tensor:
    """Compute y of a system as it is."""
    y = run(system)
    return y


def reference(system: System) -> Tensor:
    """Compute y in float64, token by token (all at once where there is no causal order)."""
    y = run(system.to(torch.float64), "recurrent" if system.causal else "matrix")
    return y


def per_head(got: Tensor, want: Tensor) -> tuple[float, ...]:
    """Compute the relative error of each head, axis 2."""
    if got.numel() == 0:
        return (0.0,) * got.shape[2]
    error = relative_error(wide(got), wide(want), heads=True)
    return tuple(largest(head) for head in error.unbind(2))


def check_system(system: System, what: str) -> None:
    """Raise unless a System was given."""
    require(isinstance(system, System),
            f"{what} takes a System, e.g. layer.system(x); got a {type(system).__name__}")  # fmt: skip
