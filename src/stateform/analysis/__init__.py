"""Functions of a System: what its coefficients, spectrum and memory are on real input, what it costs."""

from .coefficients import has_weights, influence
from .cost import Cost, cost
from .memory import Horizon, horizon
from .peak import peak_bytes
from .spectrum import Spectrum, spectrum

__all__ = ["Cost", "Horizon", "Spectrum", "cost", "has_weights", "horizon", "influence", "peak_bytes", "spectrum"]
