"""Stateform: attention, state-space models and recurrent networks as one dynamical system.

The names below are imported when one of them is asked for: the command line can say what there is without torch.
"""

# ruff: noqa: F403, F405 - `public` has the list of where each name is, once

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *

__version__ = "0.1.0"
__all__ = [
    "Analysis", "Bench", "Card", "Cell", "Chain", "Classifier", "Comparison", "Equivalence", "LanguageModel", "Layer",
    "Lift", "LinearRead", "ModelConfig", "ModelReduction", "Newton", "Past", "Report", "RidgeRead", "ShortConv",
    "SoftmaxRead", "Solver", "State", "StateformError", "System", "Trajectory", "Zoo", "accelerate", "analyze",
    "backend", "bench", "build", "check", "compare", "convert", "equivalent", "lift", "names", "open_model", "reduce",
    "register", "run", "show", "stabilise", "undo", "validate", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import all there is, then look again: for names of the list above, and for modules such as `sf.analysis`."""
    if not name.startswith("__"):
        public = importlib.import_module(".public", __name__)
        globals().update({known: getattr(public, known) for known in __all__})
        if name in globals():
            return globals()[name]
        if _former_path(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package some of whose functions have the names of their modules: `sf.check` is the function, whoever was
    imported first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):  # Python puts an imported module here under its name
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        """Pickle as a name: functions of a notebook that use the package are sent to other machines with it."""
        return importlib.import_module, (self.__name__,)


def _former_path(fullname: str, *_: Any) -> Any:
    """Give the spec of a module's former path, None for any other: Python asks for what it finds nowhere else."""
    if not fullname.startswith(f"{__name__}."):
        return None
    return importlib.import_module(".former", __name__).find_spec(fullname)


sys.modules[__name__].__class__ = _Package
sys.meta_path.append(SimpleNamespace(find_spec=_former_path))
