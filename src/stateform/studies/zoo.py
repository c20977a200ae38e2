"""The zoo: every architecture in a row, computed from the layer that is built."""

from __future__ import annotations

import codecs
import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import nn

from ..analysis import Expressivity, contraction, describe, describe_read, expressivity
from ..analysis.structure import TRANSITION
from ..architectures import REGISTRY, accepted, build, described, family_of, place, resolve
from ..contract.draws import redraw
from ..errors import nearest, require, require_seed, validate
from ..files import write_atomically
from ..forms import FORMS, blank_state, in_order
from ..layer import has_system, system_of
from ..result import Result
from ..system import System
from ..text import decoded, read_bytes

MARKS = "<!-- zoo -->", "<!-- /zoo -->"
"""Between these two lines of a Markdown file stands the table."""

LEGEND = (
    "State: all heads, d_model {d_model}; T: for each token of the past. Forms: {forms}. Tracks: what one layer's "
    "transitions were seen to reach (or cannot), as necessary conditions for it; `stateform show NAME` has the reasons."
)


@dataclass(frozen=True)
class Row:
    """One architecture."""

    name: str
    family: str
    title: str
    """Of its family."""
    summary: str
    paper: str
    transition: str
    read: str
    state: str
    """Heads x keys x values of the state (with the normaliser's column), or numbers a token where it grows."""
    state_size: int
    """Real numbers in the state of one row, or in the whole of a window; 0 where it grows."""
    state_growth: int
    """Real numbers that a token adds."""
    forms: dict[str, str | None]
    """None where the form exists, else why not."""
    contractive: str
    contractive_why: str
    parameters: int
    nonlinear: bool
    """The System is the linearisation of a nonlinear recurrence."""
    expresses: Expressivity

    @property
    def exists(self) -> list[str]:
        """The forms that exist."""
        return [name for name, why in self.forms.items() if why is None]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {**vars(self), "expresses": self.expresses.to_dict()}


@dataclass(frozen=True)
class Zoo(Result):
    """The rows: `print(zoo)` for a table, `.to_markdown()`, `.to_dict()`."""

    rows: list[Row]
    d_model: int

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings, lists and dicts."""
        return {"d_model": self.d_model, "layers": [row.to_dict() for row in self.rows]}

    def to_markdown(self) -> str:
        """Write a table in Markdown."""
        head = ("name", "family", "transition A_t", "read", f"state at d_model {self.d_model}", "tracks", "paper")
        lines = [head, ("---",) * len(head)]
        for r in self.rows:
            lines.append((f"`{r.name}`", r.family, r.transition, r.read, r.state, r.expresses.tracks, _link(r.paper)))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        room = options.max_width
        wide = room >= 110
        left_out = () if wide else ("read",) if room >= 66 else ("read", "forms", "arXiv")
        heads = ["name", "transition A_t", "read", "state", "forms", "tracks", "arXiv"]
        cells = {
            r.name: [
                r.name, r.transition, r.read, r.state if wide else _size(r), _letters(r), r.expresses.tracks,
                r.paper.removeprefix("arXiv ") if r.paper.startswith("arXiv ") else r.paper.partition(" ")[0],
            ]
            for r in self.rows
        }  # fmt: skip
        kept = [i for i, head in enumerate(heads) if head not in left_out]
        widths = _widths([[line[i] for i in kept] for line in (heads, *cells.values())], room)
        for title in dict.fromkeys(r.title for r in self.rows):
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            table.show_header = title == self.rows[0].title
            for i, width in zip(kept, widths, strict=True):
                table.add_column(heads[i], width=width, overflow="fold", header_style="dim")
            for r in self.rows:
                if r.title == title:
                    table.add_row(*(Text(cells[r.name][i], style=_style(heads[i], r)) for i in kept))
            yield from (Text(title, style="bold"), table, Text())
        forms = ", ".join(f"{FORMS[name].letter} {name}" for name in in_order(FORMS))
        yield Text(LEGEND.format(d_model=self.d_model, forms=forms), style="dim")


def _widths(lines: list[list[str]], room: int) -> list[int]:
    """Choose widths of columns that fill at most `room`: the widest give way to the others."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    least = [max(len(word) for line in lines for word in line[i].split(" ")) for i in range(len(widths))]
    while sum(widths) + 2 * len(widths) > room:
        spare = [(w if w > m else 0, i) for i, (w, m) in enumerate(zip(widths, least, strict=True))]
        size, i = max(spare)
        if size == 0:  # no column can give way without breaking words
            size, i = max((w, i) for i, w in enumerate(widths))
            if size <= 1:
                break
        widths[i] -= 1
    return widths


