"""Whether the tokens become alike through depth."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ...analysis import collapse
from ..words import Answer, Rows
from .question import Finding, Question


def ask_model(model: nn.Module, ids: Tensor) -> Answer:
    """Measure how far the tokens are apart through depth, with the skip connections and without."""
    found = collapse(model, ids).to_dict()
    return {"depth": {"as it is": found["with_skip"], "without its skip connections": found["without_skip"]}}


def say(_: Rows, model: Answer) -> Iterator[Finding]:
    """Tell whether the tokens become alike."""
    kept, bare = model["depth"].values()
    words = "become alike" if kept[-1] < 0.3 * kept[0] else "stay apart"
    text = f"Tokens {words} through depth: mu(Y)/||Y|| goes from {kept[0]:.3g} to {kept[-1]:.3g}"
    yield Finding(f"{text}; without skip connections to {bare[-1]:.2g}.", 0.7 if words == "become alike" else 0.5)


QUESTION = Question(
    "collapse",
    "Do the tokens become alike?",
    None,
    ask_model,
    say,
    depth="distance from the mean, mu(Y) / ||Y||",
    through="The distance of the tokens of the residual stream from their mean, relative to their size: 0 if "
    "all are the same.",
    order=9,
)
