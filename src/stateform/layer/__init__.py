"""What a layer is: u -> System, and everything that follows from the System."""

from .base import Layer, Past, ShortConv
from .cell import Cell
from .convolved import Convolved

__all__ = ["Cell", "Convolved", "Layer", "Past", "ShortConv"]
