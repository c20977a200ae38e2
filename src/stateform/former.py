"""Import paths of the first version that stay valid: each gives the module that has its names now."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FORMER = {
    "stateform.bench": "stateform.timing",
    "stateform.experiments": "stateform.train",
    "stateform.experiments.claims": "stateform.sweep.claims",
    "stateform.experiments.plan": "stateform.sweep.plan",
    "stateform.experiments.results": "stateform.sweep.results",
    "stateform.experiments.sweep": "stateform.sweep.run",
    "stateform.hub.adapters": "stateform.hub.families",
    "stateform.hub.adapters.attention": "stateform.hub.families.softmax",
    "stateform.layers": "stateform.architectures",
    "stateform.questions": "stateform.studies.questions",
}
"""Where the names of each are today."""


class Former(MetaPathFinder, Loader):
    """Import a module under its former name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(FORMER[module.__name__])
