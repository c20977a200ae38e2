"""What a layer is: u -> System, and everything that follows from the System."""

from .base import Layer
from .cell import Cell
from .convolved import Convolved
from .has_system import HasState, HasSystem, has_state, has_system, system_of
from .past import Past
from .short_conv import ShortConv

__all__ = [
    "Cell", "Convolved", "HasState", "HasSystem", "Layer", "Past", "ShortConv", "has_state", "has_system", "system_of",
]  # fmt: skip
