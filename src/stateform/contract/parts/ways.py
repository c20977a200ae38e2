"""Models name what they need in different ways: the first way that agrees with each text alone counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..law import Layout
from ..listening import Heard
from ..model import ModelRunner
from ..refusals import first_line, raised


@dataclass
class Tried:
    """What came of the ways to compute one layout, in their order."""

    found: dict[str, Heard] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)
    agrees: str = ""
    """The first way that agrees, the last that was tried; "": none does."""
    refusal: str = ""
    """What the model itself says of a layout that it does not take."""


def first_that_agrees(
    b: ModelRunner, x: Tensor, layout: Layout, want: Heard, ways: Mapping[str, dict[str, Any]], *,
    refuses: str = "", **how: Any,
) -> Tried:  # fmt: skip
    """Try ways to compute a layout until one agrees with each text alone.

    Args:
        ways: what the model is given in each, by its name.
        refuses: a word that an error holds by which the model says that it does not take such a layout.
        how: for all of them, as for `ModelRunner.run`.
    """
    tried = Tried()
    for way, more in ways.items():
        try:
            got = b.run(x, layout, **how, **more)
        except Exception as error:  # whatever a model raises is what a user meets
            tried.raised[way] = raised(error)
            says_so = isinstance(error, ValueError | NotImplementedError) and refuses and refuses in str(error)
            if says_so:
                tried.refusal = first_line(error)
                return tried
            continue
        tried.found[way] = got
        if b.agree(got, want):
            tried.agrees = way
            return tried
    return tried
