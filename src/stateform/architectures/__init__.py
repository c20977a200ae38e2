"""The architectures: u -> System, one file each, in a folder for each family. A new file in one of them is enough."""

from __future__ import annotations

import importlib
import pkgutil

from ..layer.spec import run_file
from .families import family_of, place
from .registry import REGISTRY, Entry, accepted, build, described, names, register, resolve

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "REGISTRY", "Entry", "accepted", "build", "described", "family_of", "names", "place", "register", "resolve",
    "run_file",
]  # fmt: skip
