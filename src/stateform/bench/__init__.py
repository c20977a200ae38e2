"""Our layers beside what one would take instead: the same weights, one process, in turns.

A `Pair` is a layer and its rivals. A rival is made from our layer's weights, and is timed only after its outputs, its
steps and its gradients were found to be those of our layer. `bench` times them.
"""

from .pair import MODES, Pair, Rival
from .party import Party
from .run import Bench, bench
from .table import PAIRS

__all__ = ["MODES", "PAIRS", "Bench", "Pair", "Party", "Rival", "bench"]
