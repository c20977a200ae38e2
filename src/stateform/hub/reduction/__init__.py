"""Reducing a model to as little state as an error allows, and measuring what that costs on a text."""

from .model import check_settings, reduce
from .result import ModelReduction, ReducedLayer

__all__ = ["ModelReduction", "ReducedLayer", "check_settings", "reduce"]
