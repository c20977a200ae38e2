"""Words for reports: values out of nested dicts, texts fit to be shown, lists in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .units import MISSING


def dig(tree: Any, *keys: str) -> Any:
    """Look under `keys` in nested dicts; None where a level is missing or None."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def visible(text: str) -> str:
    """Escape everything in `text` that does not print (control characters, lone surrogates)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def text_of(value: Any) -> str:
    """Write a value so that it prints; a dash if it is None or empty."""
    return visible(str(value)) if value not in (None, "") else MISSING


def thinned(values: Sequence[int], most: int) -> list[int]:
    """Keep at most `most` of `values`: the first, the last and even steps between."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def listing(items: Sequence[str]) -> str:
    """List items as people do: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capitalised(sentence: str) -> str:
    """Write a sentence with a capital letter first."""
    return sentence[:1].upper() + sentence[1:]
