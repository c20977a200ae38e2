"""A card for one architecture: its equations, parts, options and parameters, and an example that runs."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import nn

from ..analysis import equations, realisation
from ..architectures import REGISTRY, accepted, described, resolve
from ..errors import require, require_seed
from ..forms import in_order
from ..layer import has_state, system_of
from ..result import Result
from ..system import System
from ..system.shapes import layout
from .zoo import Row, made, row

SIZES = ("d_model", "n_heads", "d_state")


@dataclass(frozen=True)
class Part:
    """A tensor of the System."""

    name: str
    axes: str
    """B batch, t tokens, T = t micro steps, H heads, n keys, p values, o outputs, i inputs."""
    shape: tuple[int, ...]
    constant: bool
    dtype: str


@dataclass(frozen=True)
class Option:
    """An argument of the layer."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Card(Result):
    """What `show` found: `print(card)`, `.to_dict()`."""

    row: Row
    body: str
    """The layer's own equations and remarks."""
    equations: list[str]
    realisation: list[str]
    """As h_t = Lambda_t h_{t-1} + B_t u_t, y_t = C_t h_t + D_t u_t."""
    parts: list[Part]
    flags: str
    """What the System is besides its tensors."""
    state: dict[str, tuple[int, ...]]
    """What is carried from token to token: names and shapes, one row."""
    options: list[Option]
    variants: dict[str, dict[str, tuple[str, str]]]
    """Options that change the dynamics: for each, what is changed, from and to."""
    parameters: dict[str, tuple[int, ...]]
    example: str
    d_model: int

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        plain: dict[str, Any] = {**vars(self), "row": self.row.to_dict()}
        return plain | {"parts": [asdict(x) for x in self.parts], "options": [asdict(x) for x in self.options]}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        r = self.row
        yield Text.assemble((r.name, "bold"), "  ", (", ".join(x for x in (r.title, r.paper) if x), "dim"))
        yield Text(r.summary)
        if self.body:
            yield from (Text(), Text(self.body))
        yield from (_head("As a system"), _lines(self.equations))
        if r.nonlinear:
            yield Padding(
                Text("linearised along its trajectory: the recurrence is nonlinear", style="dim"), (0, 0, 0, 2)
            )
        yield from (_head("In the framework's letters"), _lines(self.realisation))
        sizes = "" if r.read == "softmax" else " (heads x keys x values)"
        facts = [
            ("transition", r.transition),
            ("read", r.read),
            ("state", r.state + sizes),
            ("forms", ", ".join(in_order(r.exists))),
            ("contractive", f"{r.contractive}: {r.contractive_why}"),
        ]
        yield from (_head("What it is"), _table(facts))
        e = r.expresses
        verdicts = [(name, v.word, v.why) for name, v in e.verdicts().items()]
        yield from (_head("What it can express"), _table([("recall", "", e.recall), *verdicts]))
        if self.variants:
            yield _head("What options change")
            yield _table([(o, what, f"{a} -> {b}") for o, d in self.variants.items() for what, (a, b) in d.items()])
        yield _head(f"Parts of the system, for 8 tokens at d_model {self.d_model}")
        rows = [
            (x.name, f"[{','.join(x.axes)}]", _shape(x.shape), "constant" if x.constant else "per token", x.dtype)
            for x in self.parts
        ]
        yield from (_table(rows), Padding(Text(self.flags, style="dim"), (0, 0, 0, 2)))
        yield from (_head("State, one row"), _table([(name, _shape(shape)) for name, shape in self.state.items()]))
        yield from (_head("Options"), _table([(x.name, x.default, x.meaning) for x in self.options]))
        yield _head(f"Parameters: {r.parameters}")
        yield _table([(name, _shape(shape)) for name, shape in self.parameters.items()])
        yield from (_head("Example"), _lines(self.example.splitlines()))


