"""What sentences about layers are made of: places in words, answers by question, the layers of a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from ..report import GridRow, dig, units, visible
from ..report.units import MISSING
from ..report.wording import TOKEN, Wording

Answer = dict[str, Any]
"""What answers a question, as plain values."""
Rows = Sequence[Mapping[str, Any]]
"""The layers of a result, each with its `answers`."""

FAINT = 1e-3
"""A head of whose state less than this share of the strongest head's is read does not say how a layer remembers."""


def layers(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the layers of a result."""
    return list(result.get("layers") or [])


def name_of(layer: Mapping[str, Any]) -> str:
    """Write a layer's label, fit to be shown."""
    return visible(str(layer.get("name") or "unnamed"))


def names(result: Mapping[str, Any]) -> list[str]:
    """List the labels of the layers."""
    return [name_of(layer) for layer in layers(result)]


def layer_row(position: int, layer: Mapping[str, Any], *cells: str) -> GridRow:
    """Make the row of a table that is about a layer."""
    return GridRow((name_of(layer), *cells), position)


def has(result: Mapping[str, Any], *keys: str) -> bool:
    """True if some layer has something under these keys."""
    return any(dig(layer, *keys) for layer in layers(result))


def wording(result: Mapping[str, Any]) -> Wording:
    """Give the words for what was read: nothing is changed for the tokens of a text."""
    quoted = [str(layer.get(key) or "") for layer in layers(result) for key in ("name", "kind", "summary", "paper")]
    return Wording(str(dig(result, "data", "unit") or TOKEN), quoted)


def with_source(text: str, result: Mapping[str, Any], joint: str) -> str:
    """Add what was read to a sentence about layers: how much, and of what."""
    told: Mapping[str, Any] = result.get("data") or result.get("text") or {}
    many, source, rate = told.get("steps") or told.get("tokens"), told.get("source"), told.get("rate")
    text += f"{joint}on {units.count(many)} {told.get('unit') or TOKEN}s" if many else ""
    text += f" of {visible(str(source))}" if source else ""
    text += f", {rate:,} a second" if rate else ""
    return text + (f" ({told['mapped']})" if told.get("mapped") else "")


def span(values: Sequence[float | None] | None, write: Callable[[float], str]) -> str:
    """Write least, middle and largest of what the heads have: "3 · 12 · 40", or the one that they share."""
    known = [v for v in values or [] if v is not None]
    if not known:
        return MISSING
    low, middle, high = (write(v) for v in (min(known), median(known), max(known)))
    return low if low == high else f"{low} · {middle} · {high}"


def place(rows: Rows, layer: int, head: int | None = None) -> str:
    """Say where something is: "head 3 of layer 2 (mamba2)"."""
    named = "the layer" if len(rows) == 1 else f"layer {layer} ({rows[layer]['kind']})"
    if head is None or rows[layer]["heads"] == 1:
        return named
    return f"head {head}" if len(rows) == 1 else f"head {head} of {named}"


def answered(rows: Rows, name: str) -> list[tuple[int, Answer]]:
    """List the layers that have an answer to a question."""
    return [(i, row["answers"][name]) for i, row in enumerate(rows) if name in row["answers"]]


def of_heads(rows: Rows, name: str) -> list[tuple[float, int, int]]:
    """List the numbers of all heads, with layer and head."""
    return [(x, i, h) for i, one in answered(rows, name) for h, x in enumerate(one.get("heads") or []) if x is not None]


def share_read(rows: Rows, layer: int, head: int) -> float:
    """Say how much is read from a head's state, over the strongest head's; 1 where it is not known."""
    shares = dict(answered(rows, "stability")).get(layer, {}).get("carried") or []
    return float(shares[head]) if head < len(shares) else 1.0


def count(n: int, what: str) -> str:
    """Write so many of them: "1 token", "3 tokens"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def layers_of(rows: Rows, which: Sequence[int]) -> str:
    """Name layers, in ranges: "layers 0-3 and 7"."""
    if len(rows) == 1:
        return "the layer"
    if len(which) == len(rows):
        return f"all {len(rows)} layers"
    runs: list[list[int]] = []
    for i in which:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    listed = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"layer{'' if len(which) == 1 else 's'} {listed}"


def rounded(x: Tensor) -> list[float]:
    """Round to four digits, enough to draw."""
    return [float(f"{v:.4g}") for v in x.flatten().tolist()]
