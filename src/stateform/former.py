"""Import paths of the first version that stay valid: each gives the names of where they are now."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER = {
    "stateform.bench": "stateform.timing",
    "stateform.definition": "stateform.contract.definition",
    "stateform.experiments": "stateform.train",
    "stateform.experiments.claims": "stateform.sweep.claims",
    "stateform.experiments.plan": "stateform.sweep.plan",
    "stateform.experiments.results": "stateform.sweep.results",
    "stateform.experiments.sweep": "stateform.sweep.run",
    "stateform.forms.predict": "stateform.forms.cost.predict",
    "stateform.hub.adapters": "stateform.hub.families",
    "stateform.hub.adapters.attention": "stateform.hub.families.softmax",
    "stateform.hub.plain": "stateform.hub.formats",
    "stateform.hub.replace": "stateform.hub.replacement",
    "stateform.layers": "stateform.architectures stateform.layer",
    "stateform.questions": "stateform.studies.questions",
}
"""By former path: the module, or modules, that hold its names today."""


def find_spec(fullname: str) -> ModuleSpec | None:
    """Give the spec that imports a module under its former name; None for any other name."""
    loader: Any = Former()  # it has a Loader's methods, though not its base class
    return ModuleSpec(fullname, loader) if fullname in FORMER else None


class Former:
    """Import a module under its former name."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the making of the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        homes = [importlib.import_module(name) for name in FORMER[module.__name__].split()]
        if len(homes) == 1:
            sys.modules[module.__name__] = homes[0]
            return
        for home in homes:
            module.__dict__.update({name: getattr(home, name) for name in home.__all__})