def _head(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def _lines(lines: list[str]) -> Padding:
    return Padding(Text("\n".join(lines)), (0, 0, 0, 2), expand=False)


def _table(rows: Sequence[tuple[str, ...]]) -> Padding:
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for i in range(len(rows[0]) if rows else 0):
        table.add_column(style="cyan" if i == 0 else "", overflow="fold")
    for line in rows:
        table.add_row(*(Text(cell) for cell in line))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def show(spec: str | type[nn.Module], *, d_model: int = 64, seed: int = 0, **options: Any) -> Card:
    """Show one architecture: equations, parts, options, parameters, what it can express, and an example call.

    Args:
        spec: a registered name, with options in brackets if you like, a file "path/file.py:Class", or a class.
        d_model: width at which sizes are given.
        seed: of the parameters and inputs at which eigenvalues are looked at.
        options: of the layer.

    Raises:
        StateformError: an unknown name or option (with the nearest ones), or sizes that do not fit.
    """
    require_seed(seed)
    cls, given = resolve(spec) if isinstance(spec, str) else (spec, {})
    given = {**options, **given}
    unknown = [name for name in options if name not in accepted(cls)]
    require(not unknown, f"{cls.__name__} has no option {', '.join(unknown)}; it has {', '.join(accepted(cls))}")
    sizes = {"d_model": d_model, **given}
    this = row(spec, sizes, seed)
    layer = made(spec, sizes, seed).float()
    with torch.no_grad():
        system = system_of(layer, torch.zeros(2, 8, d_model))
        probe = torch.randn(1, 3, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = system_of(made(spec, sizes, seed), probe)
    assert has_state(layer)
    start = layer.init_state(1)
    parts = [
        Part(name, layout(name, x), tuple(x.shape), one.is_constant(name), str(x.dtype).removeprefix("torch."))
        for one in system.systems
        for name, x in one.tensors().items()
    ]
    body, arguments = documented(cls)
    return Card(
        row=this, body=body, equations=equations(exact), realisation=realisation(exact), parts=parts,
        flags=_flags(system),
        state={name: tuple(x.shape) for name, x in start.tensors.items()},
        options=[
            Option(name, "required" if p.default is p.empty else repr(p.default), arguments.get(name, ""))
            for name, p in accepted(cls).items()
        ],
        variants=_variants(spec, cls, sizes, this, seed),
        parameters={name: tuple(p.shape) for name, p in layer.named_parameters()},
        example=_example(spec, d_model, options), d_model=d_model,
    )  # fmt: skip


def documented(cls: type[nn.Module]) -> tuple[str, dict[str, str]]:
    """Find what a layer says of itself after its first line, and the meaning of each of its arguments."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", (inspect.getdoc(cls) or "").partition("\nArgs:\n")[2], re.M)
    paragraphs = [p.strip("\n") for p in described(cls)[2].split("\n\n")]
    body = "\n\n".join(p if re.search("^ ", p, re.M) else " ".join(p.split("\n")) for p in paragraphs if p)
    return body, {name: " ".join(meaning.split()) for name, meaning in found}


def _flags(system: System) -> str:
    return "; then ".join(map(_flags_of_one, system.systems))


def _flags_of_one(system: System) -> str:
    words = [f'readout "{system.readout}"']
    words += ['eta = "sum"'] if system.eta == "sum" else []
    floor = system.eta_floor
    words += [f"eta_floor = {floor:g}"] if isinstance(floor, int | float) else []
    words += [f"micro = {system.micro}"] if system.micro > 1 else []
    words += [f"window = {system.window}"] if system.window else []
    words += ["exclusive: the read takes S_{t-1}"] if system.exclusive else []
    return ", ".join(words)


COMPARED = {
    "transition": lambda r: r.transition,
    "read": lambda r: r.read,
    "state": lambda r: r.state,
    "forms": lambda r: ", ".join(in_order(r.exists)),
    "contractive": lambda r: r.contractive,
    "tracks": lambda r: r.expresses.tracks,
}


def _variants(
    spec: str | type[nn.Module], cls: type[nn.Module], sizes: dict[str, Any], this: Row, seed: int
) -> dict[str, dict[str, tuple[str, str]]]:
    """Tell what each other value of an option with few values changes in the row."""
    head = spec.partition("(")[0] if isinstance(spec, str) else spec
    found = {}
    for name, value in _choices(cls):
        now = sizes.get(name, accepted(cls)[name].default)
        if value == now:
            continue
        other = row(head, {**sizes, name: value}, seed)
        changed = {k: (f(this), f(other)) for k, f in COMPARED.items() if f(this) != f(other)}
        if changed:
            found[f"{name}={value!r}"] = changed
    return found


def _choices(cls: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """List the options that are a bool or one of a few strings, with each of their values."""
    try:
        hints = typing.get_type_hints(cls.__init__)
    except Exception:  # annotations may name what exists for type checkers alone
        return
    for name in accepted(cls):
        if hints.get(name) is bool:
            yield from ((name, False), (name, True))
        elif typing.get_origin(hints.get(name)) is typing.Literal:
            yield from ((name, value) for value in typing.get_args(hints[name]))


def _example(spec: str | type[nn.Module], d_model: int, options: dict[str, Any]) -> str:
    if isinstance(spec, str):
        given = "".join(f", {k}={v!r}" for k, v in options.items())
        make = f'sf.build("{spec}", d_model={d_model}{given})'
    else:
        entry = next((e for e in REGISTRY.values() if e.cls is spec), None)
        given = "".join(f", {k}={v!r}" for k, v in options.items())
        make = f'sf.build("{entry.name}", d_model={d_model}{given})' if entry else f"{spec.__name__}({d_model}{given})"
    return f"""import torch
import stateform as sf

layer = {make}
x = torch.randn(2, 100, {d_model})  # batch, time, width
y, state = layer(x, return_state=True)
y_t, state = layer.step(x[:, -1], state)  # one token more
system = layer.system(x)  # print(system), system.forms(), ..."""
