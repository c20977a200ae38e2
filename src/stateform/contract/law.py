"""The law: however texts are laid out in a batch, and in which calls, each gives what it gives alone.

A `Layout` says where texts lie. A `Runner` computes it: a layer (layer.py) or a language model (model.py). Splits,
steps, padding and packing are layouts; `holds` compares any of them with each text alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .outcome import Report

Y = TypeVar("Y")


@dataclass(frozen=True)
class Layout:
    """Where texts lie in a batch [B,T,...], and the calls that compute it, each from what the call before it left."""

    calls: tuple[int, ...]
    """Tokens of each call; T is their sum."""
    texts: tuple[tuple[int, Tensor], ...]
    """The row of each text, and where it lies in it: a mask [T]."""
    mask: Tensor | None = None
    """Which tokens are there [B,T]; the others are padding. None: all are."""
    ends: tuple[int, ...] | None = None
    """Where the texts that are packed into each call end, from 0 on. None: a row is one text."""
    seen: Tensor | None = None
    """The times at which a layer's outputs are compared, a mask [T]. None: all."""

    @classmethod
    def rows(cls, B: int, *calls: int, seen: Tensor | None = None, only: int | None = None) -> Layout:
        """Lay out each row as a text, or the row `only` alone."""
        every = torch.ones(sum(calls), dtype=torch.bool, device="cpu")
        chosen = range(B) if only is None else [only]
        return cls(calls, tuple((row, every) for row in chosen), seen=seen)

    @classmethod
    def padded(cls, mask: Tensor, *calls: int, seen: Tensor | None = None) -> Layout:
        """Lay out a text in each row, where the mask [B,T] is true."""
        return cls(calls or (mask.shape[1],), tuple(enumerate(mask)), mask, seen=seen)

    @classmethod
    def packed(cls, ends: tuple[int, ...], *, times: int = 1, seen: Tensor | None = None) -> Layout:
        """Lay out texts one after the other in one row, continued in the same places of `times` calls."""
        T = ends[-1]
        texts = tuple((0, span(T, low, high).repeat(times)) for low, high in itertools.pairwise(ends))
        return cls((T,) * times, texts, ends=ends, seen=seen)

    @property
    def plain(self) -> bool:
        """True if every text is a whole row, from the first row on."""
        return all(row == i and bool(places.all()) for i, (row, places) in enumerate(self.texts))

    def spans(self) -> list[tuple[int, int]]:
        """List the first token of each call, and the one after its last."""
        return list(itertools.pairwise(itertools.accumulate(self.calls, initial=0)))


def span(T: int, low: int, high: int) -> Tensor:
    """Make a mask [T] that is true from `low` to before `high`."""
    places = torch.zeros(T, dtype=torch.bool, device="cpu")
    places[low:high] = True
    return places


def spans(T: int, of_rows: list[tuple[int, int]]) -> Tensor:
    """Make a mask [B,T] that is true in one span of each row."""
    return torch.stack([span(T, low, high) for low, high in of_rows])


class Runner(Protocol[Y]):
    """A layer or a model, as the contract sees it."""

    report: Report

    @property
    def run(self) -> Callable[..., Y]:
        """Compute an input as it is laid out: (x, layout, and the way, where there are several)."""
        ...

    def alone(self, x: Tensor, layout: Layout) -> Y:
        """Compute each text of the layout by itself, at once: what is expected."""
        ...

    def compare(self, where: str, got: Y, want: Y) -> None:
        """Compare outputs, and put into the report what came of it."""
        ...

    def attempt(self, where: str) -> AbstractContextManager[None]:
        """Turn what is raised inside into a finding, if it is to be one by itself."""
        ...

    def perform(self, part: str, function: Callable[[Any], None]) -> None:
        """Run a part of the contract; whatever it raises is a finding."""
        ...


def holds(r: Runner[Y], where: str, x: Tensor, layout: Layout, want: Y | None = None, **way: Any) -> None:
    """Compare texts as they are laid out with each alone (`want`, where that is there already)."""
    with r.attempt(where):
        got = r.run(x, layout, **way)
        r.compare(where, got, r.alone(x, layout) if want is None else want)


def unmoved(r: Runner[Y], where: str, x: Tensor, other: Tensor, layout: Layout) -> None:
    """Compare texts with the same ones among others: what lies around them changes nothing."""
    with r.attempt(where):
        want = r.run(x, layout)
        r.compare(where, r.run(other, layout), want)
