"""How each state fades or turns: the eigenvalues of the transitions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...analysis import spectrum
from ...report import Column, Figure, Panel, View, dig, units
from ...report.figure import BLANK, CELL, FEW, colour, drawing, heatmap, label, map_rows, scatter, short
from ...report.units import MISSING
from ...report.words import capitalised
from ..words import Answer, Rows, answered, layers, layers_of, names, place, rounded
from .question import FIRST, Beside, Finding, Member, Question, Site, Told

EIGENVALUES = 4800
"""How many eigenvalues all layers together keep for drawing."""
SAMPLED = 600
"""Eigenvalues of a layer that are drawn, at most."""
_BINS = 40


def ask(site: Site) -> Answer:
    """Look at the eigenvalues.

    Those of a softmax, whose A_t is I, are of the DSF's coordinates: drawn only where it is alone.
    """
    found, cached = site.spectrum, site.system.readout.cached
    values = found.sample(max(100, min(SAMPLED, EIGENVALUES // site.layers)))
    drawn = None if cached and site.layers > 1 else {"re": rounded(values.real), "im": rounded(values.imag)}
    heads = None if cached else rounded(found.eigenvalues.abs().amax(dim=(0, 1, 3)))
    of = "eta_{t-1}/eta_t" if cached else "A_t"
    return {**found.to_dict(), "of": of, "heads": heads, "eigenvalues": drawn}


def say(rows: Rows, _: Answer) -> Iterator[Finding]:
    """Tell which transitions amplify, turn or flip."""
    known = [(one["abs_max"], i) for i, one in answered(rows, "spectrum") if one["of"] == "A_t"]
    if not known:
        return
    largest, i = max(known)
    if largest > 1 + 1e-9:
        yield Finding(capitalised(f"{place(rows, i)} has a transition with a |λ| of {largest:.4g}, above 1."),
                      0.9, layer=i)  # fmt: skip
    turning = [i for i, one in answered(rows, "spectrum") if one["complex"] and one["of"] == "A_t"]
    if turning:
        s = "s" if len(turning) == 1 else ""
        yield Finding(capitalised(f"{layers_of(rows, turning)} turn{s} the state: some eigenvalues are complex."), 0.35)
    least, i = min((one["real_min"], i) for i, one in answered(rows, "spectrum") if one["of"] == "A_t")
    if least < -1e-3 and i not in turning:
        yield Finding(
            capitalised(f"{place(rows, i)} flips the sign of parts of its state (eigenvalue {least:.2g})."),
            0.45,
            layer=i,
        )


def eigenvalue_range(layer: Mapping[str, Any]) -> str:
    """Write the range of a layer's eigenvalues: of the values where they are real, of the magnitudes otherwise."""
    seen = dig(layer, "identity", "eigenvalue_range") or {}
    kind = "abs" if seen.get("complex") else "real"
    low, high = seen.get(f"{kind}_min"), seen.get(f"{kind}_max")
    if low is None or high is None:
        return MISSING
    text = units.near_one(low) if low == high else f"{units.near_one(low)} to {units.near_one(high)}"
    return f"|λ| {text}" if seen.get("complex") else text


def disks(every: Sequence[tuple[int, str, Any]]) -> Figure | None:
    """Draw the eigenvalues (`re`, `im`) of layers, by position and name, on the unit disk: a panel for each."""
    seen: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, name, values in every:
        re, im = dig(values, "re") or [], dig(values, "im") or []
        points = [(a, b) for a, b in zip(re, im) if a is not None and b is not None]
        if points:
            seen.append((i, name, points))
    reach = {i: max(1.0, *(math.hypot(a, b) for a, b in points)) for i, _, points in seen}
    shared = min(1.5, max(reach.values(), default=1.0))  # one scale for all, but for a layer that is far outside
    panels = [Panel(_disk(points, i, max(shared, reach[i])), name, i, None) for i, name, points in seen]
    if not panels:
        return None
    return Figure(
        "eigenvalues",
        "How does each state fade or turn from token to token?",
        "Eigenvalues of the transition, sampled over this text. On the circle a state is kept for ever, at the centre "
        "it is erased at once; to the left it changes sign, off the real axis it turns.",
        (View("Eigenvalues", tuple(panels), True),),
    )


