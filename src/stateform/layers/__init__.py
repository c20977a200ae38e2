"""Layers: u -> System, one file a family. Every module of this package is imported, so a new file is enough."""

from __future__ import annotations

import importlib
import pkgutil

from .._spec import run_file
from .base import Layer, Past, ShortConv
from .cell import Cell
from .convolved import Convolved
from .registry import REGISTRY, Entry, accepted, build, names, register, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "REGISTRY",
    "Cell",
    "Convolved",
    "Entry",
    "Layer",
    "Past",
    "ShortConv",
    "accepted",
    "build",
    "names",
    "register",
    "resolve",
    "run_file",
]
