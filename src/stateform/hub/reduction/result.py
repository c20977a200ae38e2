"""The result of a reduction, as a table with a row for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ...report.wording import TOKEN, Wording
from ...result import Result
from ..runs import TextScore


@dataclass(frozen=True)
class ReducedLayer:
    """The result for one layer."""

    name: str
    kind: str
    became: str = ""
    """The smaller layer that was written back, "s4d(d_state=12)"; empty if it stayed as it is."""
    state: tuple[int, int] | None = None
    """Real numbers of state of a channel or head (of one column of values), before and after; None: a cache."""
    parameters: tuple[int, int] = (0, 0)
    orders: tuple[int, ...] = ()
    """States needed for `tol`, by each channel's truncation or each head on this text."""
    least: tuple[int, ...] = ()
    """The fewest states that any system needs, for each head on this text (`analysis.state_need`)."""
    bound: float | None = None
    """The largest error that theory allows: of a channel's gain, over its largest Hankel singular value; of a head on
    this text, of its outputs (Frobenius norms)."""
    error: float | None = None
    """The same error as measured, of the worst channel or head."""
    ok: bool = True
    """True if every channel or head is within its bound."""
    alone: float | None = None
    """Nats a token of the model with this layer alone reduced."""
    off: float | None = None
    """||outputs - those of the model as it was|| / ||.||, with this layer alone reduced."""
    why: str = ""
    """The reason if it is neither written back nor measured."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers and strings."""
        return asdict(self)


@dataclass(frozen=True)
class ModelReduction(Result):
    """A reduced model, and a row for each layer; `print` it."""

    model: nn.Module
    """A new model with the layers that could be written back; if there were none, the model given."""
    tol: float
    layers: tuple[ReducedLayer, ...]
    parameters: tuple[int, int]
    tokens: int = 0
    """The number of tokens read; 0 without a text."""
    bytes: bool = False
    """True if tokens are bytes."""
    losses: dict[str, float] = field(default_factory=dict)
    """Nats a token: "before", "written" (the model that is returned), "together" (all others reduced on the text)."""
    off: dict[str, float] = field(default_factory=dict)
    """The relative distance of the model's outputs from those before, by case: "written", "together"."""
    complete: bool = True
    """False if it was interrupted; then it holds what was finished."""
    unit: str = TOKEN
    """What follows one another in what was read: "token", "step" of a series or "sample" of a recording."""

    @property
    def written(self) -> list[str]:
        """List the names of the layers that have fewer states now."""
        return [layer.name for layer in self.layers if layer.became]

    @property
    def ok(self) -> bool:
        """True if every layer is within its bound."""
        return all(layer.ok for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts."""
        return {
            "tol": self.tol, "tokens": self.tokens, "unit": self.unit, "parameters": list(self.parameters),
            "losses": dict(self.losses), "off": dict(self.off), "complete": self.complete, "ok": self.ok,
            "layers": [layer.to_dict() for layer in self.layers],
        }  # fmt: skip

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        before, after = self.parameters
        said = Wording(self.unit, [name for row in self.layers for name in (row.name, row.kind)])
        yield Text(said(f"Reduced: {_sentence(self)}"))
        if not self.complete:
            yield Text("Interrupted: what follows was finished.", style="bold yellow")
        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in ("layer", "kind"):
            table.add_column(name, overflow="fold")
        columns: dict[str, Callable[[ReducedLayer], str]] = {"state": _state}
        if self.written:
            columns["parameters"] = lambda row: _change(row.parameters)
        columns |= {"error": lambda row: _small(row.error), "bound": lambda row: _small(row.bound)}
        if self.tokens:
            columns[_unit(self)] = lambda row: _cost(self, row)
        for name in columns:
            table.add_column(name, justify="right")
        for name, row in zip(_short([row.name for row in self.layers]), self.layers, strict=True):
            table.add_row(name, row.became or row.kind, *(cell(row) for cell in columns.values()))
        yield table
        yield from map(Text, said(_tolerances(self)))
        for name, row in zip(_short([row.name for row in self.layers]), self.layers, strict=True):
            if row.why:
                yield Text(said(f"{name} ({row.kind}): {row.why}."))
            if not row.ok:
                yield Text(f"{name} ({row.kind}): the error is ABOVE its bound.", style="bold red")
        if before != after:
            share = f"{abs(1 - after / before):.1%} {'fewer' if after < before else 'more'}"
            yield Text(f"Parameters: {before:,} before, {after:,} after ({share}).")
        if self.losses:
            yield Text("; ".join(f"{_NAMES[name]}: {_loss(self, x)}" for name, x in self.losses.items()) + ".")
        elif self.off:
            yield Text("Outputs differ by " + ", ".join(f"{x:.2g} ({_NAMES[name]})" for name, x in self.off.items()))
        if any(row.least for row in self.layers):
            yield Text(said(
                f"State with a colon: of what the layer has, what its heads need on these {self.tokens} tokens. Such "
                "systems hold for this text alone: a report of what it needs, no weights."
            ))  # fmt: skip


_NAMES = {"before": "as it was", "written": "with the layers written back", "together": "with all layers reduced"}


def _sentence(found: ModelReduction) -> str:
    many = len(found.written)
    rest = sum(bool(row.least) for row in found.layers)
    parts = [f"{many} of {len(found.layers)} layers written back with fewer states"]
    if rest:
        parts.append(f"{rest} measured on {found.tokens} tokens")
    return ", ".join(parts) + "."


def _tolerances(found: ModelReduction) -> list[str]:
    """Say what tolerance, error and bound measure, for each of the two kinds of reduction in the table."""
    said = []
    if found.written:
        said.append(
            f"Written back: the gain of the difference, over the largest Hankel value of its channel, is kept to "
            f"{found.tol:g}; error and bound are of it, in the worst channel."
        )
    if any(row.least for row in found.layers):
        said.append(
            f"On the text: the difference of each head's operator is kept to {found.tol:g} of it (Frobenius norm); "
            "error and bound are of the worst head's outputs, over those outputs, and larger where writes cancel."
        )
    return said


def _state(row: ReducedLayer) -> str:
    if row.became and row.state is not None:
        return f"{row.state[0]} -> {row.state[1]}"
    if not row.least:
        return "-" if row.state is None else str(row.state[0])
    low, high = min(row.orders), max(row.orders)
    return f"{'cache' if row.state is None else row.state[0]}: {low if low == high else f'{low}..{high}'}"


def _short(names: list[str]) -> list[str]:
    """Shorten names of modules by the parts that all of them begin and end with."""
    parts = [name.split(".") for name in names]
    if len(parts) < 2:
        return names
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]


def _change(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} -> {pair[1]:,}"


def _small(x: float | None) -> str:
    return "-" if x is None else f"{x:.2g}"


def _unit(found: ModelReduction) -> str:
    return ("bits/byte" if found.bytes else "perplexity") if found.losses else "outputs off"


def _loss(found: ModelReduction, nats: float) -> str:
    score = TextScore(torch.empty(0), nats)
    return f"{score.bits:.4f} bits per byte" if found.bytes else f"perplexity {score.perplexity:.4g}"


def _cost(found: ModelReduction, row: ReducedLayer) -> str:
    if row.alone is None:
        return _small(row.off)
    score, base = (TextScore(torch.empty(0), x) for x in (row.alone, found.losses["before"]))
    if found.bytes:
        assert score.bits is not None and base.bits is not None
        return f"{score.bits - base.bits:+.2g}"
    assert score.perplexity is not None and base.perplexity is not None
    return f"{score.perplexity / base.perplexity - 1:+.2%}"
