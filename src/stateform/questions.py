"""The questions of an analysis: what answers each for one layer, or for a whole model, and what is remarkable in it.

A question is one entry of `QUESTIONS`. The answers are results of `stateform.analysis`, kept as plain numbers; an
answer with `heads` (one number a head) is drawn by the report as a map of depth and heads, one with `depth` (one number
a layer) as a curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .analysis import (  # isort: skip
    Horizon, Spectrum, collapse, contraction, describe, expressivity, gradient_paths, has_weights, horizon, influence,
    lyapunov, perturbation, representation, spectrum, stability, state_need,
)  # fmt: skip
from .layers import Cell
from .system import System

SHOWN = 64
"""Tokens of the maps of effective attention, and on which transitions are written out."""
MAPS, EIGENVALUES = 96, 4800
"""How many maps and eigenvalues all layers together keep for drawing."""
TOLERANCE, SPLITS = 0.01, 8
"""The state that is needed is that for this relative error, looked at so many splits of the text."""
CURVE = 40
"""Points of a curve over distances."""


class Site:
    """One layer of what is analysed, on its own input.

    Args:
        name: of the layer, as the reader sees it.
        layer: with `system(u)`.
        system: of the layer on its input.
        tokens: of the text, as they are shown.
        layers: how many are analysed, which share the room for drawings.
    """

    def __init__(self, name: str, layer: nn.Module, system: System, tokens: Sequence[str], layers: int) -> None:
        self.name, self.layer, self.system, self.tokens, self.layers = name, layer, system, tokens, layers

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues of the transitions."""
        return spectrum(self.system)

    @cached_property
    def horizon(self) -> Horizon:
        """Tokens back that hold 95% of what an output reads."""
        T = self.system.T
        return horizon(self.system, queries=sorted({int(t) for t in torch.linspace(min(15, T - 1), T - 1, 24)}))


@dataclass(frozen=True)
class Finding:
    """A sentence, how remarkable it is (0 to 1), the question it answers and the layer and head it is about."""

    text: str
    weight: float
    question: str = ""
    layer: int | None = None
    head: int | None = None


Answer = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
"""The layers of a result, each with its `answers`."""


@dataclass(frozen=True)
class Question:
    """One part of the analysis.

    Args:
        name: what `only` names it.
        title: the question, as the reader sees it.
        layer: the answer for one layer (None: not a question about a layer).
        model: the answer for a model on token ids (None: not a question about a model).
        found: what is remarkable in the answers, most of all first or not.
        heads: what the answers' numbers of `heads` are, with their unit.
        depth: what the numbers of `depth` in the model's answer are.
        reading: how to read the drawing of the heads (or of the question's own).
        through: how to read the curves through depth.
    """

    name: str
    title: str
    layer: Callable[[Site], Answer] | None = None
    model: Callable[[nn.Module, Tensor], Answer] | None = None
    found: Callable[[Rows, Answer], Iterator[Finding]] = lambda rows, model: iter(())
    heads: str = ""
    depth: str = ""
    reading: str = ""
    through: str = ""


def place(rows: Rows, layer: int, head: int | None = None) -> str:
    """Where something is, in words: "head 3 of layer 2 (mamba2)"."""
    named = "the layer" if len(rows) == 1 else f"layer {layer} ({rows[layer]['kind']})"
    if head is None or rows[layer]["heads"] == 1:
        return named
    return f"head {head}" if len(rows) == 1 else f"head {head} of {named}"