def _style(head: str, row: Row) -> str:
    if head == "tracks":
        return "green" if row.expresses.parity.holds else "" if row.expresses.parity.holds is None else "dim"
    return {"name": "bold", "arXiv": "dim"}.get(head, "")


def _size(row: Row) -> str:
    return f"{row.state_growth} T" if row.state_growth else str(row.state_size)


def _letters(row: Row) -> str:
    shown = [FORMS[name] for name in in_order(FORMS) if FORMS[name].of_systems or name in row.exists]
    return "".join(form.letter if form.name in row.exists else "-" for form in shown)


def _link(paper: str) -> str:
    where, _, number = paper.partition(" ")
    place = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(where)
    return paper if place is None else f"[{number}]({place}{number})"


def insert(text: str, table: str) -> str:
    """Put `table` into a Markdown text between its two marks, `<!-- zoo -->` and `<!-- /zoo -->`."""
    start, end = MARKS
    place = re.compile(f"(?<={re.escape(start)}\n).*?(?={re.escape(end)})", re.S)
    require(len(place.findall(text)) == 1, f"there is no place for the table; expected one {start} and {end} below it")
    return place.sub(lambda _: f"\n{table}\n", text)


def insert_into(path: Path, table: str | None) -> None:
    """Put the table between the marks in a file, whose byte-order mark and ends of lines stay what they are.

    Raises:
        StateformError: a file that cannot be read or is no text, or has no such place; without a table, that alone.
    """
    data = read_bytes(path)
    text = decoded(data, path)
    made = insert(text.replace("\r\n", "\n"), table or "")
    if table is not None:
        mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        write_atomically(path, mark + (made.replace("\n", "\r\n") if "\r\n" in text else made).encode())


def zoo(
    names: Sequence[str | type[nn.Module]] | None = None, *, family: str | None = None, d_model: int = 64,
    n_heads: int | None = None, d_state: int | None = None, seed: int = 0,
) -> Zoo:  # fmt: skip
    """List every architecture in a row: transition, read, state, forms, what it can express.

    Args:
        names: layers (default: all that are registered), with options if you like: "qlstm(reversed=True)".
        family: of this family alone.
        d_model: width at which sizes are given.
        n_heads: for the layers that take it (default: each layer's own).
        d_state: likewise.
        seed: of the parameters and inputs at which eigenvalues are looked at.

    Raises:
        StateformError: an unknown name or family (with the nearest), or sizes that do not fit.
    """
    require_seed(seed)
    wanted = sorted(REGISTRY if names is None else names, key=lambda spec: place(_class(spec)))
    known = [family_of(_class(spec))[0] for spec in wanted]
    if family is not None:
        require(family in known, f"there is no family {family!r} here: {nearest(family, set(known))}")
        wanted = [spec for spec, word in zip(wanted, known, strict=True) if word == family]
    sizes = {"d_model": d_model, "n_heads": n_heads, "d_state": d_state}
    return Zoo([row(spec, sizes, seed) for spec in wanted], d_model)


def _class(spec: str | type[nn.Module]) -> type[nn.Module]:
    return resolve(spec)[0] if isinstance(spec, str) else spec


def made(spec: str | type[nn.Module], options: dict[str, Any], seed: int) -> nn.Module:
    """Build the layer in float64, with those of the options that it takes and that are not None."""
    known = accepted(_class(spec))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = build(spec, **{k: v for k, v in options.items() if v is not None and k in known})
    named = spec if isinstance(spec, str) else spec.__name__
    require(has_system(layer), f"{named} has no method system(u): the zoo needs layers that give a System")
    return layer.double().eval()


TOKENS = 24
"""Tokens of an input at which systems are looked at."""
REMEMBERED = 12
"""A part of a System that depends on a token this far back depends on the state, not on a short convolution."""


