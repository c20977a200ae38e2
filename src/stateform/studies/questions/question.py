"""What a question is, and what the questions share: the layer that is asked, a finding, and places in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...analysis import Horizon, Spectrum, horizon, spectrum
from ...system import System

SHOWN = 64
"""Tokens of the maps of effective attention, and on which transitions are written out."""

FAINT = 1e-3
"""A head of whose state less than this share of the strongest head's is read does not say how a layer remembers."""


class Site:
    """One layer of what is analysed, on its own input.

    Args:
        name: of the layer, as the reader sees it.
        layer: with `system(u)`.
        system: of the layer on its input.
        tokens: of the text, as they are shown.
        layers: how many are analysed, which share the room for drawings.
    """

    def __init__(self, name: str, layer: nn.Module, system: System, tokens: Sequence[str], layers: int) -> None:
        self.name, self.layer, self.system, self.tokens, self.layers = name, layer, system, tokens, layers

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues of the transitions."""
        return spectrum(self.system)

    @cached_property
    def horizon(self) -> Horizon:
        """Tokens back that hold 95% of what an output reads."""
        T = self.system.T
        return horizon(self.system, queries=sorted({int(t) for t in torch.linspace(min(15, T - 1), T - 1, 24)}))


@dataclass(frozen=True)
class Finding:
    """A sentence, how remarkable it is (0 to 1), the question it answers and the layer and head it is about."""

    text: str
    weight: float
    question: str = ""
    layer: int | None = None
    head: int | None = None


Answer = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
"""The layers of a result, each with its `answers`."""


@dataclass(frozen=True)
class Question:
    """One part of the analysis.

    Args:
        name: what `only` names it.
        title: the question, as the reader sees it.
        layer: the answer for one layer (None: not a question about a layer).
        model: the answer for a model on token ids (None: not a question about a model).
        found: what is remarkable in the answers, most of all first or not.
        heads: what the answers' numbers of `heads` are, with their unit.
        depth: what the numbers of `depth` in the model's answer are.
        reading: how to read the drawing of the heads (or of the question's own).
        through: how to read the curves through depth.
    """

    name: str
    title: str
    layer: Callable[[Site], Answer] | None = None
    model: Callable[[nn.Module, Tensor], Answer] | None = None
    found: Callable[[Rows, Answer], Iterator[Finding]] = lambda rows, model: iter(())
    heads: str = ""
    depth: str = ""
    reading: str = ""
    through: str = ""


def place(rows: Rows, layer: int, head: int | None = None) -> str:
    """Where something is, in words: "head 3 of layer 2 (mamba2)"."""
    named = "the layer" if len(rows) == 1 else f"layer {layer} ({rows[layer]['kind']})"
    if head is None or rows[layer]["heads"] == 1:
        return named
    return f"head {head}" if len(rows) == 1 else f"head {head} of {named}"


def begin(sentence: str) -> str:
    """With a capital letter."""
    return sentence[:1].upper() + sentence[1:]


def answered(rows: Rows, name: str) -> list[tuple[int, Answer]]:
    """The layers that have an answer to a question."""
    return [(i, row["answers"][name]) for i, row in enumerate(rows) if name in row["answers"]]


def of_heads(rows: Rows, name: str) -> list[tuple[float, int, int]]:
    """The numbers of all heads, with layer and head."""
    return [(x, i, h) for i, one in answered(rows, name) for h, x in enumerate(one.get("heads") or []) if x is not None]


def share_read(rows: Rows, layer: int, head: int) -> float:
    """How much is read from the state of a head, over the strongest head's; 1 where it is not known."""
    shares = dict(answered(rows, "stability")).get(layer, {}).get("carried") or []
    return float(shares[head]) if head < len(shares) else 1.0


def count(n: int, what: str) -> str:
    """So many of them: "1 token", "3 tokens"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def layers_of(rows: Rows, which: Sequence[int]) -> str:
    """Layers in words, in ranges: "layers 0-3 and 7"."""
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
    """As numbers of four digits, enough to draw."""
    return [float(f"{v:.4g}") for v in x.flatten().tolist()]
