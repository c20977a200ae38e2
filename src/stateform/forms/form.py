"""What a form is, and the table of those that exist. Forms add themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ..system.core import Core

if TYPE_CHECKING:
    from ..system import System


class Form(Protocol):
    """One way to compute a System."""

    name: str

    def refuses(self, system: System) -> str | None:
        """Why the form does not exist for this system, or None."""

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        """For readout "linear": the reads [B,T,G,R,o,p] and the final state, from the state S [B,G,R,n,p]."""


class Weights(Protocol):
    """alpha of a system, [B,H,o,queries,T*micro]."""

    def __call__(self, system: System, queries: Sequence[int] | None) -> Tensor: ...


FORMS: dict[str, Form] = {}
WEIGHTS: dict[str, Weights] = {}
"""By readout: how its coefficients are computed."""


def register_form(form: Form) -> Form:
    """Add a form to the table."""
    FORMS[form.name] = form
    return form
