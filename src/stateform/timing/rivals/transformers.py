"""Rivals from the package transformers: modules with our layer's weights, run without optional kernels."""

from __future__ import annotations

import itertools
from typing import Any

from ...hub.twin import Twin
from .party import Inputs, Party, Run


def party(twin: type[Twin], layer: Any, **settings: Any) -> Party:
    """Make a party of the module of transformers that is our layer's twin."""
    made = twin(layer, **settings)

    def begin(prompt: Inputs, tokens: int) -> Run:
        (x,) = prompt
        cache, at = made.begin(x), itertools.count(tokens)
        made.call(x, cache)
        made.fill(cache, tokens)
        return lambda x: made.call(x, cache, next(at))

    return Party(made.call, made.module, begin)