def _begin(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _of(rows: Rows, name: str) -> list[tuple[int, Answer]]:
    """The layers that have an answer to a question."""
    return [(i, row["answers"][name]) for i, row in enumerate(rows) if name in row["answers"]]


def _heads(rows: Rows, name: str) -> list[tuple[float, int, int]]:
    """The numbers of all heads, with layer and head."""
    return [(x, i, h) for i, one in _of(rows, name) for h, x in enumerate(one.get("heads") or []) if x is not None]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _layers(rows: Rows, which: Sequence[int]) -> str:
    """Layers in words, in ranges: "layers 0-3 and 7"."""
    if len(rows) == 1:
        return "the layer"
    if len(which) == len(rows):
        return f"all {len(rows)} layers"
    runs: list[list[int]] = []
    for i in which:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    listed = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"layer{'' if len(which) == 1 else 's'} {listed}"


def rounded(x: Tensor) -> list[float]:
    """As numbers of four digits, enough to draw."""
    return [float(f"{v:.4g}") for v in x.flatten().tolist()]


# -- which token reads which ---------------------------------------------------------------------------------------


def effective_attention(system: System, tokens: Sequence[str], heads: Sequence[int] | None = None) -> Answer:
    """Maps of the effective attention of the first tokens, for some heads (default: all; one where heads mix)."""
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


def _coefficients(site: Site) -> Answer:
    """Maps of the heads whose memory is shortest, longest and evenly between."""
    many = max(1, min(site.system.H, MAPS // site.layers, 12))
    reach = site.horizon.tensor_per_head()
    order = reach.argsort().tolist()
    picked = sorted({order[round(i * (len(order) - 1) / max(1, many - 1))] for i in range(many)})
    return {"maps": effective_attention(site.system, site.tokens, picked)}


# -- spectrum, memory ----------------------------------------------------------------------------------------------


def _spectrum(site: Site) -> Answer:
    """Of a softmax, whose A_t is I, the eigenvalues are those of the DSF's coordinates: drawn only where alone."""
    found, cached = site.spectrum, site.system.readout == "exp"
    values = found.sample(max(100, min(600, EIGENVALUES // site.layers)))
    drawn = None if cached and site.layers > 1 else {"re": rounded(values.real), "im": rounded(values.imag)}
    heads = None if cached else rounded(found.eigenvalues.abs().amax(dim=(0, 1, 3)))
    of = "eta_{t-1}/eta_t" if cached else "A_t"
    return {**found.to_dict(), "of": of, "heads": heads, "eigenvalues": drawn}


def _said_of_spectrum(rows: Rows, _: Answer) -> Iterator[Finding]:
    known = [(one["abs_max"], i) for i, one in _of(rows, "spectrum") if one["of"] == "A_t"]
    if not known:
        return
    largest, i = max(known)
    if largest > 1 + 1e-9:
        yield Finding(_begin(f"{place(rows, i)} has a transition with a |λ| of {largest:.4g}, above 1."),
                      0.9, layer=i)  # fmt: skip
    turning = [i for i, one in _of(rows, "spectrum") if one["complex"] and one["of"] == "A_t"]
    if turning:
        s = "s" if len(turning) == 1 else ""
        yield Finding(_begin(f"{_layers(rows, turning)} turn{s} the state: some eigenvalues are complex."), 0.35)
    least, i = min((one["real_min"], i) for i, one in _of(rows, "spectrum") if one["of"] == "A_t")
    if least < -1e-3 and i not in turning:
        yield Finding(
            _begin(f"{place(rows, i)} flips the sign of parts of its state (eigenvalue {least:.2g})."), 0.45, layer=i
        )


def _said_of_memory(rows: Rows, _: Answer) -> Iterator[Finding]:
    every = _heads(rows, "memory")
    if not every:
        return
    tokens, i, h = max(every)
    middle = median(x for x, *_ in every)
    contrast = min(1.0, math.log2(max(tokens / max(middle, 1.0), 1.0)) / 6)
    text = f"{place(rows, i, h)} keeps {_count(round(tokens), 'token')} (95% of what it reads, median over the text)"
    need = dict(_of(rows, "state")).get(i, {})
    if h < len(need.get("heads") or []):
        text += f"; it needs {_dimensions(need['heads'][h], need)}"
    yield Finding(_begin(f"{text}."), 0.6 + 0.35 * contrast, layer=i, head=h)
    if len(every) > 1:
        near = sum(x <= 4 for x, *_ in every)
        text = f"Half of the {len(every)} heads reach back {_count(round(middle), 'token')} or fewer"
        text += f"; {near} {'keeps' if near == 1 else 'keep'} 4 or fewer" if near else ""
        yield Finding(f"{text}.", 0.5)
    if len(rows) > 3:
        by_layer = [(median(one["heads"]), i) for i, one in _of(rows, "memory") if one.get("heads")]
        (low, a), (high, b) = min(by_layer), max(by_layer)
        if high > 2 * low:
            yield Finding(f"Memory is shortest in layer {a} ({_count(round(low), 'token')}, median over its heads) and "
                          f"longest in layer {b} ({round(high)}).", 0.55)  # fmt: skip


# -- how much state ------------------------------------------------------------------------------------------------


def _state(site: Site) -> Answer:
    found = state_need(site.system, TOLERANCE, splits=SPLITS)
    least, most = found.ranks()
    return {
        "heads": found.per_head(), "dimensions": found.state, "tokens": found.length, "tol": found.tol,
        "exact": found.exact, "within": int((most - least).amax()) if most.numel() else 0,
    }  # fmt: skip


def _dimensions(n: float, need: Answer) -> str:
    """How much state, in words, and of what."""
    if need["dimensions"] is None:
        return f"{_count(int(n), 'dimension')} of state instead of a cache of {need['tokens']} tokens"
    return f"{int(n)} of the {need['dimensions']} dimensions of its state"


def _said_of_state(rows: Rows, _: Answer) -> Iterator[Finding]:
    every = _heads(rows, "state")
    if not every:
        return
    most, i, h = max(every)
    need = rows[i]["answers"]["state"]
    if max(_heads(rows, "memory"), default=(0.0, -1, -1))[1:] != (i, h):  # else it was said with its memory
        text = f"{place(rows, i, h)} needs {_dimensions(most, need)} (to {need['tol']:.0%} of its operator)"
        rest = ", most of all heads" if len(every) > 1 else ""
        yield Finding(_begin(f"{text}{rest}."), 0.5, layer=i, head=h)
    held = [(need, one["dimensions"]) for _, one in _of(rows, "state") if one["dimensions"] for need in one["heads"]]
    if held:
        used, there = sum(need for need, _ in held), sum(n for _, n in held)
        text = f"The {len(held)} heads with a finite state need" if len(held) > 1 else "The one head needs"
        yield Finding(
            f"{text} {used:.0f} of {_count(there, 'dimension')} on this text ({used / there:.0%}).",
            0.5 + 0.35 * (1 - used / there),
        )
    cached = [one["heads"] for _, one in _of(rows, "state") if not one["dimensions"]]
    small = sorted(x for heads in cached for x in heads)
    if len(small) > 1:
        yield Finding(f"Half of the {len(small)} heads with a cache could do with {small[len(small) // 2]:.0f} "
                      "dimensions of state or fewer on this text.", 0.55)  # fmt: skip


# -- stability, expressivity ---------------------------------------------------------------------------------------


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
    known = _of(rows, "stability")
    grows = [i for i, one in known if one["contractive"] == "no"]
    if grows:
        worst = max(grows, key=lambda i: rows[i]["answers"]["stability"]["norm"] or 0.0)
        more = f" (and {len(grows) - 1} more)" if len(grows) > 1 else ""
        why = rows[worst]["answers"]["stability"]["why"]
        yield Finding(_begin(f"{place(rows, worst)}{more} can amplify its state: {why}."), 0.95, layer=worst)
    safe = [i for i, one in known if one["contractive"] == "by construction"]
    if safe:
        yield Finding(f"By construction no step amplifies a state: {_layers(rows, safe)}.", 0.3)
    every = _heads(rows, "stability")
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
    known = _of(rows, "expressivity")
    for what, words in (("parity", "track parity"), ("permutations", "track permutations")):
        can = [i for i, one in known if one[what]["verdict"] == "reached"]
        if can:
            yield Finding(_begin(f"{_layers(rows, can)} can {words}: {known_why(rows, can[0], what)}."), 0.5)
    cannot = [i for i, one in known if one["parity"]["verdict"] == "excluded"]
    if cannot:
        yield Finding(
            f"Parity is out of reach of {_layers(rows, cannot)}: {known_why(rows, cannot[0], 'parity')}.", 0.4
        )


def known_why(rows: Rows, layer: int, what: str) -> str:
    """Why a verdict on what a layer can express is as it is."""
    return str(rows[layer]["answers"]["expressivity"][what]["why"])


# -- depth ---------------------------------------------------------------------------------------------------------


def _collapse(model: nn.Module, ids: Tensor) -> Answer:
    found = collapse(model, ids).to_dict()
    return {"depth": {"as it is": found["with_skip"], "without its skip connections": found["without_skip"]}}


def _said_of_collapse(_: Rows, model: Answer) -> Iterator[Finding]:
    kept, bare = model["depth"].values()
    words = "become alike" if kept[-1] < 0.3 * kept[0] else "stay apart"
    text = f"Tokens {words} through depth: mu(Y)/||Y|| goes from {kept[0]:.3g} to {kept[-1]:.3g}"
    yield Finding(f"{text}; without skip connections to {bare[-1]:.2g}.", 0.7 if words == "become alike" else 0.5)


def _gradients(site: Site) -> Answer:
    """Of the influence of the values, the gates held fixed: the median of a few queries at each distance."""
    found = gradient_paths(site.system)
    g = found.by_distance
    d = sorted({round((len(g) - 1) ** (i / (CURVE - 1))) - 1 for i in range(CURVE)} | {len(g) - 1})
    fit = {"law": found.law, "tau": found.exponential.value, "p": found.power.value}
    return {**fit, "distance": d, "norm": rounded(g[torch.tensor(d)])}


def _said_of_gradients(rows: Rows, _: Answer) -> Iterator[Finding]:
    fading = [(one["tau"], i) for i, one in _of(rows, "gradients") if one["law"] == "exponential" and one["tau"]]
    fading = [(tau, i) for tau, i in fading if tau > 0]
    if fading:
        tau, i = min(fading)
        text = f"{place(rows, i)} fade fastest" if len(fading) > 1 else f"{place(rows, i)} fade exponentially"
        yield Finding(f"Gradients through the values of {text}, e-fold in {_count(round(max(tau, 1)), 'token')}.",
                      0.4, layer=i)  # fmt: skip
    far = [i for i, one in _of(rows, "gradients") if one["law"] == "power"]
    if far and len(far) < len(rows):
        yield Finding(f"In {_layers(rows, far)} gradients fade no faster than a power of the distance.", 0.35)


def _representation(model: nn.Module, ids: Tensor) -> Answer:
    found = representation(model, ids)
    return {"depth": {"effective rank": list(found.ranks)}, **found.to_dict()}


def _said_of_representation(_: Rows, model: Answer) -> Iterator[Finding]:
    ranks, most = model["ranks"], min(model["width"], model["tokens"])
    least = min(range(len(ranks)), key=ranks.__getitem__)
    where = "in the embedding" if least == 0 else f"after layer {least - 1}"
    text = f"The residual stream uses least of its {most} directions {where}: an effective rank of {ranks[least]:.3g}"
    yield Finding(f"{text}, {ranks[-1]:.3g} at the end.", 0.4 + 0.3 * (1 - ranks[least] / most))


QUESTIONS: dict[str, Question] = {
    q.name: q
    for q in (
        Question(
            "memory", "How far back does each head look?", lambda site: site.horizon.to_dict(), None, _said_of_memory,
            heads="tokens back",
            reading="How many tokens back hold 95% of the weight with which an output reads its past, median over the "
            "text.",
        ),
        Question(
            "state", "How much state does each head need?", _state, None, _said_of_state,
            heads="dimensions needed",
            reading=f"The least state that reproduces a head on this text to {TOLERANCE:.0%} of the Frobenius norm of "
            f"its operator: the most over {SPLITS} splits of the text into past and future (Hankel rank).",
        ),
        Question(
            "coefficients", "Which token reads which?", _coefficients, None,
            reading="Effective attention: the weight of each earlier token in the output at a token. Exact.",
        ),
        Question(
            "spectrum", "How does each state fade or turn?", _spectrum, None, _said_of_spectrum,
            heads="largest |λ|",
            reading="The largest modulus of an eigenvalue of the transitions, over 32 tokens of the text. A softmax "
            "has none: it keeps every token.",
        ),
        Question(
            "stability", "Can a state blow up?", _stability, _perturbation, _said_of_stability,
            heads="largest Lyapunov exponent (nats a token)", depth="size of a small change",
            reading="Along this text: below 0 differences between states fade, above 0 they grow. A softmax has none.",
            through="The change of the residual stream, in all tokens, relative to that of one token's embedding.",
        ),
        Question(
            "collapse", "Do the tokens become alike?", None, _collapse, _said_of_collapse,
            depth="distance from the mean, mu(Y) / ||Y||",
            through="The distance of the tokens of the residual stream from their mean, relative to their size: 0 if "
            "all are the same.",
        ),
        Question(
            "gradients", "How fast do gradients fade with distance?", _gradients, None, _said_of_gradients,
            reading="Influence of a value on the outputs after it, gates held fixed; geometric mean over heads.",
        ),
        Question("expressivity", "What can the transitions express?", _expressivity, None, _said_of_expressivity),
        Question(
            "representation", "How much of its width does the stream use?", None, _representation,
            _said_of_representation, depth="effective rank (RankMe)",
            through="exp of the entropy of the singular values of the tokens' features, over all tokens of the text.",
        ),
    )
}  # fmt: skip
"""All questions by name, in the order of the report."""


def findings(rows: Rows, model: Mapping[str, Answer]) -> list[Finding]:
    """What is remarkable in the answers, most of all first."""
    said = [
        Finding(f.text, f.weight, q.name, f.layer, f.head)
        for q in QUESTIONS.values()
        if q.name in model or _of(rows, q.name)
        for f in q.found(rows, model.get(q.name, {}))
    ]
    return sorted(said, key=lambda f: -f.weight)


def about(layer: nn.Module, system: System) -> dict[str, Any]:
    """What a layer is, in a row of the result."""
    grows = system.readout == "exp"
    return {
        "transition": describe(system), "heads": 1 if system.w_out is not None else system.H,
        "state_size": 0 if grows else system.state_size, "state_growth": system.state_size if grows else 0,
        "parameters": sum(p.numel() for p in layer.parameters()),
    }  # fmt: skip
