"""Our layers timed beside what one would use instead: the same weights, one process, in turns.

A `Pair` is a layer and its rivals. A rival is made from our layer's weights. It is timed only after its outputs, steps
and gradients were found equal to those of our layer. `bench` times pairs, `bench_model` a pretrained model.
"""

from .model import MODEL_MODES, ModelBench, bench_model
from .pair import MODES, Pair, Rival
from .rivals.party import Party
from .run import Bench, bench
from .table import PAIRS

__all__ = [
    "MODEL_MODES", "MODES", "PAIRS", "Bench", "ModelBench", "Pair", "Party", "Rival", "bench", "bench_model",
]  # fmt: skip
