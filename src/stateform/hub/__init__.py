"""Pretrained models of other packages: open them, prove what they compute, check them, run them faster, reduce them.

The package transformers is imported when it is used first; it comes with the extra `[hub]`.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..former import FORMER
from .accelerate import Acceleration, accelerate, undo
from .lift import Certificate, Lift, lift
from .lifted import FAMILIES, Lifted, adapts
from .load import Opened, open_model
from .namings import NAMINGS, read_layer
from .reduction import ModelReduction, reduce
from .replacement import Replacement, softmax_to_state
from .runs import TextScore, perplexity

__all__ = [
    "FAMILIES", "NAMINGS", "Acceleration", "Certificate", "Lift", "Lifted", "ModelReduction", "Opened", "Replacement",
    "Score", "TextScore", "accelerate", "adapts", "lift", "open_model", "perplexity", "read_layer", "reduce",
    "softmax_to_state", "undo",
]  # fmt: skip

Score = TextScore
"""The former name of `TextScore`."""


def __getattr__(name: str) -> Any:
    """Import a module of this package by its former name, with those in it: `hub.plain`."""
    inside = f"{__name__}.{name}"
    for known in FORMER:
        if f"{known}.".startswith(f"{inside}."):
            importlib.import_module(known)
    if inside in FORMER:
        return importlib.import_module(inside)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
