"""The foreign families, one a file: classes, types of models, weights, caches, Systems. A new file here is enough.

A file says with `adapts` what it is of, and as a `Lifted` what its mixers compute. Files are read in the order of their
names: `softmax` is late, so that a hybrid's own mixers are named before the attention that it has besides.
"""

import importlib
import pkgutil

from ..lifted import FAMILIES

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
for _kind in sorted(FAMILIES):
    FAMILIES[_kind] = FAMILIES.pop(_kind)

__all__: list[str] = []
