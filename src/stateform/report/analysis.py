"""What an analysis says in words and tables, for the terminal and the page alike; from its dict alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from . import units
from .content import Column, Grid, Row, at, horizons, layers, listing, name_of, thinned, visible
from .units import MISSING

REMARKABLE = 0.2
"""The weight from which on a finding stands on top of the page too, and not in its section alone."""
_ROWS = 12


def subject(result: Mapping[str, Any]) -> str:
    """One line: what was read, and how large it is."""
    kind, many = at(result, "subject", "kind"), at(result, "subject", "layers") or 0
    heads = sum(int(layer.get("heads") or 0) for layer in layers(result))
    one = kind != "model" or many == 1
    parts = ["one layer" if one else f"{many} layers", f"{units.count(heads)} head{'' if heads == 1 else 's'}",
             f"{units.count(at(result, 'subject', 'parameters'))} weights"]  # fmt: skip
    tokens, source = at(result, "text", "tokens"), at(result, "text", "source")
    text = ", ".join(parts)
    text += f", on {units.count(tokens)} tokens" if tokens else ""
    return text + (f" of {visible(str(source))}" if source else "")


def title(result: Mapping[str, Any]) -> str:
    """What was analysed."""
    return visible(str(at(result, "subject", "name") or "unnamed"))


def interrupted(result: Mapping[str, Any]) -> str | None:
    """What to say on top when the analysis was stopped before its end."""
    if result.get("complete", True):
        return None
    done, many = len(layers(result)), at(result, "subject", "layers") or 0
    return (
        f"This analysis was stopped before its end: it shows what was finished by then ({done} of {many} layers begun)."
    )


def certified(result: Mapping[str, Any]) -> str | None:
    """Whether the Systems of a pretrained model compute what its modules compute; None where nothing was certified."""
    found = [(layer, c) for layer in layers(result) if (c := layer.get("certificate"))]
    if not found:
        return None
    refused = [(layer, c) for layer, c in found if c.get("refused")]
    known = [(layer, c) for layer, c in found if not c.get("refused")]
    off = [(layer, c) for layer, c in known if not c.get("ok")]
    parts = []
    if known and not off:
        worst, allowed = (max(float(c[name]) for _, c in known) for name in ("error", "allowed"))
        many = len(known)
        these = f"All {many} layers compute" if many > 1 else "The layer computes"
        parts.append(
            f"{these} what {'their Systems compute' if many > 1 else 'its System computes'}: largest relative error "
            f"{worst:.1e}, {allowed:.1e} allowed ({known[0][1]['dtype']})."
        )
    for layer, c in off:
        parts.append(
            f"{name_of(layer)} does NOT compute what its System computes: relative error {float(c['error']):.1e}, "
            f"{float(c['allowed']):.1e} allowed ({c['dtype']})."
        )
    parts += [f"No System of {name_of(layer)}: {visible(str(c['refused']))}" for layer, c in refused]
    return " ".join(parts)


def findings(result: Mapping[str, Any], question: str | None = None, least: float = 0.0) -> list[str]:
    """The sentences, most remarkable first; those of one question alone where it is named, or from a weight on."""
    said = [f for f in result.get("findings") or [] if float(f.get("weight") or 0.0) >= least]
    return [visible(str(f["text"])) for f in said if question is None or f.get("question") == question]


def questions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and titles of the questions that were asked."""
    return [(str(name), visible(str(q.get("title")))) for name, q in (result.get("questions") or {}).items()]


def refused(result: Mapping[str, Any], question: str) -> list[str]:
    """Why there is no answer to a question: each reason once, with the layers that it is for."""
    why: dict[str, list[str]] = {}
    for layer in layers(result):
        if (reason := at(layer, "refused", question)) is not None:
            why.setdefault(visible(str(reason)), []).append(name_of(layer))
    notes = [f"Not for {_named(names, len(layers(result)))}: {reason}." for reason, names in why.items()]
    if (reason := at(result, "refused", question)) is not None:
        notes.append(f"Not for the model: {visible(str(reason))}.")
    return [note.replace("..", ".") for note in notes]


def _named(names: Sequence[str], every: int) -> str:
    if len(names) == every and every > 1:
        return f"any of the {every} layers"
    return listing(names) if len(names) <= 6 else f"{listing(names[:5])} and {len(names) - 5} more"


def _span(values: Sequence[float | None] | None, write: Any) -> str:
    """Least, middle and largest of what the heads have: "3 – 12 – 40", or the one that they share."""
    known = [v for v in values or [] if v is not None]
    if not known:
        return MISSING
    low, middle, high = (write(v) for v in (min(known), median(known), max(known)))
    return low if low == high else f"{low} · {middle} · {high}"


def _whole(v: float) -> str:
    return units.count(round(v))


def _reach(one: Mapping[str, Any]) -> str:
    """`_span` of the horizons, those that are bounds from below with their sign."""
    texts = dict(horizons(one))
    return _span(list(texts), lambda v: texts.get(v) or _whole(v))


def overview(result: Mapping[str, Any], most: int | None = _ROWS) -> Grid | None:
    """A row for each layer (at most `most`), a column for each question that has a short answer."""
    every = layers(result)
    if not every:
        return None
    asked = set(result.get("questions") or {})
    columns = [Column("Layer"), Column("State", numeric=True)]
    proven = any(layer.get("certificate") for layer in every)
    short: list[tuple[str, Any]] = []
    for name, heading, cell in (
        ("memory", "Tokens back", _reach),
        ("state", "State needed", lambda one: _span(one.get("heads"), _whole)),
        ("spectrum", "Max |λ|", lambda one: units.near_one(one["abs_max"]) if one.get("of") == "A_t" else MISSING),
        ("stability", "Amplifies", lambda one: "never" if one["contractive"] == "by construction" else
         "yes" if one["contractive"] == "no" else "not seen"),
        ("expressivity", "Parity", lambda one: visible(str(at(one, "parity", "verdict")))),
    ):  # fmt: skip
        if name in asked:
            columns.append(Column(heading, numeric=name in ("memory", "state", "spectrum")))
            short.append((name, cell))
    if proven:
        columns.append(Column("Error", numeric=True))
    shown = list(range(len(every))) if most is None else thinned(range(len(every)), most)
    rows = []
    for i in shown:
        layer = every[i]
        grows = layer.get("state_growth")
        size = f"+{units.count(grows)}" if grows else units.count(layer.get("state_size"))
        cells = [cell(one) if (one := at(layer, "answers", name)) else MISSING for name, cell in short]
        cells += [_error(layer.get("certificate"))] if proven else []
        rows.append(Row((name_of(layer), size, *cells), None))
    notes = ["State: numbers carried (+: more with each token)."]
    if {"memory", "state"} & asked:
        notes[0] += " With dots: least · median · most of the heads."
    if any(any(at(layer, "answers", "memory", "limited") or []) for layer in every):
        notes.append("≥: as far back as the text or a head's window goes.")
    if proven:
        notes.append("Error: of the System's output against the module's own, over the largest output.")
    if len(shown) < len(every):
        notes.append(f"{len(shown)} of the {len(every)} layers; all are in the report.")
    return Grid("layers", "Layer by layer", tuple(columns), tuple(rows), tuple(notes))


def _error(certificate: Mapping[str, Any] | None) -> str:
    known = certificate and not certificate.get("refused")
    return f"{float(certificate['error']):.0e}" if certificate and known else MISSING
