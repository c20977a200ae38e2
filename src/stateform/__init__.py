"""Stateform: attention, state-space models and recurrent networks as one dynamical system."""

from ._errors import StateformError, validate
from .check import Report, check
from .compare import Comparison, compare
from .equivalence import Equivalence, equivalent
from .forms import run
from .layers import Layer, Past, ShortConv, build, names, register
from .state import State
from .system import System, stabilise

__version__ = "0.1.0"
__all__ = [
    "Comparison", "Equivalence", "Layer", "Past", "Report", "ShortConv", "State", "StateformError", "System", "build",
    "check", "compare", "equivalent", "names", "register", "run", "stabilise", "validate",
]  # fmt: skip
