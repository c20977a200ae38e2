"""Stateform: attention, state-space models and recurrent networks as one dynamical system."""

from ._errors import StateformError, validate
from .forms import forms, run
from .state import State
from .system import System, stabilise

__version__ = "0.1.0"
__all__ = ["State", "StateformError", "System", "forms", "run", "stabilise", "validate"]