@torch.no_grad()
def row(spec: str | type[nn.Module], sizes: dict[str, Any], seed: int = 0) -> Row:
    """Describe one layer in a row."""
    layer, cls = made(spec, sizes, seed), _class(spec)
    entry = next((e for e in REGISTRY.values() if e.cls is cls), None)
    generator = torch.Generator().manual_seed(seed)
    width = int(getattr(layer, "d_model", sizes["d_model"]))
    x = torch.randn(2, TOKENS, width, generator=generator, dtype=torch.float64)
    with validate(False):
        system = system_of(layer, x[:1])
        through_state = depends_on_state(layer, x)
        nonlinear = bool(through_state)
        words = describe(system)
        if through_state & set(TRANSITION):
            words = words.replace("from the input", "from input and state")
        settled = nonlinear or system.readout.cached
        systems = [system] if settled else [system, *_draws(layer, x, generator)]
        contractive, why = contraction(system, promised=getattr(layer, "contractive", False), where="on random input")
        family, title = family_of(cls)
        return Row(
            name=spec if isinstance(spec, str) else entry.name if entry else cls.__name__,
            family=family, title=title,
            summary=described(cls)[0] if cls.__doc__ else cls.__name__, paper=entry.paper if entry else "",
            transition=words, read=describe_read(system), state=_state(system),
            state_size=system.held, state_growth=system.growth,
            forms=_forms(layer, system, x[:1]), contractive=contractive, contractive_why=why,
            parameters=sum(p.numel() for p in layer.parameters()),
            nonlinear=nonlinear, expresses=expressivity(systems, nonlinear=nonlinear),
        )  # fmt: skip


def _forms(layer: nn.Module, system: System, x: torch.Tensor) -> dict[str, str | None]:
    """List every form of a layer, with None where it exists and else the reason why not."""
    forms = system.forms()
    own = getattr(layer, "forms", None)
    if own is None:
        return forms
    exists: list[str] = own(x)
    return {name: None if name in exists else forms.get(name) or "" for name in dict.fromkeys([*forms, *exists])}


def _state(system: System) -> str:
    return " and ".join(map(_state_of_one, system.systems))


def _state_of_one(system: System) -> str:
    if system.readout.cached:
        return f"{system.state_size} a token" + (f", the last {system.window}" if system.window else "")
    sizes = list(blank_state(system, 1)["S"].shape[1:])
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return " x ".join(map(str, sizes)) + (" complex" if system.is_complex else "")


def depends_on_state(layer: nn.Module, x: torch.Tensor) -> set[str]:
    """Find the parts of a layer's System, of those that say what is kept and written, that depend on tokens far before
    theirs. If there are any, the layer is a nonlinear recurrence, and its System the linearisation along this input;
    but a chain is made of what its own Systems read.

    Args:
        layer: with `system`.
        x: two inputs [2,T,d_model].
    """
    config = getattr(layer, "config", {})
    far = max([REMEMBERED, *(2 * config[name] for name in ("d_conv", "block") if isinstance(config.get(name), int))])
    length = x.shape[1]
    x = x.repeat(1, math.ceil((far + 8) / length), 1)
    other = torch.cat([x[1:, :1], x[:1, 1:]], 1)
    a, b = (system_of(layer, u)[far:] for u in (x[:1], other))
    if a.readout.cached or len(a.systems) > 1:  # what a chain is made of are reads, of Systems that are linear
        return set()
    parts = b.tensors()
    return {
        name
        for name, part in a.tensors().items()
        if name not in ("q", "d", "eta", "eta_floor") and not torch.allclose(part, parts[name], rtol=1e-9, atol=1e-12)
    }


def _draws(layer: nn.Module, x: torch.Tensor, generator: torch.Generator) -> Iterator[System]:
    """Draw systems of the layer for other parameters, and for inputs from small to where every gate saturates."""
    for how in ("", "own", "wide", "wide"):
        drawn = copy.deepcopy(layer)
        if how:
            redraw(drawn, generator, how)
        for scale in (1.0, 8.0, 64.0):
            yield system_of(drawn, scale * x)
