"""What a layer can do: whether its state can blow up, what its transitions and coefficients can express."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...analysis import contraction, expressivity, interaction_rank, lyapunov, perturbation, principles, stability
from ...analysis.state.excited import carried
from ...layer import Cell
from .question import (
    FAINT,
    SHOWN,
    Answer,
    Finding,
    Question,
    Rows,
    Site,
    answered,
    begin,
    count,
    layers_of,
    of_heads,
    place,
    rounded,
    share_read,
)  # fmt: skip


def _stability(site: Site) -> Answer:
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
    yield from _said_of_exponents(rows)
    if model:
        grown = model["depth"]["a small change of one token"]
        ratio = grown[-1] / grown[0]
        words = f"grows {ratio:.3g} times" if ratio >= 1 else f"shrinks to {ratio:.0%}"
        yield Finding(f"A small change of one token's embedding {words} through the layers.",
                      0.4 + min(0.4, abs(math.log10(max(ratio, 1e-9))) / 5))  # fmt: skip


def _said_of_exponents(rows: Rows) -> Iterator[Finding]:
    """The largest exponent among the heads whose state is read, with how much is; how many are hardly read at all."""
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


# -- the six principles --------------------------------------------------------------------------------------------

PHRASES = {
    "memory": ("a finite state holds what is read", "no finite state holds what is read"),
    "selectivity": ("a score alone can leave a token out", "no score alone leaves a token out"),
    "position": ("the order of the tokens is seen", "the order of the tokens is not seen"),
    "geometry": ("keys are turned", "keys are scaled and never turned"),
    "scale": ("scores are of order 1", "scores are large"),
    "stability": ("eta bounds the coefficients", "nothing bounds the coefficients"),
}
"""What each principle says of a layer that has its property, and of one that has not."""
OPEN = {"scale": "there are no scalar scores", "stability": "the structure alone does not bound the coefficients"}


def _principles(site: Site) -> Answer:
    found = principles(site.system, nonlinear=isinstance(site.layer, Cell)).to_dict()
    return {"tokens": found.pop("tokens"), "principles": found}


def _said_of_principles(rows: Rows, _: Answer) -> Iterator[Finding]:
    """A sentence for each principle and verdict; the layers that share it are named together."""
    known = [(i, one["principles"]) for i, one in answered(rows, "principles")]
    for k, (name, (yes, no)) in enumerate(PHRASES.items(), 1):
        groups: dict[tuple[bool | None, str], list[tuple[int, Answer]]] = {}
        for i, found in known:
            groups.setdefault((found[name]["holds"], found[name]["premises"]), []).append((i, found[name]))
        for (holds, premise), group in groups.items():
            words = yes if holds else OPEN.get(name, "not known") if holds is None else no
            where = "" if len(rows) == 1 else f" in {layers_of(rows, [i for i, _ in group])}"
            reasons = list(dict.fromkeys(x["why"] for _, x in group))
            why = reasons[0] if len(reasons) == 1 else f"e.g. {reasons[0]}"
            yield Finding(f"Principle {k}, {name}: {words}{where} ({why}{_measured([x for _, x in group])}) "
                          f"[{group[0][1]['source']}; premise: {premise}].", 0.2 - 0.01 * k)  # fmt: skip


def _measured(found: Sequence[Answer]) -> str:
    """The first two things that were measured, over several layers from the least to the largest."""
    text = ""
    for what in list(found[0]["measured"])[:2]:
        values = [v for x in found if (v := x["measured"].get(what)) is not None]
        if values:
            low, high = (f"{v:.0f}" if v == int(v) else f"{v:.3g}" for v in (min(values), max(values)))
            text += f"; {what}: {low if low == high else f'{low} to {high}'}"
    return text


# -- heads of attention --------------------------------------------------------------------------------------------

PAIRS = 256
"""Tokens of whose pairs the operators are taken."""


def _interaction(site: Site) -> Answer:
    system = site.system[:PAIRS]
    found = interaction_rank(system)
    values = found.singular_values[: found.rank + 8]
    told: dict[str, Any] = found.to_dict()
    there = 1 if system.w_out is not None or system.v is None else system.H
    return {**told, "singular_values": rounded(values / values.amax().clamp_min(torch.finfo(values.dtype).tiny)),
            "there": there, "tokens": system.T, "source": "arXiv 2512.15115"}  # fmt: skip


def _said_of_interaction(rows: Rows, _: Answer) -> Iterator[Finding]:
    known = answered(rows, "interaction")
    for exact, enough in ((True, "necessary and sufficient"), (False, "necessary")):
        group = [(i, one) for i, one in known if one["exact"] == exact]
        if group:
            ranks = [one["rank"] for _, one in group]
            span = str(min(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
            which, each = layers_of(rows, [i for i, _ in group]), " each" if len(group) > 1 else ""
            premise = group[0][1]["premises"]
            yield Finding(
                f"The operators of {which} span {span} dimensions{each}: so many heads of attention are {enough} on "
                f"{count(group[0][1]['tokens'], 'token')} [{group[0][1]['source']}, head count; premise: {premise}].",
                0.35 if exact else 0.25,
            )
    shared = [(one["there"] - one["rank"], i, one) for i, one in known if one["rank"] < one["there"]]
    if shared:
        _, i, one = max(shared, key=lambda x: x[0])
        yield Finding(begin(f"{place(rows, i)} has {one['there']} heads, whose weights span {one['rank']} dimensions "
                            "only: some are combinations of others."), 0.45, layer=i)  # fmt: skip


QUESTIONS = (
    Question(
        "stability",
        "Can a state blow up?",
        _stability,
        _perturbation,
        _said_of_stability,
        heads="largest Lyapunov exponent (nats a token)",
        depth="size of a small change",
        reading="Along this text: below 0 differences between states fade, above 0 they grow. A softmax has none. How "
        "much is read from a head's state, over that of the strongest head, is beside it in the JSON (carried).",
        through="The change of the residual stream, in all tokens, relative to that of one token's embedding.",
    ),
    Question("expressivity", "What can the transitions express?", _expressivity, None, _said_of_expressivity),
    Question(
        "principles",
        "Which principles of coefficient dynamics does it follow?",
        _principles,
        None,
        _said_of_principles,
        reading="What the six principles of coefficient dynamics say of a layer by its structure, and what was seen "
        "on the first tokens of the text. Hover for the reason, its source and what it takes for granted.",
    ),
    Question(
        "interaction",
        "How many heads of attention is it worth?",
        _interaction,
        None,
        _said_of_interaction,
        reading="The dimensions that the layer's operators W_ij span over pairs of tokens: a head of attention, with "
        "scalar weights and one value map, spans one.",
    ),
)
