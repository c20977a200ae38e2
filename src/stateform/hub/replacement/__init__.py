"""Softmax heads replaced by systems with a finite state."""

from .experiment import METHODS, softmax_to_state
from .fit import Fitted, fit
from .result import Replacement, Substitute

__all__ = ["METHODS", "Fitted", "Replacement", "Substitute", "fit", "softmax_to_state"]
