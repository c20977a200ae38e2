"""What a layer is, and how much it carries from token to token."""

from __future__ import annotations

from torch import Tensor, nn

from ...analysis import contraction, describe, spectrum
from ...layer import system_of
from ...report import Column, Grid, dig, units
from ...report.units import MISSING
from ...report.words import text_of
from ..words import Answer, layer_row, layers
from .question import Beside, Told


def identify(layer: nn.Module, x: Tensor) -> Answer:
    """Say what the System of a layer is on an input [1,T,d_model], and whether it amplifies a state."""
    system = system_of(layer, x)
    found = spectrum(system)
    grows = system.readout.cached
    contractive, why = contraction(system, promised=getattr(layer, "contractive", False), found=found)
    return {
        "system": repr(system_of(layer, x[:, :1])), "transition": describe(system),
        "state_size": 0 if grows else system.state_size, "state_growth": system.state_size if grows else 0,
        "contractive": contractive, "contractive_why": why, "spectral_radius": None if grows else found.radius,
        "eigenvalue_range": found.to_dict(),
        "eigenvalue_of": "eta_{t-1}/eta_t, as A_t = I (the DSF's coordinates)" if grows else "A_t",
    }  # fmt: skip


def table(result: Told) -> Grid | None:
    """Tell what each layer is, and how much it carries from token to token."""
    if not layers(result):
        return None
    rows = []
    for i, layer in enumerate(layers(result)):
        growth = dig(layer, "identity", "state_growth")
        rows.append(
            layer_row(
                i,
                layer,
                text_of(dig(layer, "identity", "transition")),
                units.count(dig(layer, "identity", "state_size")),
                MISSING if growth is None else "0" if growth == 0 else f"+{units.count(growth)}",
                units.count(layer.get("parameters")),
                text_of(layer.get("summary")),
                text_of(layer.get("paper")),
            )
        )
    columns = (
        Column("Layer"),
        Column("State transition"),
        Column("State", numeric=True),
        Column("per token", numeric=True),
        Column("Weights", numeric=True),
        Column("In words", page_only=True),
        Column("Source", page_only=True),
    )
    note = "State: the numbers carried from one token to the next. A state that grows per token is a cache."
    return Grid("identity", "What is each layer?", columns, tuple(rows), (note,))


BESIDE = Beside(
    "what",
    10,
    lambda result, lengths: [table(result)],
    layer=lambda one: identify(one.layer, one.first),
    where=("identity",),
)
