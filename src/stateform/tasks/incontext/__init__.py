"""In-context learning: linear regression, regular languages, cellular automata; each example has a rule of its own."""

from .cellular_automaton import CellularAutomaton
from .icl_regression import ICLRegression
from .icl_regular import ICLRegular

__all__ = ["CellularAutomaton", "ICLRegression", "ICLRegular"]
