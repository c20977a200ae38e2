"""What is kept: which token reads which, how far back, how much state it needs, and how the state fades or turns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from ...analysis import has_weights, influence, state_need
from ...system import System
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
)

MAPS, EIGENVALUES = 96, 4800
"""How many maps and eigenvalues all layers together keep for drawing."""
TOLERANCE, SPLITS = 0.01, 8
"""The state that is needed is that for this relative error, looked at so many splits of the text."""


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
    found, cached = site.spectrum, site.system.readout.cached
    values = found.sample(max(100, min(600, EIGENVALUES // site.layers)))
    drawn = None if cached and site.layers > 1 else {"re": rounded(values.real), "im": rounded(values.imag)}
    heads = None if cached else rounded(found.eigenvalues.abs().amax(dim=(0, 1, 3)))
    of = "eta_{t-1}/eta_t" if cached else "A_t"
    return {**found.to_dict(), "of": of, "heads": heads, "eigenvalues": drawn}


def _said_of_spectrum(rows: Rows, _: Answer) -> Iterator[Finding]:
    known = [(one["abs_max"], i) for i, one in answered(rows, "spectrum") if one["of"] == "A_t"]
    if not known:
        return
    largest, i = max(known)
    if largest > 1 + 1e-9:
        yield Finding(begin(f"{place(rows, i)} has a transition with a |λ| of {largest:.4g}, above 1."),
                      0.9, layer=i)  # fmt: skip
    turning = [i for i, one in answered(rows, "spectrum") if one["complex"] and one["of"] == "A_t"]
    if turning:
        s = "s" if len(turning) == 1 else ""
        yield Finding(begin(f"{layers_of(rows, turning)} turn{s} the state: some eigenvalues are complex."), 0.35)
    least, i = min((one["real_min"], i) for i, one in answered(rows, "spectrum") if one["of"] == "A_t")
    if least < -1e-3 and i not in turning:
        yield Finding(
            begin(f"{place(rows, i)} flips the sign of parts of its state (eigenvalue {least:.2g})."), 0.45, layer=i
        )


def _said_of_memory(rows: Rows, _: Answer) -> Iterator[Finding]:
    every = of_heads(rows, "memory")
    if not every:
        return
    yield from _said_of_sinks(rows)
    far = [(x, i, h) for x, i, h in every if _of(rows, i, "sinks", h) is None and share_read(rows, i, h) > FAINT]
    if far:
        tokens, i, h = max(far)
        middle = median(x for x, *_ in every)
        contrast = min(1.0, math.log2(max(tokens / max(middle, 1.0), 1.0)) / 6)
        text = f"{place(rows, i, h)} keeps {_tokens(rows, tokens, i, h)}"
        text += " (95% of what it reads)" if _limited(rows, i, h) else " (95% of what it reads, median over the text)"
        need = dict(answered(rows, "state")).get(i, {})
        if h < len(need.get("heads") or []):
            text += f"; it needs {_dimensions(need['heads'][h], need, h)}"
        yield Finding(begin(f"{text}."), 0.6 + 0.35 * contrast, layer=i, head=h)
    if len(every) > 1:
        yield Finding(_reach_of_most(rows, every), 0.5)
    if len(rows) > 3:
        by_layer = [(median(one["heads"]), i) for i, one in answered(rows, "memory") if one.get("heads")]
        (low, a), (high, b) = min(by_layer), max(by_layer)
        if high > 2 * low:
            most = f"at least {round(high)}" if any(answered_of(rows, b).get("limited") or []) else str(round(high))
            yield Finding(f"Memory is shortest in layer {a} ({count(round(low), 'token')}, median over its heads) and "
                          f"longest in layer {b} ({most}).", 0.55)  # fmt: skip


def _said_of_sinks(rows: Rows) -> Iterator[Finding]:
    """The head whose first token has most of the weight, and how many others have such a token."""
    sinks = [(x, i, h) for i, one in answered(rows, "memory") for h, x in enumerate(one.get("sinks") or []) if x]
    if not sinks:
        return
    weight, i, h = max(sinks)
    others = len(sinks) - 1
    more = f"; so {'does' if others == 1 else 'do'} {count(others, 'other head')}" if others else ""
    rest = count(round(_of(rows, i, "rest", h)), "token")
    text = (
        f"{place(rows, i, h)} reads to the first token at every position: {weight:.0%} of its weight lies there "
        f"(median over the text), and 95% of the rest in the last {rest}{more}."
    )
    yield Finding(begin(text), 0.7, layer=i, head=h)


def _reach_of_most(rows: Rows, every: Sequence[tuple[float, int, int]]) -> str:
    """How far back half of the heads look, and how many look hardly back at all."""
    near = sum(x <= 4 for x, *_ in every)
    short = f"; {near} {'keeps' if near == 1 else 'keep'} 4 or fewer" if near else ""
    far = sum(_limited(rows, i, h) for _, i, h in every)
    if 2 * far > len(every):
        return f"{far} of the {len(every)} heads reach back as far as the text or their window goes{short}."
    middle = median(x for x, *_ in every)
    return f"Half of the {len(every)} heads reach back {count(round(middle), 'token')} or fewer{short}."


def answered_of(rows: Rows, layer: int) -> Answer:
    """What is known of a layer's memory."""
    return dict(answered(rows, "memory"))[layer]


