"""How strong the skip connections must be (arXiv 2410.10609)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...analysis import skip_bound
from ...report import Figure, Panel, View, dig, units
from ...report.figure import bar, drawing, logarithmic
from ...report.words import capitalised
from ..words import Answer, Rows, count
from .question import Finding, Question, Told

KEPT = 0.5
"""The share of mu(Y)^2 that the stack as a whole is to keep."""
TOKENS, FEWEST, MOST = 4096, 64, 256
"""Of a text, for the strength of the skips: so many over the layers, at least and at most. Some 40 stacks are run."""


def ask_model(model: nn.Module, ids: Tensor) -> Answer:
    """Measure how strong the skips must be, and what the theorem asks for."""
    blocks: Any = model.blocks
    depth = len(blocks)
    tokens = ids[:, : max(FEWEST, min(MOST, TOKENS // depth))]
    found = skip_bound(model, tokens, a=KEPT ** (1 / depth), tolerance=0.01)
    return {**found.to_dict(), "kept": KEPT, "layers": depth, "tokens": tokens.shape[1], "top": found.tested[0],
            "source": "arXiv 2410.10609, theorem 4.1"}  # fmt: skip


def say(_: Rows, model: Answer) -> Iterator[Finding]:
    """Tell which skip is enough, and which the theorem asks for."""
    seen, bound, own = model["measured"], model["enough"], f"λ = {model['skip']:g}"
    kept = f"keep {model['kept']:.0%} of mu(Y)^2 over {model['tokens']} tokens"
    stack = f"the {count(model['layers'], 'mixer')} alone, without MLPs and norms of the blocks,"
    if seen is None:
        text = f"No skip up to λ = {model['top']:.3g} lets {stack} {kept}"
    else:
        text = capitalised(f"{stack} {kept} {'without any skip' if seen == 0 else f'from a skip of λ = {seen:.2g} on'}")
    if bound is None:
        promise = "there is no λ for which the theorem promises it"
    else:
        promise = f"the theorem promises it only beyond {bound:.3g}, a bound known to be very conservative"
    reach = f"{own} of the model {'lies beyond' if model['holds'] else 'has no promise'}"
    yield Finding(f"{text}; {promise}: {reach} [{model['source']}; premise: gains of the mixers as on this text].", 0.4)


def draw(result: Told) -> Figure | None:
    """Draw the skip of the model, the one measured to be enough, and what the theorem asks for."""
    found = dig(result, "model", "skip")
    if not found:
        return None
    bars = {
        "of the model": found.get("skip"),
        "enough, as measured": found.get("measured"),
        "by the theorem's first condition": found.get("needed"),
        "by both of its conditions": found.get("enough"),
    }
    known = {name: abs(v) for name, v in bars.items() if v is not None}
    positive = [v for v in known.values() if v > 0]
    low, high = min(positive, default=1.0) / 3, max(positive, default=1.0) * 3
    trace = bar(
        x=[v or low for v in known.values()],  # a logarithmic axis has no place for 0
        y=list(known),
        orientation="h",
        marker={"color": [f"var(--layer-{k})" for k, name in enumerate(bars) if name in known], "cornerradius": 3},
        text=[units.plain(v) if v else "0: none is needed" for v in known.values()],
        textposition="outside",
        textfont={"color": "var(--ink)"},
        cliponaxis=False,
        hoverinfo="skip",
    )
    axis = logarithmic(low, high, units.plain, "skip strength |λ|")
    names = {"autorange": "reversed", "showgrid": False, "tickfont": {"color": "var(--ink)", "size": 12}}
    figure = drawing([trace], xaxis=axis, yaxis=names, bargap=0.35, margin={"r": 40})
    reading = str(dig(result, "questions", "skip", "reading") or "")
    panel = Panel(figure, height=80 + 46 * len(known), width=860)
    return Figure("skip", "Measured, and promised by the theorem", reading, (View("Skips", (panel,)),))


QUESTION = Question(
    "skip",
    "How strong must the skip connections be?",
    None,
    ask_model,
    say,
    reading="The skip λ of a stack Y <- norm(mixer(Y) + λ Y) of the model's mixers that keeps half of mu(Y)²: what "
    "the model has, what was measured to be enough on the first tokens, and what the sufficient condition of the "
    "theorem asks for. It is known to be very conservative.",
    figures=lambda result: [draw(result)],
    order=10,
)
