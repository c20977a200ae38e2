"""Which two layers are the same function, and where others differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.draws import redraw
from ...contract.equivalence import equivalent, share_weights
from ...convert import special_case
from ...report import Column, Figure, Grid, GridRow, Headline, Panel, View, dig, units, visible
from ...report.figure import drawing, label, three_shades
from ...report.units import MISSING
from ...report.words import text_of
from ..words import Answer, layers
from .question import SHOWN, Beside, Lineup, Told


def pairs_of(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give every two of them."""
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            yield a, b


def compare_pair(name_a: str, a: nn.Module, name_b: str, b: nn.Module, x: Tensor, seed: int) -> Answer:
    """Tell whether two layers are one function when they share the weights that have the same names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    shared = share_weights(a, b, lambda layer: redraw(layer, generator, "own"))
    found = equivalent(shared.a, shared.b, x)
    first = None if found.equal else {"row": found.row, "position": found.position}
    if not shared.names:
        text = "no weights of the same name and shape: nothing can be made equal"
    elif found.equal:
        text = f"the same function of {len(shared.names)} shared weights, {found.text}"
    else:
        text = f"different functions with {len(shared.names)} weights shared: {found.text}"
    if shared.unshared:
        text += f"; not shared: {', '.join(shared.unshared[:6])}{' ...' if len(shared.unshared) > 6 else ''}"
    drawn = [copy.deepcopy(layer) for layer in (a, b)]
    for layer in drawn:
        redraw(layer, generator, "own")
    return {
        "a": name_a, "b": name_b, "equal": found.equal, "error": found.error, "first": first,
        "shared": len(shared.names), "unshared": len(shared.unshared), "text": text,
        "special": special_case(drawn[0], drawn[1], x),
    }  # fmt: skip


def compare_pairs(lineup: Lineup, result: dict[str, Any], step: Callable[[str], None]) -> None:
    """Add what every two layers have in common."""
    for a, b in pairs_of(list(lineup.layers)):
        step(f"{a} = {b}?")
        found = compare_pair(a, lineup.layers[a], b, lineup.layers[b], lineup.x[:, :SHOWN], lineup.seed)
        result["pairs"].append(found)


def table(result: Told, most: int = 6) -> Grid | None:
    """Tell which layers are the same function, where others differ: all pairs, or the equal and the `most` closest."""
    found = list(result.get("pairs") or [])
    if not found:
        return None
    label = {str(layer.get("name")): i for i, layer in enumerate(layers(result))}
    shown = sorted(found, key=lambda pair: (not pair.get("equal"), _order(pair.get("error"))))
    equal = sum(bool(pair.get("equal")) for pair in found)
    shown = shown[: max(most, equal)] if len(shown) > most else shown
    rows = []
    for pair in shown:
        position = dig(pair, "first", "position")
        cells = (
            visible(str(pair.get("a"))),
            visible(str(pair.get("b"))),
            "yes" if pair.get("equal") else "no",
            units.error(pair.get("error")),
            MISSING if position is None else f"token {position}",
            shared(pair),
            text_of(pair.get("text")),
        )
        rows.append(GridRow(cells, label.get(str(pair.get("a")))))
    columns = (
        Column("Layer"),
        Column("and"),
        Column("Same"),
        Column("Error", numeric=True),
        Column("First at", numeric=True),
        Column("Shared weights", numeric=True),
        Column("In words", page_only=True),
    )
    rest = len(found) - len(shown)
    note = "Same function when weights of the same name and shape are made equal; otherwise where they first differ."
    more = (f"The other {rest} pairs differ by more.",) if rest else ()
    special = tuple(f"{text_of(pair['special'])}." for pair in found if pair.get("special"))
    return Grid("pairs", "Where do two layers differ?", columns, tuple(rows), (note, *more, *special))


def _order(error: float | None) -> float:
    return float("inf") if error is None or error != error else error


def shared(pair: Mapping[str, Any]) -> str:
    """Count the weights of a pair were made equal."""
    equal, other = pair.get("shared"), pair.get("unshared")
    return MISSING if equal is None else f"{equal} of {equal + (other or 0)}"


def draw(result: Told) -> Figure | None:
    """Draw a matrix of the layers: which two are the same function, and where the others first differ."""
    every = [str(layer.get("name")) for layer in layers(result)]
    position = {name: i for i, name in enumerate(every)}
    pairs = [p for p in result.get("pairs") or [] if str(p.get("a")) in position and str(p.get("b")) in position]
    if not pairs:
        return None
    n = len(every)
    z: list[list[int | None]] = [[1 if i == j else None for j in range(n)] for i in range(n)]
    words = [["" for _ in range(n)] for _ in range(n)]
    tips = [[label(every[i]) if i == j else "" for j in range(n)] for i in range(n)]
    for pair in pairs:
        a, b = position[str(pair.get("a"))], position[str(pair.get("b"))]
        equal, first = bool(pair.get("equal")), dig(pair, "first", "position")
        word = "same" if equal else "≠" if first is None else f"≠ at {first}"
        tip = f"{label(every[a])} and {label(every[b])}: {'same function' if equal else 'different functions'}"
        tip += f"<br>relative difference {units.error(pair.get('error'))}"
        if first is not None:
            tip += f"<br>first at token {first}, sequence {dig(pair, 'first', 'row')}"
        if (equal_weights := shared(pair)) != units.MISSING:
            tip += f"<br>weights made equal: {equal_weights}"
        for i, j in ((a, b), (b, a)):
            z[i][j], words[i][j], tips[i][j] = (2 if equal else 0), word, tip
    trace = three_shades(z, words, tips, xgap=3, ygap=3)
    shown = [label(visible(name)) for name in every]
    axis = {"showgrid": False, "tickvals": list(range(n)), "ticktext": shown, "tickfont": {"color": "var(--ink)"}}
    axis |= {"ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)"}
    figure = drawing(
        [trace],
        xaxis=axis | {"side": "top", "fixedrange": True},
        yaxis=axis | {"autorange": "reversed", "fixedrange": True},
        hovermode="closest",
    )
    same = [p for p in pairs if p.get("equal")]
    finding = [visible(str(p.get("text") or "")) for p in same if p.get("text")]
    return Figure(
        "equality",
        "Which layers are the same function?",
        "Weights of the same name and shape are made equal, both layers read this text, and the outputs are compared. "
        "≠ at 3: they first differ at token 3.",
        (View("Pairs", (Panel(figure, height=70 + (64 if n < 6 else 48) * n, width=240 + 140 * n),)),),
        " ".join(finding),
    )


def _headlines(result: Told) -> Iterator[Headline]:
    compared = list(result.get("pairs") or [])
    if compared:
        same = [pair for pair in compared if pair.get("equal")]
        if same:
            sentence = "; ".join(f"{visible(str(p.get('a')))} = {visible(str(p.get('b')))}" for p in same)
            yield Headline("Same function", f"{len(same)} of {len(compared)} pairs", f"{sentence}.")
        else:
            yield Headline("Same function", "None", f"Each of the {len(compared)} pairs differs somewhere.")
        special = [pair for pair in compared if pair.get("special")]
        if special:
            sentence = "; ".join(f"{visible(str(p.get('a')))}, {visible(str(p.get('b')))}" for p in special)
            detail = f"{sentence}. One is the other with some parameters set."
            yield Headline("Special cases", f"{len(special)} of {len(compared)} pairs", detail)


BESIDE = Beside(
    "same",
    100,
    lambda result, lengths: [table(result)],
    lambda result: [draw(result)],
    _headlines,
    together=compare_pairs,
    steps=lambda lineup: len(list(pairs_of(list(lineup.layers)))),
)