def _of(rows: Rows, layer: int, name: str, head: int) -> Any:
    """One of the answers about a head's memory; None where it was not asked (in a result of an earlier version)."""
    known = answered_of(rows, layer).get(name) or []
    return known[head] if head < len(known) else None


def _limited(rows: Rows, layer: int, head: int) -> bool:
    return bool(_of(rows, layer, "limited", head))


def _tokens(rows: Rows, tokens: float, layer: int, head: int) -> str:
    """A horizon in words; where it is as long as the text or the window, as a bound from below."""
    text = count(round(tokens), "token")
    if not _limited(rows, layer, head):
        return text
    return (
        f"at least {text}, {'all of its window' if answered_of(rows, layer)['window'] else 'as far as the text goes'}"
    )


# -- how much state ------------------------------------------------------------------------------------------------


def _state(site: Site) -> Answer:
    found = state_need(site.system, TOLERANCE, splits=SPLITS)
    least, most = found.ranks()
    return {
        "heads": found.per_head(), "dimensions": found.state, "tokens": found.length, "tol": found.tol,
        "limited": found.limited(), "exact": found.exact, "within": int((most - least).amax()) if most.numel() else 0,
    }  # fmt: skip


def _dimensions(n: float, need: Answer, head: int) -> str:
    """How much state, in words, and of what; a bound from below where the text is too short to need more."""
    least = "at least " if (need.get("limited") or [])[head : head + 1] == [True] else ""
    if need["dimensions"] is None:
        return f"{least}{count(int(n), 'dimension')} of state instead of a cache of {need['tokens']} tokens"
    return f"{least}{int(n)} of the {need['dimensions']} dimensions of its state"


def _said_of_state(rows: Rows, _: Answer) -> Iterator[Finding]:
    every = of_heads(rows, "state")
    if not every:
        return
    most, i, h = max(every)
    need = rows[i]["answers"]["state"]
    if max(of_heads(rows, "memory"), default=(0.0, -1, -1))[1:] != (i, h):  # else it was said with its memory
        text = f"{place(rows, i, h)} needs {_dimensions(most, need, h)} (to {need['tol']:.0%} of its operator)"
        rest = ", most of all heads" if len(every) > 1 else ""
        yield Finding(begin(f"{text}{rest}."), 0.5, layer=i, head=h)
    held = [
        (need, one["dimensions"]) for _, one in answered(rows, "state") if one["dimensions"] for need in one["heads"]
    ]
    if held:
        used, there = sum(need for need, _ in held), sum(n for _, n in held)
        text = f"The {len(held)} heads with a finite state need" if len(held) > 1 else "The one head needs"
        yield Finding(
            f"{text} {used:.0f} of {count(there, 'dimension')} on this text ({used / there:.0%}).",
            0.5 + 0.35 * (1 - used / there),
        )
    cached = [one["heads"] for _, one in answered(rows, "state") if not one["dimensions"]]
    small = sorted(x for heads in cached for x in heads)
    if len(small) > 1:
        yield Finding(f"Half of the {len(small)} heads with a cache could do with {small[len(small) // 2]:.0f} "
                      "dimensions of state or fewer on this text.", 0.55)  # fmt: skip


QUESTIONS = (
    Question(
        "memory",
        "How far back does each head look?",
        lambda site: site.horizon.to_dict(),
        None,
        _said_of_memory,
        heads="tokens back",
        reading="How many tokens back hold 95% of the weight with which an output reads its past, median over the "
        "text; of a head that reads as far as the text or its window goes, how far that is (≥).",
    ),
    Question(
        "state",
        "How much state does each head need?",
        _state,
        None,
        _said_of_state,
        heads="dimensions needed",
        reading=f"The least state that reproduces a head on this text to {TOLERANCE:.0%} of the Frobenius norm of "
        f"its operator: the most over {SPLITS} splits of the text into past and future (Hankel rank).",
    ),
    Question(
        "coefficients",
        "Which token reads which?",
        _coefficients,
        None,
        reading="Effective attention: the weight of each earlier token in the output at a token. Exact.",
    ),
    Question(
        "spectrum",
        "How does each state fade or turn?",
        _spectrum,
        None,
        _said_of_spectrum,
        heads="largest |λ|",
        reading="The largest modulus of an eigenvalue of the transitions, over 32 tokens of the text. A softmax "
        "has none: it keeps every token.",
    ),
)
