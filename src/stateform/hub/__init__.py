"""Pretrained models of other packages: open them, prove what they compute, check them, run them faster, reduce them.

The package transformers is imported when it is used first; it comes with the extra `[hub]`.
"""

from .accelerate import Acceleration, accelerate, undo
from .lift import Certificate, Lift, lift
from .lifted import FAMILIES, Lifted, adapts
from .load import Opened, open_model
from .reduce import ModelReduction, reduce
from .replace import Replacement, softmax_to_state
from .runs import Score, perplexity

__all__ = [
    "FAMILIES", "Acceleration", "Certificate", "Lift", "Lifted", "ModelReduction", "Opened", "Replacement", "Score",
    "accelerate", "adapts", "lift", "open_model", "perplexity", "reduce", "softmax_to_state", "undo",
]  # fmt: skip
