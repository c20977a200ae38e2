"""Whether all forms of a layer compute the same function."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...forms import exists, in_order, run
from ...layer import system_of
from ...report import Column, Grid, GridRow, Headline, dig, listing, units, visible
from ...report.units import MISSING
from ...report.words import text_of
from ...system.precision import largest, relative_error, tolerance, why_no_proof, wide
from ..words import Answer, layer_row, layers, name_of
from .question import Beside, Told


def certify(layer: nn.Module, x: Tensor) -> Answer:
    """Compare every form of a layer with its recurrence on an input [1,T,d_model]."""
    system = system_of(layer, x)
    want = run(system, "recurrent")
    errors: dict[str, float] = {}
    for form in exists(system):
        got = run(system, form)
        errors[form] = torch.inf if why_no_proof(want) else largest(relative_error(wide(got), wide(want), heads=True))
    allowed, worst = tolerance(torch.float64, x.shape[1]), max(errors.values())
    refused = {name: why.partition(";")[0] for name, why in system.forms().items() if why is not None}
    return {
        "ok": worst <= allowed, "worst": worst, "tolerance": allowed, "dtype": "float64", "length": x.shape[1],
        "forms": errors, "refused": refused,
    }  # fmt: skip


def table(result: Told) -> Grid | None:
    """Tell how far each form is from the step by step recurrence."""
    certified = [(i, layer) for i, layer in enumerate(layers(result)) if dig(layer, "certificate")]
    if not certified:
        return None
    seen = {form for _, layer in certified for form in dig(layer, "certificate", "forms") or {}}
    forms = in_order(seen)
    rows: list[GridRow] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for i, layer in certified:
        passed = dig(layer, "certificate", "ok")
        errors = dig(layer, "certificate", "forms") or {}
        verdict = "agree" if passed else "DIFFER" if passed is False else MISSING
        rows.append(layer_row(i, layer, verdict, *(units.error(errors.get(form)) for form in forms)))
        for form, why in (dig(layer, "certificate", "refused") or {}).items():
            refused.setdefault((visible(form), visible(str(why)).rstrip(".")), []).append(name_of(layer))
    reasons = [f"No {form} for {listing(which)}: {why}." for (form, why), which in refused.items()]
    one = dig(certified[0][1], "certificate")
    note = (
        f"Relative difference from the recurrence, {text_of(one.get('dtype'))}, T = {text_of(one.get('length'))}; "
        f"allowed: {units.error(one.get('tolerance'))}. {MISSING}: the layer has no such form."
    )
    headings = tuple(Column("conv." if form == "convolution" else visible(form), numeric=True) for form in forms)
    columns = (Column("Layer"), Column("Forms"), *headings)
    title = "Do all forms of a layer compute the same function?"
    return Grid("certificate", title, columns, tuple(rows), (note, *reasons))


def _headlines(result: Told) -> Iterator[Headline]:
    certified = [(layer, one) for layer in layers(result) if (one := dig(layer, "certificate"))]
    if certified:
        failed = [name_of(layer) for layer, one in certified if one.get("ok") is False]
        worst = max((one.get("worst") or 0.0 for _, one in certified), default=0.0)
        allowed = units.error(certified[0][1].get("tolerance"))
        if failed:
            detail = f"Forms of {listing(failed)} differ by more than {allowed}: do not trust their other units."
            yield Headline("Forms agree", "No", detail)
        else:
            detail = f"Every form of every layer computes the same function; allowed: {allowed}."
            yield Headline("Forms agree to", units.error(worst) if worst else "every digit", detail)


BESIDE = Beside(
    "what",
    40,
    lambda result, lengths: [table(result)],
    headlines=_headlines,
    layer=lambda one: certify(one.layer, one.first),
    where=("certificate",),
)
