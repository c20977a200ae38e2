"""reduce: a model with as little state as an error allows, as far as weights can hold it, and what the rest would cost.

Layers whose parts are constant (S4D, DSS, S4, LSSL, LRU, S5) become layers with fewer states, see convert/smaller.py.
The reduced system of a layer that varies in time is one of this text alone (convert/reduce_varying.py): it is run on
it, and what the model then makes of the text is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ..analysis.state.state_need import state_need
from ..architectures.registry import REGISTRY, accepted, resolve
from ..convert import Conversion, reduce_varying
from ..convert import reduce as reduce_system
from ..convert.certificate import outputs
from ..convert.smaller import can_be_smaller, smaller
from ..errors import StateformError, require
from ..layer import Convolved, Layer
from ..layer.spec import read_spec
from ..models import SequenceModel
from ..result import Progress, Result, Steps
from ..system import System
from ..system.precision import tolerance
from ..text import read_text
from .runs import Runs, TextScore


@dataclass(frozen=True)
class ReducedLayer:
    """What became of one layer."""

    name: str
    kind: str
    became: str = ""
    """What it was written back as: "s4d(d_state=12)"; empty if it stayed as it is."""
    state: tuple[int, int] | None = None
    """Real numbers of state of a channel or head (of one column of values), before and after; None: a cache."""
    parameters: tuple[int, int] = (0, 0)
    orders: tuple[int, ...] = ()
    """States that each channel's truncation, or each head on this text, needs for `tol`."""
    least: tuple[int, ...] = ()
    """For each head on this text: the least that any system could do with (`analysis.state_need`)."""
    bound: float | None = None
    """The largest error that theory allows: of a channel's gain, over its largest Hankel singular value; of a head on
    this text, of its outputs (Frobenius norms)."""
    error: float | None = None
    """The same error as it was measured, the worst channel or head."""
    ok: bool = True
    """Whether every channel or head is within its bound."""
    alone: float | None = None
    """Nats a token of the model with this layer alone reduced."""
    off: float | None = None
    """||outputs - those of the model as it was|| / ||.||, with this layer alone reduced."""
    why: str = ""
    """Why it is neither written back nor measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return asdict(self)


@dataclass(frozen=True)
class ModelReduction(Result):
    """A reduced model, and a row for each layer; `print` it."""

    model: nn.Module
    """The model with what could be written back: a new one, or, if there was nothing, the one that was given."""
    tol: float
    layers: tuple[ReducedLayer, ...]
    parameters: tuple[int, int]
    tokens: int = 0
    """How many were read; 0 without a text."""
    bytes: bool = False
    """Tokens are bytes."""
    losses: dict[str, float] = field(default_factory=dict)
    """Nats a token: "before", "written" (the model that is returned), "together" (all others reduced on the text)."""
    off: dict[str, float] = field(default_factory=dict)
    """How far the model's outputs are from those before, relative: "written", "together"."""
    complete: bool = True
    """False if it was interrupted: then it holds what was finished."""

    @property
    def written(self) -> list[str]:
        """The names of the layers that have fewer states now."""
        return [layer.name for layer in self.layers if layer.became]

    @property
    def ok(self) -> bool:
        """Whether every layer is within its bound."""
        return all(layer.ok for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {
            "tol": self.tol, "tokens": self.tokens, "parameters": list(self.parameters), "losses": dict(self.losses),
            "off": dict(self.off), "complete": self.complete, "ok": self.ok,
            "layers": [layer.to_dict() for layer in self.layers],
        }  # fmt: skip

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        before, after = self.parameters
        yield Text(f"Reduced: {_sentence(self)}")
        if not self.complete:
            yield Text("Interrupted: what follows was finished.", style="bold yellow")
        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in ("layer", "kind"):
            table.add_column(name, overflow="fold")
        columns: dict[str, Callable[[ReducedLayer], str]] = {"state": _state}
        if self.written:
            columns["parameters"] = lambda row: _change(row.parameters)
        columns |= {"error": lambda row: _small(row.error), "bound": lambda row: _small(row.bound)}
        if self.tokens:
            columns[_unit(self)] = lambda row: _cost(self, row)
        for name in columns:
            table.add_column(name, justify="right")
        for name, row in zip(_short([row.name for row in self.layers]), self.layers, strict=True):
            table.add_row(name, row.became or row.kind, *(cell(row) for cell in columns.values()))
        yield table
        yield from map(Text, _tolerances(self))
        for name, row in zip(_short([row.name for row in self.layers]), self.layers, strict=True):
            if row.why:
                yield Text(f"{name} ({row.kind}): {row.why}.")
            if not row.ok:
                yield Text(f"{name} ({row.kind}): the error is ABOVE its bound.", style="bold red")
        if before != after:
            share = f"{abs(1 - after / before):.1%} {'fewer' if after < before else 'more'}"
            yield Text(f"Parameters: {before:,} before, {after:,} after ({share}).")
        if self.losses:
            yield Text("; ".join(f"{_NAMES[name]}: {_loss(self, x)}" for name, x in self.losses.items()) + ".")
        elif self.off:
            yield Text("Outputs differ by " + ", ".join(f"{x:.2g} ({_NAMES[name]})" for name, x in self.off.items()))
        if any(row.least for row in self.layers):
            yield Text(
                f"State with a colon: of what the layer has, what its heads need on these {self.tokens} tokens. Such "
                "systems hold for this text alone: a report of what it needs, no weights."
            )


_NAMES = {"before": "as it was", "written": "with the layers written back", "together": "with all layers reduced"}


def _sentence(found: ModelReduction) -> str:
    many = len(found.written)
    rest = sum(bool(row.least) for row in found.layers)
    parts = [f"{many} of {len(found.layers)} layers written back with fewer states"]
    if rest:
        parts.append(f"{rest} measured on {found.tokens} tokens")
    return ", ".join(parts) + "."


def _tolerances(found: ModelReduction) -> list[str]:
    """What the tolerance, the error and the bound are of, for each of the two kinds of reduction that there are."""
    said = []
    if found.written:
        said.append(
            f"Written back: the gain of the difference, over the largest Hankel value of its channel, is kept to "
            f"{found.tol:g}; error and bound are of it, in the worst channel."
        )
    if any(row.least for row in found.layers):
        said.append(
            f"On the text: the difference of each head's operator is kept to {found.tol:g} of it (Frobenius norm); "
            "error and bound are of the worst head's outputs, over those outputs, and larger where writes cancel."
        )
    return said


def _state(row: ReducedLayer) -> str:
    if row.became and row.state is not None:
        return f"{row.state[0]} -> {row.state[1]}"
    if not row.least:
        return "-" if row.state is None else str(row.state[0])
    low, high = min(row.orders), max(row.orders)
    return f"{'cache' if row.state is None else row.state[0]}: {low if low == high else f'{low}..{high}'}"


def _short(names: list[str]) -> list[str]:
    """Names of modules without the parts that all of them begin and end with."""
    parts = [name.split(".") for name in names]
    if len(parts) < 2:
        return names
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]


