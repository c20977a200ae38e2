"""The architectures: u -> System, one file a family. A new file in this folder is enough."""

from __future__ import annotations

import importlib
import pkgutil

from ..layer.spec import run_file
from .registry import REGISTRY, Entry, accepted, build, names, register, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "Entry", "accepted", "build", "names", "register", "resolve", "run_file"]
