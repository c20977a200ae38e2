"""What is asked of a layer of whatever class: its System, and to go on from a state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..system import System
from ..system.state import State
from .past import Past

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class HasSystem(Protocol):
    """A module that says what its System is."""

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """Give the System of the input u [B,T,d_model]."""


class HasState(HasSystem, Protocol):
    """A module with a System that goes on from a state, as `Layer` does."""

    def init_state(self, batch: int = 1) -> State:
        """Make the state before anything was seen."""

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Take one token."""


def has_system(module: object) -> TypeIs[HasSystem]:
    """True if a module says what its System is."""
    return callable(getattr(module, "system", None))


def has_state(module: object) -> TypeIs[HasState]:
    """True if a module says what its System is, and goes on from a state."""
    return has_system(module) and all(hasattr(module, name) for name in ("init_state", "step"))


def system_of(module: Any, u: Tensor) -> System:
    """Ask a module for the System of the input u [B,T,d_model]."""
    assert has_system(module), f"{type(module).__name__} has no method system(u)"
    return module.system(u)