def _disk(points: Sequence[tuple[float, float]], layer: int, reach: float) -> Any:
    real = all(abs(b) < 1e-9 for _, b in points)
    marker: dict[str, Any] = {"color": colour(layer), "size": 5, "opacity": 0.5, "line": {"width": 0}}
    if real:  # points on a line hide each other; strokes show how dense they are
        marker = {"symbol": "line-ns", "size": 22, "opacity": 0.25, "line": {"color": colour(layer), "width": 1.25}}
    trace = scatter(
        x=short((a for a, _ in points), 4),
        y=short((b for _, b in points), 4),
        mode="markers",
        marker=marker,
        text=[_complex(a, b, real) for a, b in points],
        hovertemplate="%{text}<extra></extra>",
        meta={"layer": layer},
    )
    ring = {"type": "circle", "xref": "x", "yref": "y", "layer": "below"}
    shapes = [
        ring | {"x0": -r, "x1": r, "y0": -r, "y1": r, "line": {"color": f"var(--{c})", "width": w}, "fillcolor": fill}
        for r, c, w, fill in ((1.0, "axis", 1.5, "var(--disk)"), (0.5, "grid", 1, "rgba(0,0,0,0)"))
    ]
    ticks = {
        "tickvals": [-1, 0, 1],
        "range": [-1.12 * reach, 1.12 * reach],
        "showgrid": False,
        "zeroline": True,
        "zerolinewidth": 1,
    }
    axis = ticks | {"zerolinecolor": "var(--grid)", "ticktext": ["−1", "0", "1"]}
    return drawing(
        [trace],
        shapes=shapes,
        xaxis=axis | {"constrain": "domain"},
        yaxis=axis | {"scaleanchor": "x", "ticktext": ["−i", "0", "i"], "constrain": "domain"},
        hovermode="closest",
        margin={"l": 4, "r": 4, "t": 4, "b": 4},
    )


def _complex(a: float, b: float, real: bool) -> str:
    if real:
        return f"λ = {units.near_one(a)}"
    sign = "−" if b < 0 else "+"
    return f"λ = {units.plain(a)} {sign} {units.plain(abs(b))}i<br>|λ| = {units.near_one(math.hypot(a, b))}"


def draw(result: Told) -> Figure | None:
    """Draw eigenvalues on the unit disk; for many layers first how many of each modulus there are, through depth."""
    seen = [dig(layer, "answers", "spectrum", "eigenvalues") for layer in layers(result)]
    drawn = disks([(i, name, values) for i, (name, values) in enumerate(zip(names(result), seen))])
    if drawn is None or len(layers(result)) <= FEW:
        return drawn
    moduli = [[math.hypot(a, b) for a, b in zip(values["re"], values["im"])] if values else [] for values in seen]
    top = max(1.0, max((m for row in moduli for m in row), default=1.0))
    z = []
    for row in moduli:
        counts = [0] * _BINS
        for m in row:
            counts[min(_BINS - 1, int(m / top * _BINS))] += 1
        z.append([c / max(1, len(row)) if c else None for c in counts])
    edges = [(k + 0.5) * top / _BINS for k in range(_BINS)]
    tips = [
        [f"{n}<br>|λ| near {units.plain(e)}: {units.plain(100 * (v or 0))}%" for e, v in zip(edges, row)]
        for n, row in zip(map(label, names(result)), z)
    ]
    trace = heatmap(
        z=[short(row, 4) for row in z],
        x=short(edges, 4),
        colorscale=BLANK,
        zmin=0,
        colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".0%", "tickfont": {"color": "var(--muted)"}},
        customdata=tips,
        hovertemplate="%{customdata}<extra></extra>",
    )
    one = {
        "type": "line",
        "x0": 1,
        "x1": 1,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "var(--axis)", "width": 1},
    }
    axes = {"xaxis": {"title": {"text": "|λ|"}, "showgrid": False}, "yaxis": map_rows(names(result))}
    figure = drawing([trace], shapes=[one], hovermode="closest", **axes)
    first = View("Through depth", (Panel(figure, height=90 + CELL * len(z)),))
    reading = "Through depth: the share of a layer's eigenvalues with each modulus. " + drawn.reading
    return Figure(drawn.key, drawn.title, reading, (first, *drawn.views))


def _beside(result: Told) -> list[Figure | None]:
    every = zip(names(result), layers(result))
    return [disks([(i, name, dig(layer, "dynamics", "eigenvalues")) for i, (name, layer) in enumerate(every)])]


def _sampled(one: Member) -> Answer:
    values = spectrum(one.system[:FIRST]).sample(SAMPLED)
    return {"re": rounded(values.real), "im": rounded(values.imag)}


QUESTION = Question(
    "spectrum",
    "How does each state fade or turn?",
    ask,
    None,
    say,
    heads="largest |λ|",
    reading="The largest modulus of an eigenvalue of the transitions, over 32 tokens of the text. A softmax "
    "has none: it keeps every token.",
    figures=lambda result: [draw(result)],
    column=Column("Max |λ|", numeric=True),
    cell=lambda one: units.near_one(one["abs_max"]) if one.get("of") == "A_t" else MISSING,
    order=4,
)
BESIDE = Beside("dynamics", 80, figures=_beside, layer=_sampled, where=("dynamics", "eigenvalues"))
