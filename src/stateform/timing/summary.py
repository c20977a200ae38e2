"""A benchmark in words and tables, for the terminal and the page alike; made from its dict alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from ..report import Column, Grid, GridRow, answer, dig, listing, units, visible
from ..report.table import opening
from ..report.units import MISSING

TITLES = {
    "forward": ("How long does a forward pass take?", "One sequence of T tokens, no gradients."),
    "training": ("How long do forward and backward take?", "Gradients of the input and of all weights."),
    "decode": ("How long does the next token take?", "One token from a state that stands for so many."),
    "memory": ("How much memory is held at once?", "What operations make, their results included; not the weights."),
}
"""By mode: its question, and how it was measured."""
SECTIONS = {
    "equal": "Equal", "forward": "Forward", "training": "Training", "decode": "Decoding", "memory": "Memory"
}  # fmt: skip
"""Headings of the page."""
COLUMNS = {
    "forward": "T = {tokens}",
    "training": "{rows} × {tokens}",
    "decode": "at {tokens}",
    "memory": "forward, {rows} × {tokens}",
    "memory of training": "training, {rows} × {tokens}",
}
"""Headings of cases."""


def pairs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the pairs of a result."""
    return list(result.get("pairs") or [])


def subject(result: Mapping[str, Any]) -> str:
    """Say in one line what was timed, and on what."""
    settings, machine = result.get("settings") or {}, result.get("machine") or {}
    versions = [f"{name} {number}" for name, number in (result.get("versions") or {}).items()]
    device = machine.get("device")
    where = machine.get("cpu") if device in (None, "cpu") else device
    threads = machine.get("threads")
    parts = [
        f"{len(pairs(result))} pairs", f"width {settings.get('d_model')}", str(settings.get("dtype")),
        f"{where}, {threads} thread{'' if threads == 1 else 's'}", *versions,
    ]  # fmt: skip
    return visible(", ".join(parts))


def interrupted(result: Mapping[str, Any]) -> str | None:
    """Say if the benchmark was stopped before its end, or could not measure a layer of ours; None if neither."""
    said = [visible(f"{pair['name']} failed: {pair['failed']}.") for pair in pairs(result) if "failed" in pair]
    if not result.get("complete", True):
        said.append("This benchmark was stopped before its end: it shows what was measured by then.")
    return " ".join(said) or None


def grids(result: Mapping[str, Any]) -> list[Grid]:
    """Lay out the tables: whether the parties are equal, then one for each mode."""
    found = [equality(result)]
    found += [grid for mode in TITLES if (grid := times(result, mode)) is not None]
    return [grid for grid in found if grid is not None]


def equality(result: Mapping[str, Any]) -> Grid | None:
    """Lay out how far each rival is from our layer with the same weights."""
    rows, notes = [], []
    for pair in pairs(result):
        for party in pair.get("parties") or []:
            if party.get("kind") != "rival":
                continue
            errors = party.get("errors") or {}
            cells = [units.error(errors.get(mode)) for mode in ("forward", "decode", "training")]
            rows.append(
                GridRow((visible(pair["name"]), visible(party["name"]), visible(party["package"]), *cells), None)
            )
            said = "; ".join(map(str, party.get("notes") or []))
            if said:
                notes.append(visible(f"{pair['name']}, {party['name']}: {said}."))
    if not rows:
        return None
    columns = (Column("Layer"), Column("Beside"), Column("Of"), Column("y", numeric=True),
               Column("steps", numeric=True), Column("gradient", numeric=True))  # fmt: skip
    text = "Largest difference from our layer with the same weights, relative to the largest value."
    return Grid("equal", "Do they compute the same?", columns, tuple(rows), (text, *notes))


def times(result: Mapping[str, Any], mode: str) -> Grid | None:
    """Lay out what was measured in one mode: a row for each party, two columns for each case."""
    cases = cases_of(result, mode)
    if not cases:
        return None
    columns = [Column("Layer"), Column("")]
    for case in cases:
        columns += [Column(COLUMNS[case[0]].format(rows=case[1], tokens=case[2]), numeric=True), Column("", True)]
    rows: list[GridRow] = []
    reasons: dict[str, list[str]] = {}
    for pair in pairs(result):
        by_case = {(c["mode"], c["rows"], c["tokens"]): c for c in pair.get("cases") or []}
        for i, party in numbered(pair):
            cells: list[str] = []
            for case in cases:
                found = dig(by_case.get(case), "found", party["name"])
                cells += [_amount(found), _ratio(found, party)]
                if (reason := dig(by_case.get(case), "left_out", party["name"])) is not None:
                    reasons.setdefault(str(reason), []).append(f"{pair['name']}: {party['name']}")
            if any(cell != MISSING for cell in cells[::2]):
                rows.append(GridRow((visible(pair["name"]), visible(party["name"]), *cells), i))
    if not rows:
        return None
    notes = [f"{TITLES[mode][1]} ×: how many times as much as stateform."]
    if mode != "memory":
        notes[0] += " ±: half the way from the least to the largest of the rounds."
    notes += [visible(f"Left out: {listing(sorted(set(names)))}: {reason}.") for reason, names in reasons.items()]
    return Grid(mode, TITLES[mode][0], tuple(columns), tuple(rows), tuple(notes))


def cases_of(result: Mapping[str, Any], mode: str) -> list[tuple[str, int, int]]:
    """List the cases of a mode: its full name, rows and tokens."""
    every = [(c["mode"], c["rows"], c["tokens"]) for pair in pairs(result) for c in pair.get("cases") or []]
    return [case for case in dict.fromkeys(every) if case[0].split()[0] == mode]


def _amount(found: Mapping[str, Any] | None) -> str:
    if not found:
        return MISSING
    if "bytes" in found:
        return units.size(found["bytes"])
    middle = found["median"]
    share = 50 * (found["high"] - found["low"]) / middle if middle else 0.0
    return f"{units.milliseconds(middle)} ±{share:.0f}%"


def _ratio(found: Mapping[str, Any] | None, party: Mapping[str, Any]) -> str:
    ratio = None if not found or party.get("kind") == "ours" else found.get("ratio")
    return "" if ratio is None else units.times(ratio)


def tables(result: Mapping[str, Any]) -> list[RenderableType]:
    """Lay the benchmark out for a terminal of 80 columns or more: the table of equality, then one for each mode.

    Args:
        result: what `bench` found, as plain values (the content of its JSON file). Missing parts are left out.
    """
    parts = opening("Stateform benchmark", subject(result), interrupted(result))
    for grid in grids(result):
        parts += answer(_once(grid))
    return parts


def _once(grid: Grid) -> Grid:
    """Leave the name of a layer in the first of its rows alone."""
    rows, last = [], ""
    for row in grid.rows:
        name, *rest = row.cells
        rows.append(GridRow(("" if name == last else name, *rest), row.layer))
        last = name
    return Grid(grid.key, grid.title, grid.columns, tuple(rows), grid.notes)


def numbered(pair: Mapping[str, Any]) -> list[tuple[int | None, Mapping[str, Any]]]:
    """Number the parties, for their colours; the floor and the copy, which bound them from below, have none."""
    every = enumerate(pair.get("parties") or [])
    return [(None if party["kind"] in ("floor", "copy") else i, party) for i, party in every]
