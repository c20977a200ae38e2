"""Models in single files that other programs write, one format a module. Weights are read; no code of a file is run.

| file | recognised by | opened as |
| --- | --- | --- |
| llama2.c, version 0 (`.bin`) | seven sizes that add up to the file's | `LanguageModel`, softmax |
| RWKV-7 (`.pth`) | a zip archive of PyTorch with these names | `RWKV` |
| rwkv.cpp (`.bin`), 4, 5 and 7, not quantised | its magic number | `RWKV` |
"""

import importlib
import pkgutil

from .llama2c import Words, read_words
from .open import open_file
from .rwkv import RWKV

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["RWKV", "Words", "open_file", "read_words"]
