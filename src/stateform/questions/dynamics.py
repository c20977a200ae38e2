"""What a layer can do: whether its state can blow up, and what its transitions can express."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from ..analysis import contraction, expressivity, lyapunov, perturbation, stability
from ..layers import Cell
from .question import SHOWN, Answer, Finding, Question, Rows, Site, answered, begin, layers_of, of_heads, place, rounded


def _stability(site: Site) -> Answer:
    promised = bool(getattr(site.layer, "contractive", False))
    verdict, why = contraction(site.system, promised=promised, found=site.spectrum)
    found = {"contractive": verdict, "why": why, "norm": site.spectrum.norm}
    if site.system.readout == "exp":  # a cache: no transition acts on what is kept
        return found
    bounds = stability(site.system, promised=promised)
    exponents = lyapunov(site.system, k=1)
    return {
        **found, **bounds.to_dict(), "heads": rounded(exponents.exponents[..., 0].amax(0)),
        "error": rounded(exponents.error[..., 0].amax(0)), "method": exponents.method,
    }  # fmt: skip


def _perturbation(model: nn.Module, ids: Tensor) -> Answer:
    found = perturbation(model, ids, at=ids.shape[1] // 2)
    grown = found.sizes.square().sum(1).sqrt()
    return {"depth": {"a small change of one token": rounded(grown)}, "at": found.at, "eps": found.eps,
            "per_layer": found.per_layer, "nonlinearity": found.nonlinearity}  # fmt: skip


def _said_of_stability(rows: Rows, model: Answer) -> Iterator[Finding]:
    known = answered(rows, "stability")
    grows = [i for i, one in known if one["contractive"] == "no"]
    if grows:
        worst = max(grows, key=lambda i: rows[i]["answers"]["stability"]["norm"] or 0.0)
        more = f" (and {len(grows) - 1} more)" if len(grows) > 1 else ""
        why = rows[worst]["answers"]["stability"]["why"]
        yield Finding(begin(f"{place(rows, worst)}{more} can amplify its state: {why}."), 0.95, layer=worst)
    safe = [i for i, one in known if one["contractive"] == "by construction"]
    if safe:
        yield Finding(f"By construction no step amplifies a state: {layers_of(rows, safe)}.", 0.3)
    every = of_heads(rows, "stability")
    if every:
        largest, i, h = max(every)
        if largest > 0:
            text = f"In {place(rows, i, h)} differences between states grow, e-fold in {1 / largest:.3g} tokens"
            yield Finding(f"{text} (Lyapunov exponent {largest:.3g}).", 0.9, layer=i, head=h)
        elif largest < 0:
            text = (
                f"In {place(rows, i, h)} differences between states fade slowest, e-fold in {-1 / largest:.3g} tokens"
            )
            yield Finding(f"{text}.", 0.35, layer=i, head=h)
    if model:
        grown = model["depth"]["a small change of one token"]
        ratio = grown[-1] / grown[0]
        words = f"grows {ratio:.3g} times" if ratio >= 1 else f"shrinks to {ratio:.0%}"
        yield Finding(f"A small change of one token's embedding {words} through the layers.",
                      0.4 + min(0.4, abs(math.log10(max(ratio, 1e-9))) / 5))  # fmt: skip


def _expressivity(site: Site) -> Answer:
    return expressivity([site.system[:SHOWN]], nonlinear=isinstance(site.layer, Cell)).to_dict()


def _said_of_expressivity(rows: Rows, _: Answer) -> Iterator[Finding]:
    known = answered(rows, "expressivity")
    for what, words in (("parity", "track parity"), ("permutations", "track permutations")):
        can = [i for i, one in known if one[what]["verdict"] == "reached"]
        if can:
            yield Finding(begin(f"{layers_of(rows, can)} can {words}: {known_why(rows, can[0], what)}."), 0.5)
    cannot = [i for i, one in known if one["parity"]["verdict"] == "excluded"]
    if cannot:
        yield Finding(
            f"Parity is out of reach of {layers_of(rows, cannot)}: {known_why(rows, cannot[0], 'parity')}.", 0.4
        )


def known_why(rows: Rows, layer: int, what: str) -> str:
    """Why a verdict on what a layer can express is as it is."""
    return str(rows[layer]["answers"]["expressivity"][what]["why"])


QUESTIONS = (
    Question(
        "stability",
        "Can a state blow up?",
        _stability,
        _perturbation,
        _said_of_stability,
        heads="largest Lyapunov exponent (nats a token)",
        depth="size of a small change",
        reading="Along this text: below 0 differences between states fade, above 0 they grow. A softmax has none.",
        through="The change of the residual stream, in all tokens, relative to that of one token's embedding.",
    ),
    Question("expressivity", "What can the transitions express?", _expressivity, None, _said_of_expressivity),
)
