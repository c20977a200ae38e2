"""The loss of a model with softmax heads replaced, as a table with a row for each method and size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...result import Result
from ..runs import TextScore
from .fit import Fitted


@dataclass(frozen=True)
class Substitute:
    """One way to replace the heads."""

    method: str
    n: int
    numbers: int
    """Numbers kept for each head: n (p + 1) of a state, n (d + p) of a window."""
    nats: float
    """The loss per token on the text that was held out."""


@dataclass(frozen=True)
class Replacement(Result):
    """The loss of a model with softmax heads replaced; `print` it."""

    heads: tuple[str, ...]
    """The heads that were replaced, "layer:head" each."""
    tokens: tuple[int, int]
    """Tokens of the calibration text, and of the text that was held out."""
    nats: float
    """The loss per token of the held-out text, of the model as it is."""
    without: float
    """The same with these heads giving 0, the most that a replacement should lose."""
    cache: int
    """Numbers that each head's cache holds at the end of a row of the held-out text."""
    rows: tuple[Substitute, ...]
    alone: dict[str, float]
    """Nats a token with one head alone replaced by its fit with the most features, by head."""
    most: int
    """The number of features of these fits."""
    fits: dict[str, dict[int, Fitted]]
    """By layer and by n: the fits of the heads replaced there."""
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts (without the weights of the fits)."""
        return {
            "heads": list(self.heads), "tokens": list(self.tokens), "nats": self.nats, "without": self.without,
            "cache": self.cache, "rows": [vars(row) for row in self.rows], "alone": dict(self.alone),
            "most": self.most, "complete": self.complete,
        }  # fmt: skip

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        base = _perplexity(self.nats)
        yield Text(
            f"{len(self.heads)} softmax heads as systems with a finite state: fitted on {self.tokens[0]} tokens, "
            f"measured on {self.tokens[1]} others. Perplexity {base:.4g} as it is (a cache of {self.cache} numbers a "
            f"head), {_perplexity(self.without):.4g} with these heads giving 0."
        )
        if not self.complete:
            yield Text("Interrupted: what follows was finished.", style="bold yellow")
        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in ("replaced by", "n", "numbers kept", "perplexity", "nats lost"):
            table.add_column(name, justify="left" if name == "replaced by" else "right")
        for row in self.rows:
            table.add_row(_WORDS[row.method], str(row.n), str(row.numbers), f"{_perplexity(row.nats):.4g}",
                          f"{row.nats - self.nats:+.3f}")  # fmt: skip
        yield table
        if self.alone:
            ranked = sorted(self.alone.items(), key=lambda x: -x[1])
            worst = ", ".join(f"{head} {x - self.nats:+.3f}" for head, x in ranked[:5])
            small = sum(x - self.nats < 0.01 for _, x in ranked)
            yield Text(f"One head alone, {self.most} features: {small} of {len(ranked)} cost less than 0.01 nats; "
                       f"the most: {worst}.")  # fmt: skip


_WORDS = {
    "fitted": "features with decays, fitted", "window": "the last n tokens", "lag": "its mean weight at each lag",
    "random": "random features",
}  # fmt: skip


def _perplexity(nats: float) -> float:
    return TextScore(torch.empty(0), nats).perplexity or math.nan