def _change(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} -> {pair[1]:,}"


def _small(x: float | None) -> str:
    return "-" if x is None else f"{x:.2g}"


def _unit(found: ModelReduction) -> str:
    return ("bits/byte" if found.bytes else "perplexity") if found.losses else "outputs off"


def _loss(found: ModelReduction, nats: float) -> str:
    score = TextScore(torch.empty(0), nats)
    return f"{score.bits:.4f} bits per byte" if found.bytes else f"perplexity {score.perplexity:.4g}"


def _cost(found: ModelReduction, row: ReducedLayer) -> str:
    if row.alone is None:
        return _small(row.off)
    score, base = (TextScore(torch.empty(0), x) for x in (row.alone, found.losses["before"]))
    if found.bytes:
        assert score.bits is not None and base.bits is not None
        return f"{score.bits - base.bits:+.2g}"
    assert score.perplexity is not None and base.perplexity is not None
    return f"{score.perplexity / base.perplexity - 1:+.2%}"


@overload
def reduce(model: System, tol: float = 1e-2) -> Conversion: ...


@overload
def reduce(
    model: nn.Module, tol: float = 1e-2, tokens: Tensor | str | Path | None = None, *,
    by: Literal["bound", "error"] = "bound", layers: Sequence[str] | str | None = None, max_length: int = 256,
    limit: float = 5e8, on_progress: Progress | None = None,
) -> ModelReduction: ...  # fmt: skip


