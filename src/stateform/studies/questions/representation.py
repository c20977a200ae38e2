"""How much of its width the residual stream uses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ...analysis import representation
from ..words import Answer, Rows
from .question import Finding, Question


def ask_model(model: nn.Module, ids: Tensor) -> Answer:
    """Measure the effective rank of the residual stream through depth."""
    found = representation(model, ids)
    return {"depth": {"effective rank": list(found.ranks)}, **found.to_dict()}


def say(_: Rows, model: Answer) -> Iterator[Finding]:
    """Tell where the stream is narrowest."""
    ranks, most = model["ranks"], min(model["width"], model["tokens"])
    least = min(range(len(ranks)), key=ranks.__getitem__)
    where = "in the embedding" if least == 0 else f"after layer {least - 1}"
    text = f"The residual stream uses least of its {most} directions {where}: an effective rank of {ranks[least]:.3g}"
    yield Finding(f"{text}, {ranks[-1]:.3g} at the end.", 0.4 + 0.3 * (1 - ranks[least] / most))


QUESTION = Question(
    "representation",
    "How much of its width does the stream use?",
    None,
    ask_model,
    say,
    depth="effective rank (RankMe)",
    through="exp of the entropy of the singular values of the tokens' features, over all tokens of the text.",
    order=12,
)
