"""What a question is: what it asks of a layer or a model, what is remarkable in the answers, and how they are drawn.

It may also be put to layers side by side (`Beside`). All of it stands in one file, which the folder's door finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...analysis import Horizon, Spectrum, horizon, spectrum
from ...layer import system_of
from ...report import Column, Figure, Grid, Headline
from ...system import System
from ..words import Answer, Rows

SHOWN = 64
"""Tokens of the maps of effective attention, and on which transitions are written out."""
FIRST, LOOKED = 256, 1024
"""Tokens of a comparison on which systems are looked at token by token, and on which memory is."""
Told = Mapping[str, Any]
"""The dict of an analysis, or of a comparison."""


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


class Member(Site):
    """One layer of a comparison, on the text that all of them read.

    Args:
        name: of the layer, as the reader sees it.
        layer: with `system(u)`, in float64.
        lineup: the comparison.
    """

    def __init__(self, name: str, layer: nn.Module, lineup: Lineup) -> None:
        super().__init__(name, layer, system_of(layer, lineup.x[:, :LOOKED]), lineup.tokens, len(lineup.layers))
        self.first = lineup.x[:, :FIRST]  # [1,T,d_model]


@dataclass(frozen=True)
class Lineup:
    """What is compared, and how."""

    layers: Mapping[str, nn.Module]
    """By name, in float64."""
    x: Tensor
    """The text that they read, [1,T,d_model] in float64."""
    tokens: Sequence[str]
    """The first `SHOWN` of it, as they are shown."""
    lengths: Sequence[int]
    """At which time is measured."""
    dtype: torch.dtype
    """In which time is measured."""
    memory_limit_gb: float
    repeats: int
    seed: int


@dataclass(frozen=True)
class Finding:
    """A sentence, how remarkable it is (0 to 1), the question it answers and the layer and head it is about."""

    text: str
    weight: float
    question: str = ""
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Question:
    """One part of the analysis.

    Args:
        name: what `only` names it.
        title: the question, as the reader sees it.
        layer: the answer for one layer (None: not a question about a layer).
        model: the answer for a model on token ids, or on numbers [1,T,d] (None: not a question about a model).
        found: what is remarkable in the answers, most of all first or not.
        heads: what the answers' numbers of `heads` are, with their unit: they are drawn as a map of depth and heads.
        depth: what the numbers of `depth` in the model's answer are: they are drawn as curves.
        reading: how to read the drawing of the heads (or of the question's own).
        through: how to read the curves through depth.
        figures: the question's own, from the whole result.
        column: the heading of its column in the table of layers (None: it has none).
        cell: what stands there, from a layer's answer.
        order: its place in the report, the least first.
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
    figures: Callable[[Told], Sequence[Figure | None]] = lambda result: ()
    column: Column | None = None
    cell: Callable[[Answer], str] = str
    order: int = 1000


@dataclass(frozen=True)
class Beside:
    """One part of the comparison: a question that is put to layers side by side.

    Args:
        section: the part of the page where it stands, see `comparison.SECTIONS`.
        order: its place there and in the terminal, and when it is measured, the least first.
        tables: from the dict of a comparison and how many lengths a table has room for.
        figures: from the dict of a comparison.
        headlines: what a reader wants first.
        tables_order: the place of its tables, where they do not stand right behind its figures.
        layer: the answer for one layer (None: nothing is measured layer by layer).
        where: its place in the row of the layer, a key for each level. The last one names the step.
        together: what is measured of all layers side by side, after that; it fills the dict of the comparison and
            calls with each step that it begins (None: nothing is).
        steps: how many these are.
    """

    section: str
    order: int
    tables: Callable[[Told, int], Sequence[Grid | None]] = lambda result, lengths: ()
    figures: Callable[[Told], Sequence[Figure | None]] = lambda result: ()
    headlines: Callable[[Told], Iterator[Headline]] = lambda result: iter(())
    tables_order: int | None = None
    layer: Callable[[Member], Answer] | None = None
    where: tuple[str, ...] = ()
    together: Callable[[Lineup, dict[str, Any], Callable[[str], None]], None] | None = None
    steps: Callable[[Lineup], int] = lambda lineup: 0

    def ask(self, member: Member, row: dict[str, Any]) -> None:
        """Put the answer for a layer into its row."""
        if self.layer is not None:
            *levels, last = self.where
            for level in levels:
                row = row.setdefault(level, {})
            row[last] = self.layer(member)
