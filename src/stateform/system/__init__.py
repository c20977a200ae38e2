"""What a sequence model is: the System, its parts, its normal form, its state."""

from .state import State
from .system import System, stabilise

__all__ = ["State", "System", "stabilise"]