def reduce(
    model: nn.Module | System, tol: float = 1e-2, tokens: Tensor | str | Path | None = None, *,
    by: Literal["bound", "error"] = "bound", layers: Sequence[str] | str | None = None, max_length: int = 256,
    limit: float = 5e8, on_progress: Progress | None = None,
) -> ModelReduction | Conversion:  # fmt: skip
    """A model with as little state as an error of `tol` allows, and what that costs on a text.

    The constant layers of a LanguageModel, a Classifier or a Layer are truncated, channel by channel, and written back
    as layers with a smaller d_state: an ordinary model with fewer weights, which saves, streams and trains. The layers
    that vary in time keep their weights. With tokens, each of them is also run as the system of fewest states that is
    within `tol` of it on this very text, alone and all together, and the loss of the model is measured.

    Args:
        model: a LanguageModel, a Classifier, a Layer, or a model of transformers of a supported type. It is not
            changed. Or a System, for `convert.reduce(system, tol)`.
        tol: of a constant channel, the largest gain of the error over its largest Hankel singular value; of a head that
            varies in time, the error of its operator on this text in the Frobenius norm; above 0, below 1.
        tokens: what to measure on: ids [T] or [B,T]; for a model of bytes also a file; for a Layer (or a Classifier of
            numbers) numbers [B,T,d].
        by: what keeps a constant channel to it, the Hankel bound (a guarantee for every input) or the error measured
            over frequencies alone (which is smaller, so that more is left out).
        layers: of these modules alone (`blocks.0.mixer`, ...).
        max_length: tokens of the text that are read: a head costs as many steps of linear algebra, several times over.
        limit: bytes allowed for the matrices of the heads that are reduced together.
        on_progress: called as the work goes on.

    Returns:
        A ModelReduction. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: before any work: a bad tol, another model, unknown layers, tokens that it cannot read.
    """
    if isinstance(model, System):
        return reduce_system(model, tol)
    check_settings(tol, max_length)
    require(by in ("bound", "error"), f'by is {by!r}; expected "bound" or "error"')
    work = _Work(model, float(tol), by, _inputs(model, tokens, max_length), layers, limit, on_progress)
    try:
        work.go()
        work.complete = True
    except KeyboardInterrupt:
        pass
    return work.found()


def check_settings(tol: float, max_length: int) -> None:
    """Raise unless they can be used."""
    whole = isinstance(tol, float | int) and not isinstance(tol, bool)
    require(whole and 0 < tol < 1, f"tol is {tol!r}; expected a number above 0, below 1")
    require(isinstance(max_length, int) and max_length >= 2, f"max_length is {max_length!r}; expected 2 or more")


def _inputs(model: nn.Module, tokens: Tensor | str | Path | None, most: int) -> Tensor | None:
    if tokens is None:
        return None
    if isinstance(tokens, str | Path):
        kind = model.config.tokenizer if isinstance(model, SequenceModel) else None
        require(kind == "bytes", f"a text is read as bytes, which are no tokens of this {type(model).__name__}; give "
                "token ids")  # fmt: skip
        tokens = torch.frombuffer(bytearray(read_text(tokens)[1][:most]), dtype=torch.uint8).long()
    require(isinstance(tokens, Tensor), f"the tokens are a {type(tokens).__name__}; expected ids [T] or [B,T]")
    rank = 3 if isinstance(model, Layer) or (isinstance(model, SequenceModel) and model.embedding is None) else 2
    return tokens[:most] if tokens.ndim == rank - 1 else tokens[:, :most]


