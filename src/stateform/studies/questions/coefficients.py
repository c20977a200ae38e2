"""Which token reads which: the effective attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...analysis import has_weights, influence
from ...report import Figure, Panel, View, dig
from ...report.figure import drawing, heatmap
from ...system import System
from ..words import Answer, layers, name_of, rounded
from .question import SHOWN, Beside, Question, Site, Told

MAPS = 96
"""How many maps all layers together keep for drawing."""
SHOWN_HEADS = 4
"""Heads with a map, of each layer of a comparison."""


def effective_attention(system: System, tokens: Sequence[str], heads: Sequence[int] | None = None) -> Answer:
    """Give maps of the effective attention of the first tokens, for some heads (default: all; one where heads mix)."""
    first = system[:SHOWN]
    mixed = system.w_out is not None
    shown = [0] if mixed else [h for h in (heads or range(system.H)) if h < system.H]
    maps = influence(first, heads=None if mixed else shown)[0]
    return {
        "tokens": list(tokens[: first.T]),
        "heads": [
            {"head": h, "alpha": [rounded(line) for line in alpha]} for h, alpha in zip(shown, maps, strict=True)
        ],
        "what": "weights alpha_ij" if has_weights(system) else "norm of the contribution",
    }


def ask(site: Site) -> Answer:
    """Keep the maps of the heads whose memory is shortest, longest and evenly between."""
    many = max(1, min(site.system.H, MAPS // site.layers, 12))
    reach = site.horizon.tensor_per_head()
    order = reach.argsort().tolist()
    picked = sorted({order[round(i * (len(order) - 1) / max(1, many - 1))] for i in range(many)})
    return {"maps": effective_attention(site.system, site.tokens, picked)}


def maps_of(found: Sequence[tuple[int, str]]) -> Figure | None:
    """Draw which token reads which, and with what weight, for every layer that has weights.

    The figures hold no weights: the page's script takes them from the embedded result, for the layer and the head that
    are chosen.

    Args:
        found: the layers that have maps, by position and name.
    """
    if not found:
        return None
    panels = tuple(Panel(_map(i, False), name, i, None) for i, name in found)
    one = View("One map", (Panel(_map(found[0][0], True), "", None, None),))
    return Figure(
        "maps",
        "Which token reads which?",
        "The weight of each earlier token (column) in the output at a token (row): the effective attention, which "
        "every layer has. The shade grows with the square root of the weight, so that small ones show.",
        (one, View("Side by side", panels, True)),
    )


def _map(layer: int, large: bool) -> Any:
    """Draw an empty map: the page puts in the weights of one head and the range of colours, symmetric around 0."""
    stops = [0.0, 0.25, 0.5, 0.75, 1.0]
    below = [[0.5 - 0.5 * s * s, f"var(--minus-{k})"] for k, s in reversed(list(enumerate(stops)))]
    above = [[0.5 + 0.5 * s * s, f"var(--plus-{k})"] for k, s in enumerate(stops)]
    bar = {
        "thickness": 10,
        "len": 0.6,
        "outlinewidth": 0,
        "ticks": "",
        "tickfont": {"color": "var(--muted)", "size": 11},
    }
    trace = heatmap(
        colorscale=below[:-1] + above,
        zmid=0,
        showscale=large,
        colorbar=bar if large else None,
        hovertemplate="%{text}<extra></extra>",
        meta={"map": layer},
    )
    axis = {"showgrid": False, "constrain": "domain", "visible": large}
    return drawing(
        [trace],
        xaxis=axis | {"title": {"text": "is read" if large else ""}, "scaleanchor": "y"},
        yaxis=axis | {"title": {"text": "reads" if large else ""}, "autorange": "reversed"},
        plot_bgcolor="var(--later)",
        hovermode="closest",
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )


def _drawn(result: Told, *where: str) -> list[Figure | None]:
    return [maps_of([(i, name_of(x)) for i, x in enumerate(layers(result)) if dig(x, *where, "heads")])]


QUESTION = Question(
    "coefficients",
    "Which token reads which?",
    ask,
    reading="Effective attention: the weight of each earlier token in the output at a token. Exact.",
    figures=lambda result: _drawn(result, "answers", "coefficients", "maps"),
    order=3,
)
BESIDE = Beside(
    "dynamics",
    60,
    figures=lambda result: _drawn(result, "dynamics", "coefficients"),
    layer=lambda one: effective_attention(one.system, one.tokens, range(SHOWN_HEADS)),
    where=("dynamics", "coefficients"),
)
