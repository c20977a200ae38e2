"""Rivals from the package transformers: each module as it runs without further kernels, with our layer's weights."""

from __future__ import annotations

import itertools
from typing import Any

from ...hub.twin import Twin
from .party import Inputs, Party, Run


def party(twin: type[Twin], layer: Any, **settings: Any) -> Party:
    """Make a party of a twin of our layer."""
    made = twin(layer, **settings)

    def begin(prompt: Inputs, tokens: int) -> Run:
        (x,) = prompt
        cache, at = made.begin(x), itertools.count(tokens)
        made.call(x, cache)
        made.fill(cache, tokens)
        return lambda x: made.call(x, cache, next(at))

    return Party(made.call, made.module, begin)