class _Work:
    """What is known so far."""

    def __init__(
        self, model: nn.Module, tol: float, by: Literal["bound", "error"], inputs: Tensor | None,
        wanted: Sequence[str] | str | None, limit: float, on_progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.tol, self.by, self.limit = model, tol, by, limit
        self.runs = Runs(model, inputs)
        names = list(self.runs.modules)
        require(names, "the model has no layers")
        wanted = [wanted] if isinstance(wanted, str) else wanted
        missing = [name for name in wanted or [] if name not in names]
        require(not missing, f"there is no layer {missing[:1]}; there are {', '.join(names)}")
        self.names = names if wanted is None else [name for name in names if name in wanted]
        self.rows: dict[str, ReducedLayer] = {}
        self.new: dict[str, Layer] = {}
        self.losses: dict[str, float] = {}
        self.off: dict[str, float] = {}
        self.complete = False
        self.step = Steps(on_progress, len(self.names) + (0 if inputs is None else len(self.names) + 3))

    def go(self) -> None:
        for name in self.names:
            module = self.runs.modules[name]
            self.step(f"{name}: weights")
            self._write(name, module)
        if self.runs.inputs is None:
            return
        self.step("the model as it is")
        before = self.runs()
        self._keep("before", before, before)
        same = self.runs.same()
        changes: dict[str, Any] = {}
        for name in self.names:
            self.step(f"{name}: on the text")
            change = self.new.get(name) or self._on_text(name, same[name])
            if change is None:
                continue
            try:
                score = self.runs({name: change})
            except StateformError as error:
                self.rows[name] = replace(self.rows[name], why=str(error))
                continue
            changes[name] = change
            if isinstance(change, _OnText):
                self.rows[name] = change.told(self.rows[name])
            self.rows[name] = replace(self.rows[name], alone=score.nats, off=score.off(before))
        if self.new:
            self.step("the layers written back")
            self._keep("written", self.runs(self.new), before)
        if len(changes) > len(self.new):
            self.step("all layers together")
            every = {k: c.again() if isinstance(c, _OnText) else c for k, c in changes.items()}
            self._keep("together", self.runs(every), before)
        self.step.end()

    def _keep(self, name: str, score: TextScore, before: TextScore) -> None:
        if score.nats is not None:
            self.losses[name] = score.nats
        if score is not before:
            self.off[name] = score.off(before)

    def _write(self, name: str, module: nn.Module) -> None:
        count = sum(p.numel() for p in module.parameters())
        row = ReducedLayer(name, _kind(module), parameters=(count, count))
        self.rows[name] = row
        if not (isinstance(module, Layer) and can_be_smaller(module)):
            return
        try:
            made = smaller(module, self.tol, by=self.by)
        except StateformError as error:
            self.rows[name] = replace(row, why=str(error))
            return
        row = replace(row, state=made.states, orders=made.orders)
        if made.written:
            self.new[name] = made.layer
            row = replace(
                row, became=_spec(made.layer), bound=float(made.bound.max()), error=float(made.error.max()),
                parameters=(count, sum(p.numel() for p in made.layer.parameters())),
            )  # fmt: skip
        else:
            row = replace(row, why="no state can be left out at this tolerance, in the precision of its weights")
        self.rows[name] = row

    def _on_text(self, name: str, same: float) -> _OnText | None:
        row = self.rows[name]
        if row.state is not None:  # constant, and no state to spare
            return None
        if not same <= 1:
            known = "there is no System of it" if same != same else "its outputs are not those of one linear System"
            why = self.runs.refused.get(name, f"{known} (a nonlinear cell, say)")
            self.rows[name] = replace(row, why=f"{why}: not measured")
            return None
        return _OnText(self.tol, self.limit)

    def found(self) -> ModelReduction:
        model = _with_layers(self.model, self.new) if self.new else self.model
        counts = tuple(sum(p.numel() for p in m.parameters()) for m in (self.model, model))
        tokens = self.runs.inputs
        kind = getattr(getattr(self.model, "config", None), "tokenizer", None)
        return ModelReduction(
            model, self.tol, tuple(self.rows.values()), (counts[0], counts[1]), 0 if tokens is None else
            tokens.shape[0] * tokens.shape[1], kind == "bytes", self.losses, self.off, self.complete,
        )  # fmt: skip


class _OnText:
    """A System, as the one of fewest states that is near it on its own text; some heads at a time."""

    def __init__(self, tol: float, limit: float) -> None:
        self.tol, self.limit = tol, limit
        self.orders: list[int] = []
        self.least: list[int] = []
        self.bound = self.error = 0.0
        self.ok = True
        self.state: int | None = None

    def again(self) -> _OnText:
        return _OnText(self.tol, self.limit)

    def told(self, row: ReducedLayer) -> ReducedLayer:
        state = None if self.state is None else (self.state, max(self.orders))
        return replace(row, state=state, orders=tuple(self.orders), least=tuple(self.least), bound=self.bound,
                       error=self.error, ok=self.ok)  # fmt: skip

    def __call__(self, system: System) -> Tensor:
        system = system.detach()
        B, T, H, n = system.B, system.T, system.H, system.n
        cached = system.readout == "exp"
        each = 8.0 * B * T * (4 * T if cached else 3 * (2 * n if system.is_complex else n) ** 2)
        many = max(1, min(H, int(self.limit // max(each, 1.0)))) if system.w_out is None else H
        parts = []
        for start in range(0, H, many):
            part = system if many >= H else system.select_heads(range(start, min(start + many, H)))
            parts.append(self._reduced(part))
        return torch.cat(parts, 2)

    def _reduced(self, system: System) -> Tensor:
        try:
            need = state_need(system, max(self.tol, 1e-10), limit=4 * self.limit)
            found = reduce_varying(system, self.tol, limit=4 * self.limit)
        except StateformError as error:
            return self._steady(system, error)
        least = need.ranks()[0]
        self.orders += found.orders.amax(0).tolist()
        self.least += least.amax((0, 2)).tolist() if need.splits else [0] * system.H
        self.state = need.state
        y, want, v = outputs(found.system), outputs(system), system.v
        assert v is not None
        size = lambda x: x.double().square().sum((1, 3)).sqrt()  # [B,H]  # noqa: E731
        given = size(v.expand(system.B, -1, -1, -1)).repeat_interleave(system.H // v.shape[2], 1)
        top = size(want).clamp_min(1e-300)
        off, allowed = size(y - want) / top, found.bound * given / top
        self._keep(off, allowed, system)
        return y.to(want.dtype)

    def _steady(self, system: System, refused: StateformError) -> Tensor:
        """A constant system that has no scalar weights (one with an output map, say), by balanced truncation."""
        try:
            found = reduce_system(system, self.tol)
        except StateformError:
            raise refused from None
        self.orders += [found.system.n] * system.H
        self.least += [found.system.n] * system.H
        self.state = system.n * (2 if system.is_complex else 1)
        self._keep(torch.tensor(found.error), torch.tensor(found.tolerance), system)
        return outputs(found.system).to(system.dtype)

    def _keep(self, error: Tensor, allowed: Tensor, system: System) -> None:
        self.error, self.bound = max(self.error, float(error.max())), max(self.bound, float(allowed.max()))
        self.ok &= bool((error <= allowed + tolerance(system.dtype, system.T)).all())


# -- the model with its new layers --------------------------------------------------------------------------------


def _with_layers(model: nn.Module, new: dict[str, Layer]) -> nn.Module:
    """A model of the same class with these layers in the place of its own, and a configuration that says so."""
    if isinstance(model, Layer):
        return new["layer"]
    assert isinstance(model, SequenceModel)
    specs = [
        _respec(spec, new[name]) if (name := f"blocks.{i}.mixer") in new else spec
        for i, spec in enumerate(model.config.layers)
    ]
    config = replace(model.config, pattern=" ".join(specs), n_layers=len(specs), options=_kept(model, specs))
    with torch.random.fork_rng(devices=[]):
        same = type(model)(config)
    made, trained = copy.deepcopy(model), dict(model.named_parameters())  # with what was put on its modules
    made.config, made._fingerprint = config, same.fingerprint
    for block, spec in zip(made.blocks, specs, strict=True):
        block.spec = spec  # type: ignore[assignment]
    for name, layer in new.items():
        made.set_submodule(name, layer := copy.deepcopy(layer))
        for part, p in layer.named_parameters():
            before = trained.get(f"{name}.{part}")
            p.requires_grad_(before is None or before.requires_grad)
    return made


def _kept(model: SequenceModel, specs: list[str]) -> dict[str, Any]:
    """The options for all mixers that some mixer still takes."""
    taken = {name for spec in specs for name in accepted(resolve(spec)[0])}
    return {k: v for k, v in model.config.options.items() if k in taken}


def _inner(module: nn.Module) -> Layer:
    inner = module.layer if isinstance(module, Convolved) else module
    assert isinstance(inner, Layer)
    return inner


def _respec(spec: str, new: Layer) -> str:
    """The specification of a layer with the options of the new one."""
    inner = _inner(new)
    name, options = read_spec(spec)
    kind = _name(inner)
    if name != kind:
        options = {k: v for k, v in inner.config.items() if k != "d_model"}
    options = {**options, "d_state": inner.config["d_state"]}
    return f"{kind}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _spec(layer: Layer) -> str:
    inner = _inner(layer)
    return f"{_name(inner)}(d_state={inner.config['d_state']})"


def _name(layer: nn.Module) -> str:
    return next((x.name for x in REGISTRY.values() if x.cls is type(layer)), type(layer).__name__)


def _kind(module: nn.Module) -> str:
    return _name(module.layer if isinstance(module, Convolved) else module)
