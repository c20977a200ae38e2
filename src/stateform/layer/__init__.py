"""What a layer is: u -> System, and everything that follows from the System."""

from .base import Layer
from .cell import Cell
from .convolved import Convolved
from .past import Past
from .short_conv import ShortConv

__all__ = ["Cell", "Convolved", "Layer", "Past", "ShortConv"]
