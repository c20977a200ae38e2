"""What a sequence model is: the System, its parts, its normal form, its state."""

from .readout import LinearRead, Readout, RidgeRead, SoftmaxRead, Solver
from .state import State
from .system import System

__all__ = ["LinearRead", "Readout", "RidgeRead", "SoftmaxRead", "Solver", "State", "System"]
