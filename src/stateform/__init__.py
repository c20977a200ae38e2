"""Stateform: attention, state-space models and recurrent networks as one dynamical system."""

from . import convert
from ._errors import StateformError, validate
from ._solver import Solver
from .analyze import Analysis, analyze
from .bench import Bench, bench
from .card import Card, show
from .check import Report, check
from .compare import Comparison, compare
from .equivalence import Equivalence, equivalent
from .forms import backend, run
from .forms.newton import Newton, Trajectory
from .hub import Lift, ModelReduction, accelerate, lift, open_model, reduce, undo
from .layers import Cell, Layer, Past, ShortConv, build, names, register
from .models import Classifier, LanguageModel, ModelConfig
from .state import State
from .system import System, stabilise
from .zoo import Zoo, zoo

__version__ = "0.1.0"
__all__ = [
    "Analysis", "Bench", "Card", "Cell", "Classifier", "Comparison", "Equivalence", "LanguageModel", "Layer", "Lift",
    "ModelConfig", "ModelReduction", "Newton", "Past", "Report", "ShortConv", "Solver", "State", "StateformError",
    "System", "Trajectory", "Zoo", "accelerate", "analyze", "backend", "bench", "build", "check", "compare",
    "convert", "equivalent", "lift", "names", "open_model", "reduce", "register", "run", "show", "stabilise", "undo",
    "validate", "zoo",
]  # fmt: skip
