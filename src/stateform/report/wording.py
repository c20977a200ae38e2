"""Wording: what a report says of the tokens of a text, said of the steps of a series or the samples of a recording."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from .figure import Panel, drawing

T = TypeVar("T")

TOKEN = "token"
WHOLES = {TOKEN: "text", "step": "series", "sample": "recording"}
"""What follows one another, and what it is a part of."""
_PROSE = ("text", "customdata", "hovertemplate", "name", "over", "ticktext")
"""Where a drawing has words; elsewhere it has plotly's own, "text" among them."""


class Wording:
    """Puts other nouns into what is told: `wording(thing)` is a text, a table, a figure, ... in these words.

    Args:
        unit: one of `WHOLES`; "token" changes nothing.
        kept: names and quotations, which stay as they are.
    """

    def __init__(self, unit: str, kept: Iterable[str] = ()) -> None:
        self.unit = unit
        stay = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(set(kept), key=len, reverse=True) if name]
        self._nouns = re.compile("|".join([r"%\{[^}]*\}", *stay, r"\b([Tt])(oken|okens|ext)\b"]))

    def __call__(self, thing: T) -> T:
        """Give the same, with the nouns changed in every text in it."""
        return thing if self.unit == TOKEN else self._told(thing)

    def _told(self, thing: Any) -> Any:
        if isinstance(thing, str):
            return self._nouns.sub(self._noun, thing)
        if isinstance(thing, list | tuple):
            return type(thing)(map(self._told, thing))
        if isinstance(thing, Mapping):
            return {key: self._told(value) for key, value in thing.items()}
        if isinstance(thing, Panel):
            body = self._drawn(thing.figure.to_plotly_json())
            return replace(
                thing, figure=drawing(body["data"], **_without_template(body)), title=self._told(thing.title)
            )
        if is_dataclass(thing) and not isinstance(thing, type):
            return replace(
                thing, **{f.name: self._told(getattr(thing, f.name)) for f in fields(thing) if f.name != "key"}
            )
        return thing

    def _drawn(self, value: Any, prose: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: self._drawn(item, key in _PROSE) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._drawn(item, prose) for item in value]
        return self._told(value) if prose and isinstance(value, str) else value

    def _noun(self, found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        noun = WHOLES[self.unit] if found[2] == "ext" else self.unit + "s" * (found[2] == "okens")
        return noun.capitalize() if found[1] == "T" else noun


def _without_template(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body["layout"].items() if key != "template"}
