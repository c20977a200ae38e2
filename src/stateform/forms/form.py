"""What a form is, and what computes a readout in every form: two protocols, and the tables of this room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from ..errors import StateformError, nearest
from ..system import State, System
from ..system.core import Core
from ..system.readout import Readout


class Form(Protocol):
    """One way to compute the recurrence of a Core."""

    name: str
    letter: str
    """Its own, for columns that are narrow."""
    order: int
    """Its place where forms are told, the least first."""
    forward: bool
    """True if it goes forward in time, so that a long input may be computed stretch by stretch."""
    of_systems: bool
    """False if it is for nonlinear cells alone."""

    def refuses(self, system: System) -> str | None:
        """Say why the form does not exist for this system, or None."""

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the reads [B,T,G,R,o,p] and the final state, from the state S [B,G,R,n,p]."""


class Reads(Protocol):
    """How the systems of one readout are computed, in all forms that it has."""

    def compute(self, system: System, form: Form, state: State | None) -> tuple[Tensor, State]:
        """Compute y and the state after the last token; a system of one row and one token at least."""

    def weights(self, system: System, queries: Sequence[int] | None) -> Tensor:
        """Compute alpha [B,H,o,queries,T*micro], from a zero state."""

    def blank_state(self, system: System, rows: int) -> dict[str, Tensor]:
        """Make the state before anything was seen, but for its position."""

    def nothing(self, system: System) -> Tensor:
        """Make y of no rows or no tokens."""

    def check_state(self, system: System, given: State) -> None:
        """Raise unless a state, whose names are there, fits the system."""

    def state_names(self, system: System) -> list[str]:
        """List the tensors that its state must have."""

    def work(self, system: System, form: str, chunk_size: int) -> tuple[float, float]:
        """Count floating-point operations and bytes of working memory: the leading terms, for all rows and heads."""


FORMS: dict[str, Form] = {}
"""The forms by name."""
READS: dict[type[Readout], Reads] = {}


def register_form(form: Form) -> Form:
    """Add a form to the table."""
    FORMS[form.name] = form
    for name in sorted(FORMS):  # whichever file was imported first
        FORMS[name] = FORMS.pop(name)
    return form


def chunkwise_or_recurrent(system: System) -> Form:
    """Take the form chunkwise, or recurrent where that does not exist: what needs no more memory than a chunk."""
    return FORMS["chunkwise" if FORMS["chunkwise"].refuses(system) is None else "recurrent"]


def in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of forms as they are told; what is no form of ours comes last."""
    return sorted(names, key=lambda name: (0, FORMS[name].order, name) if name in FORMS else (1, 0, name))


def register_reads(readout: type[Readout], reads: Reads) -> None:
    """Say what computes a readout."""
    READS[readout] = reads


def reads_of(system: System) -> Reads:
    """Find what computes the readout of a system."""
    return READS[type(system.readout)]


def exists(system: System) -> list[str]:
    """List the names of the forms that exist for a system."""
    return [name for name, reason in system.forms().items() if reason is None]


def known_form(form: str) -> None:
    """Raise unless there is a form of that name."""
    if not isinstance(form, str) or (form != "auto" and form not in FORMS):
        raise StateformError(f"unknown form {form!r}: {nearest(str(form), FORMS)} (or auto)")
