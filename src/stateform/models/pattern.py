"""Patterns: "mamba2*3 softmax" is mamba2, mamba2, mamba2, softmax; a deeper model begins again from the start."""

from __future__ import annotations

import itertools
import re

from ..architectures import resolve
from ..errors import StateformError, require
from ..layer.spec import names_file, was_run

_BRACKETS = r"""\((?:[^()'"]|'[^']*'|"[^"]*"|\([^()]*\))*\)"""
_ITEM = re.compile(rf"\s*(?P<spec>(?P<name>[^\s()*]+)(?:{_BRACKETS})?)(?:\s*\*\s*(?P<times>[^\s*]+))?(?=\s|$)")
_HINT = 'expected names of layers, each with options in brackets and *count if you like: "mamba2(d_state=32)*3 softmax"'

MOST_LAYERS = 10_000
"""A pattern of more is taken for a slip: it is ten times as deep as any model that was trained."""


def named_in(pattern: str) -> list[str]:
    """List the names in a pattern, without options and counts."""
    return [item["name"] for item in _ITEM.finditer(pattern)]


def expand(pattern: str, n_layers: int | None = None) -> list[str]:
    """List the layers that a pattern names, first to last.

    Args:
        pattern: registered names, separated by spaces, each with options in brackets (`mamba2(d_state=32)`) and a count
            (`mamba2*3`) if you like; or `path/file.py:Class`, once that file was run (a configuration runs nothing).
        n_layers: how many; the pattern is cycled, and its last round may be cut short. Default: one round.

    Returns:
        Specifications for `sf.build`, n_layers of them.

    Raises:
        StateformError: an empty pattern, one that cannot be read, a count that is no whole number above 0, a name that
            is not registered (with the nearest), options that cannot be read.
    """
    require(isinstance(pattern, str), f"the pattern is a {type(pattern).__name__}; {_HINT}")
    require(pattern.strip(), f"the pattern is empty; {_HINT}")
    specs: list[str] = []
    at = 0
    while pattern[at:].strip():
        item = _ITEM.match(pattern, at)
        if item is None:
            raise StateformError(f"cannot read {pattern[at:].strip()!r} in the pattern {pattern!r}; {_HINT}")
        spec, name, times = item["spec"], item["name"], item["times"]
        require(
            re.fullmatch(r"[\w-]+", name) or (names_file(name) and was_run(name)),
            f"the pattern {pattern!r} names {name!r}; expected a registered layer: import the file that defines "
            'it, and give the name in its @sf.register("..."), or run it first with sf.build("path/file.py:Class")',
        )
        require(
            times is None or (re.fullmatch("[0-9]+", times) and times.strip("0")),
            f"{spec}*{times} in the pattern {pattern!r}: expected a whole number of layers, 1 or more, after *",
        )
        digits = (times or "1").lstrip("0")
        deep = len(digits) > len(str(MOST_LAYERS)) or len(specs) + int(digits) > MOST_LAYERS
        require(not deep, f"{spec}*{digits} in the pattern: expected {MOST_LAYERS:,} layers at most in a model")
        resolve(spec)
        specs += [spec] * int(digits)
        at = item.end()
    require(n_layers is None or n_layers <= MOST_LAYERS, f"n_layers is {n_layers}; expected {MOST_LAYERS:,} at most")
    return specs if n_layers is None else list(itertools.islice(itertools.cycle(specs), n_layers))
