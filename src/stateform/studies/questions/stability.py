"""Whether a state can blow up."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from ...analysis import contraction, lyapunov, perturbation, stability
from ...analysis.state.excited import carried
from ...report import Column, Grid, dig, units
from ...report.words import capitalised, text_of
from ..words import (
    FAINT,
    Answer,
    Rows,
    answered,
    count,
    has,
    layer_row,
    layers,
    layers_of,
    of_heads,
    place,
    rounded,
    share_read,
)
from .question import Beside, Finding, Question, Site, Told


def ask(site: Site) -> Answer:
    """Bound and measure how the state is amplified."""
    promised = bool(getattr(site.layer, "contractive", False))
    verdict, why = contraction(site.system, promised=promised, found=site.spectrum)
    found = {"contractive": verdict, "why": why, "norm": site.spectrum.norm}
    if site.system.readout.cached:  # a cache: no transition acts on what is kept
        return found
    bounds = stability(site.system, promised=promised)
    exponents = lyapunov(site.system, k=1)
    return {
        **found, **bounds.to_dict(), "heads": rounded(exponents.exponents[..., 0].amax(0)),
        "error": rounded(exponents.error[..., 0].amax(0)), "method": exponents.method,
        "carried": rounded(carried(site.system)),
    }  # fmt: skip


def ask_model(model: nn.Module, ids: Tensor) -> Answer:
    """Follow a small change of one token through the layers."""
    found = perturbation(model, ids, at=ids.shape[1] // 2)
    grown = found.sizes.square().sum(1).sqrt()
    return {"depth": {"a small change of one token": rounded(grown)}, "at": found.at, "eps": found.eps,
            "per_layer": found.per_layer, "nonlinearity": found.nonlinearity}  # fmt: skip


def say(rows: Rows, model: Answer) -> Iterator[Finding]:
    """Tell which states can grow, and how fast differences do."""
    known = answered(rows, "stability")
    grows = [i for i, one in known if one["contractive"] == "no"]
    if grows:
        worst = max(grows, key=lambda i: rows[i]["answers"]["stability"]["norm"] or 0.0)
        more = f" (and {len(grows) - 1} more)" if len(grows) > 1 else ""
        why = rows[worst]["answers"]["stability"]["why"]
        yield Finding(capitalised(f"{place(rows, worst)}{more} can amplify its state: {why}."), 0.95, layer=worst)
    safe = [i for i, one in known if one["contractive"] == "by construction"]
    if safe:
        yield Finding(f"By construction no step amplifies a state: {layers_of(rows, safe)}.", 0.3)
    yield from _said_of_exponents(rows)
    if model:
        grown = model["depth"]["a small change of one token"]
        ratio = grown[-1] / grown[0]
        words = f"grows {ratio:.3g} times" if ratio >= 1 else f"shrinks to {ratio:.0%}"
        yield Finding(f"A small change of one token's embedding {words} through the layers.",
                      0.4 + min(0.4, abs(math.log10(max(ratio, 1e-9))) / 5))  # fmt: skip


def _said_of_exponents(rows: Rows) -> Iterator[Finding]:
    """Tell the largest exponent among the heads whose state is read, and how many heads are hardly read at all."""
    every = [(x, i, h, share_read(rows, i, h)) for x, i, h in of_heads(rows, "stability")]
    used = [one for one in every if one[3] > FAINT]
    if not used:
        return
    largest, i, h, share = max(used)
    weight = f", whose state gives {share:.0%} of what the strongest head's does," if share < 0.995 else ""
    change = f"e-fold in {1 / abs(largest):.3g} tokens" if largest else ""
    if largest > 0:
        text = f"In {place(rows, i, h)}{weight} differences between states grow, {change}"
        yield Finding(f"{text} (Lyapunov exponent {largest:.3g}).", 0.9, layer=i, head=h)
    elif largest < 0:
        text = f"In {place(rows, i, h)}{weight} differences between states fade slowest, {change}"
        yield Finding(f"{text}.", 0.35, layer=i, head=h)
    faint = len(every) - len(used)
    if faint:
        slowest, i, h, share = max(one for one in every if one[3] <= FAINT)
        text = (
            f"Of {count(faint, 'head')} next to nothing is read (below {FAINT:g} of what the strongest head "
            f"gives), so how fast the state fades hardly matters there: in {place(rows, i, h)} by {-slowest:.3g} nats "
            f"a token, where {share:.1g} is read"
        )
        yield Finding(f"{text}.", 0.3, layer=i, head=h)


def table(result: Told) -> Grid | None:
    """Tell whether each layer's state can grow without bound."""
    if not has(result, "identity"):
        return None
    rows = tuple(
        layer_row(
            i,
            layer,
            text_of(dig(layer, "identity", "contractive")),
            units.near_one(dig(layer, "identity", "spectral_radius")),
            text_of(dig(layer, "identity", "contractive_why")),
        )
        for i, layer in enumerate(layers(result))
    )
    columns = (Column("Layer"), Column("Contractive"), Column("Max |λ|", numeric=True), Column("Why"))
    note = "Max |λ|: the largest eigenvalue of the transition seen on this text. At most 1: nothing is amplified."
    return Grid("stability", "Can the state blow up?", columns, rows, (note,))


WORDS = {"by construction": "never", "no": "yes"}
"""Of the table of layers: whether a step amplifies a state, from whether it is contractive."""
QUESTION = Question(
    "stability",
    "Can a state blow up?",
    ask,
    ask_model,
    say,
    heads="largest Lyapunov exponent (nats a token)",
    depth="size of a small change",
    reading="Along this text: below 0 differences between states fade, above 0 they grow. A softmax has none. How "
    "much is read from a head's state, over that of the strongest head, is beside it in the JSON (carried).",
    through="The change of the residual stream, in all tokens, relative to that of one token's embedding.",
    column=Column("Amplifies"),
    cell=lambda one: WORDS.get(one["contractive"], "not seen"),
    order=5,
)
BESIDE = Beside("what", 30, lambda result, lengths: [table(result)])
