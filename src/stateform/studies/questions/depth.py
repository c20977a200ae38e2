"""What becomes of tokens and gradients through depth and distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...analysis import collapse, gradient_paths, representation, skip_bound
from .question import Answer, Finding, Question, Rows, Site, answered, begin, count, layers_of, place, rounded

CURVE = 40
"""Points of a curve over distances."""
KEPT = 0.5
"""The share of mu(Y)^2 that the stack as a whole is to keep."""
TOKENS, FEWEST, MOST = 4096, 64, 256
"""Of a text, for the strength of the skips: so many over the layers, at least and at most. Some 40 stacks are run."""


def _collapse(model: nn.Module, ids: Tensor) -> Answer:
    found = collapse(model, ids).to_dict()
    return {"depth": {"as it is": found["with_skip"], "without its skip connections": found["without_skip"]}}


def _said_of_collapse(_: Rows, model: Answer) -> Iterator[Finding]:
    kept, bare = model["depth"].values()
    words = "become alike" if kept[-1] < 0.3 * kept[0] else "stay apart"
    text = f"Tokens {words} through depth: mu(Y)/||Y|| goes from {kept[0]:.3g} to {kept[-1]:.3g}"
    yield Finding(f"{text}; without skip connections to {bare[-1]:.2g}.", 0.7 if words == "become alike" else 0.5)


def _skip(model: nn.Module, ids: Tensor) -> Answer:
    blocks: Any = model.blocks
    depth = len(blocks)
    tokens = ids[:, : max(FEWEST, min(MOST, TOKENS // depth))]
    found = skip_bound(model, tokens, a=KEPT ** (1 / depth), tolerance=0.01)
    return {**found.to_dict(), "kept": KEPT, "layers": depth, "tokens": tokens.shape[1], "top": found.tested[0],
            "source": "arXiv 2410.10609, theorem 4.1"}  # fmt: skip


def _said_of_skip(_: Rows, model: Answer) -> Iterator[Finding]:
    seen, bound, own = model["measured"], model["enough"], f"λ = {model['skip']:g}"
    kept = f"keep {model['kept']:.0%} of mu(Y)^2 over {model['tokens']} tokens"
    stack = f"the {count(model['layers'], 'mixer')} alone, without MLPs and norms of the blocks,"
    if seen is None:
        text = f"No skip up to λ = {model['top']:.3g} lets {stack} {kept}"
    else:
        text = begin(f"{stack} {kept} {'without any skip' if seen == 0 else f'from a skip of λ = {seen:.2g} on'}")
    if bound is None:
        promise = "there is no λ for which the theorem promises it"
    else:
        promise = f"the theorem promises it only beyond {bound:.3g}, a bound known to be very conservative"
    reach = f"{own} of the model {'lies beyond' if model['holds'] else 'has no promise'}"
    yield Finding(f"{text}; {promise}: {reach} [{model['source']}; premise: gains of the mixers as on this text].", 0.4)


def _gradients(site: Site) -> Answer:
    """Of the influence of the values, the gates held fixed: the median of a few queries at each distance."""
    found = gradient_paths(site.system)
    g = found.by_distance
    d = sorted({round((len(g) - 1) ** (i / (CURVE - 1))) - 1 for i in range(CURVE)} | {len(g) - 1})
    fit = {"law": found.law, "tau": found.exponential.value, "p": found.power.value}
    return {**fit, "distance": d, "norm": rounded(g[torch.tensor(d)])}


def _said_of_gradients(rows: Rows, _: Answer) -> Iterator[Finding]:
    fading = [(one["tau"], i) for i, one in answered(rows, "gradients") if one["law"] == "exponential" and one["tau"]]
    fading = [(tau, i) for tau, i in fading if tau > 0]
    if fading:
        tau, i = min(fading)
        text = f"{place(rows, i)} fade fastest" if len(fading) > 1 else f"{place(rows, i)} fade exponentially"
        yield Finding(f"Gradients through the values of {text}, e-fold in {count(round(max(tau, 1)), 'token')}.",
                      0.4, layer=i)  # fmt: skip
    far = [i for i, one in answered(rows, "gradients") if one["law"] == "power"]
    if far and len(far) < len(rows):
        yield Finding(f"In {layers_of(rows, far)} gradients fade no faster than a power of the distance.", 0.35)


def _representation(model: nn.Module, ids: Tensor) -> Answer:
    found = representation(model, ids)
    return {"depth": {"effective rank": list(found.ranks)}, **found.to_dict()}


def _said_of_representation(_: Rows, model: Answer) -> Iterator[Finding]:
    ranks, most = model["ranks"], min(model["width"], model["tokens"])
    least = min(range(len(ranks)), key=ranks.__getitem__)
    where = "in the embedding" if least == 0 else f"after layer {least - 1}"
    text = f"The residual stream uses least of its {most} directions {where}: an effective rank of {ranks[least]:.3g}"
    yield Finding(f"{text}, {ranks[-1]:.3g} at the end.", 0.4 + 0.3 * (1 - ranks[least] / most))


QUESTIONS = (
    Question(
        "collapse",
        "Do the tokens become alike?",
        None,
        _collapse,
        _said_of_collapse,
        depth="distance from the mean, mu(Y) / ||Y||",
        through="The distance of the tokens of the residual stream from their mean, relative to their size: 0 if "
        "all are the same.",
    ),
    Question(
        "skip",
        "How strong must the skip connections be?",
        None,
        _skip,
        _said_of_skip,
        reading="The skip λ of a stack Y <- norm(mixer(Y) + λ Y) of the model's mixers that keeps half of mu(Y)²: what "
        "the model has, what was measured to be enough on the first tokens, and what the sufficient condition of the "
        "theorem asks for. It is known to be very conservative.",
    ),
    Question(
        "gradients",
        "How fast do gradients fade with distance?",
        _gradients,
        None,
        _said_of_gradients,
        reading="Influence of a value on the outputs after it, gates held fixed; geometric mean over heads.",
    ),
    Question(
        "representation",
        "How much of its width does the stream use?",
        None,
        _representation,
        _said_of_representation,
        depth="effective rank (RankMe)",
        through="exp of the entropy of the singular values of the tokens' features, over all tokens of the text.",
    ),
)
