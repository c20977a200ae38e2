"""Functions of a System: its coefficients, spectrum and memory on real input, its cost, and what it can express."""

from .coefficients import has_weights, influence
from .condition import Condition, condition
from .cost import Cost, cost
from .equations import equations, realisation
from .expressivity import Expressivity, Reach, Verdict, expressivity, reach
from .memory import Horizon, horizon
from .peak import peak_bytes
from .spectrum import Spectrum, spectrum
from .structure import constant_transition, contraction, describe, describe_read, token_steps, token_transitions

__all__ = [
    "Condition", "Cost", "Expressivity", "Horizon", "Reach", "Spectrum", "Verdict", "condition",
    "constant_transition", "contraction", "cost", "describe", "describe_read", "equations", "expressivity",
    "has_weights", "horizon", "influence", "peak_bytes", "reach", "realisation", "spectrum", "token_steps",
    "token_transitions",
]  # fmt: skip
