"""Weights of single mixers under the names that other libraries give them, one library a file.

    layer = read_layer(weights, "mamba_ssm.mamba2", prefix="backbone.layers.0.mixer.")

`weights` is a state_dict, of a mixer or of a whole model (then `prefix` says which of its layers is meant). The result
is one of our layers, which computes the same function.
"""

import importlib
import pkgutil

from .naming import NAMINGS, read_layer

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NAMINGS", "read_layer"]
