"""The families of architectures: a folder each, whose docstring begins with the family's title."""

from __future__ import annotations

import inspect
import sys

from torch import nn

from .registry import REGISTRY

ORDER = ("attention", "gated", "rwkv", "delta", "learning", "ssm", "dense", "rnn", "nonlinear")
"""The families as they are listed; one that is not here comes after them."""
YOURS = "yours", "Yours"
"""The family of layers that are not in a folder here."""


def family_of(cls: type[nn.Module]) -> tuple[str, str]:
    """Find the family of a layer, in a word, and its title."""
    package = cls.__module__.rpartition(".")[0]
    above, _, word = package.rpartition(".")
    if above != __package__:
        return YOURS
    return word, inspect.cleandoc(sys.modules[package].__doc__ or word).split("\n")[0].rstrip(".")


def place(cls: type[nn.Module]) -> tuple[int, str, str]:
    """Say where a layer is listed: by family, then by the date that the number of its paper holds (others first)."""
    family = family_of(cls)
    if family == YOURS:
        return len(ORDER) + 1, "", ""
    entry = next((entry for entry in REGISTRY.values() if entry.cls is cls), None)
    number = entry.paper.removeprefix("arXiv ") if entry and entry.paper.startswith("arXiv ") else ""
    return (ORDER.index(family[0]) if family[0] in ORDER else len(ORDER)), family[0], number
