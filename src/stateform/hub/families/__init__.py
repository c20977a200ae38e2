"""The foreign families, one a file: classes, types of models, weights, caches, Systems. A new file here is enough.

A file names its classes with `adapts`, and defines as a `Lifted` what they compute. Files are imported in the order of
their names: `softmax` is late, so that a hybrid's own mixers are listed before its attention.
"""

import importlib
import pkgutil

from ..lifted import FAMILIES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
for _kind in sorted(FAMILIES):
    FAMILIES[_kind] = FAMILIES.pop(_kind)

__all__: list[str] = []
