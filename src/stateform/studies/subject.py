"""What is analysed, and what it reads: a layer, the layers of a model, or the mixers of a pretrained model.

A text is read as tokens; a layer, or a model of numbers, reads a series as it is.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import REGISTRY, accepted, build, resolve
from ..errors import StateformError, require, require_finite, require_finite_weights, require_seed, validate
from ..files import read_json
from ..hub import Opened, lift
from ..hub.supported import kind_of
from ..layer import Past, system_of
from ..models import SequenceModel, open_folder
from ..report.wording import TOKEN
from ..series import NO_NUMBERS, Array, Given, Series, read_series, told_apart
from ..system import System
from ..text import read_text
from ..train import Experiment
from ..train.parent import EXPERIMENT

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SHOWN, EXCERPT = 256, 240
"""Tokens, and bytes of the text, that a report shows."""


@dataclass(frozen=True)
class Look:
    """One layer on its own input."""

    layer: nn.Module
    system: System | None
    """None where there is none: what is known says why."""
    known: dict[str, Any]
    """What else is known of it: entries of its row in the result."""


@dataclass(frozen=True)
class Read:
    """What is read: a text as tokens, or a series."""

    source: str
    """Where the tokens come from."""
    inputs: Tensor
    """Token ids [1,T], or numbers [1,T,d] in float64."""
    shown: Sequence[str] = ()
    """The first tokens, as they are shown; of a series, none."""
    excerpt: str = ""
    """The beginning of the text; empty if only ids are known."""
    series: Series | None = None

    @classmethod
    def of(cls, series: Series) -> Read:
        """Read a series."""
        return cls(series.source, series.values.unsqueeze(0), series=series)

    @property
    def unit(self) -> str:
        """Name what follows one another."""
        return TOKEN if self.series is None else self.series.unit

    def first(self, most: int | None) -> Read:
        """Keep the first tokens or steps, at most so many."""
        series = None if self.series is None else self.series.first(most)
        return replace(self, inputs=self.inputs[:, :most], series=series)

    def to_dict(self) -> dict[str, Any]:
        """Give what a result says of it: "text" or "data"."""
        if self.series is not None:
            return {"data": self.series.to_dict()}
        return {"text": {"source": self.source, "tokens": self.inputs.shape[1], "excerpt": self.excerpt}}


@dataclass(frozen=True)
class Subject:
    """What `analyze` looks at."""

    name: str
    module: nn.Module
    read: Read
    """What it reads, as much as it can."""
    d_model: int | None
    kinds: Sequence[str]
    """A word for each layer."""
    labels: Sequence[str]
    """The name of each layer."""
    looks: Callable[[], Iterator[Look]]
    """The layers, one after the other."""
    whole: SequenceModel | None = None
    """The model, where questions can be asked about all its layers together."""
    is_model: bool = True


def subject_of(
    thing: str | Path | type[nn.Module] | nn.Module | Opened, text: str | Path | Array | None,
    data: Given | None, *, project: bool, d_model: int, n_heads: int | None, d_state: int | None,
    max_length: int, dtype: str, seed: int,
) -> Subject:  # fmt: skip
    """Open the subject; see `analyze` for the arguments.

    Raises:
        StateformError: see `analyze`.
    """
    require_seed(seed)
    text, data = told_apart(text, data)
    series = None if data is None else read_series(data).first(max_length)
    if isinstance(thing, Opened) or kind_of(thing) is not None:
        opened = thing if isinstance(thing, Opened) else Opened(type(thing).__name__, thing, None)  # type: ignore[arg-type]
        if isinstance(opened.model, SequenceModel):
            model = copy.deepcopy(opened.model).to(DTYPES[dtype]).eval()
            return _own(opened.name, model, series or _reading(opened, text, max_length), given=True)
        require(series is None, f"{opened.name} {NO_NUMBERS}")
        return _pretrained(opened, _reading(opened, text, max_length), dtype)
    read: Read | Series | None = series
    if text is None and read is None:
        read = _example(thing, max_length)
    if read is None:
        read = _tokens(text, max_length)
    name, module = _module(thing, d_model, n_heads, d_state, seed)
    module = copy.deepcopy(module).to(DTYPES[dtype]).eval()
    given = isinstance(read, Read) and not read.excerpt
    if isinstance(module, SequenceModel):
        return _own(name, module, read, given)
    require(not given, "token ids are for a model; give a layer a text, whose bytes it reads, or numbers")
    require_finite_weights(module)
    width: int | None = getattr(module, "d_model", None)
    if isinstance(read, Series):
        require(width is not None, f"{name} has no d_model; numbers need one, as many a step")
        read = Read.of(read.fitted(width or 0, name, project=project, seed=seed))
    return Subject(name, module, read, width, [name], [name], lambda: _layer(module, read, seed), is_model=False)


def _own(name: str, model: SequenceModel, read: Read | Series, given: bool) -> Subject:
    """Take the layers of a model of Stateform."""
    fits = _fits(name, model, read, given)
    require_finite_weights(model)
    kinds = [str(block.spec).partition("(")[0] for block in model.blocks]
    labels = [f"{i}: {kind}" for i, kind in enumerate(kinds)]
    return Subject(name, model, fits, model.config.d_model, kinds, labels, lambda: _layers(model, fits.inputs), model)


def embed(data: bytes, d_model: int, seed: int) -> Tensor:
    """Embed bytes as tokens, each a fixed random vector of unit variance: [1,T,d_model] in float64."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(256, d_model, generator=generator, dtype=torch.float64)
    return table[torch.frombuffer(bytearray(data), dtype=torch.uint8).long()].unsqueeze(0)


def printable(byte: int) -> str:
    """Write a byte as it is shown."""
    return chr(byte) if byte < 127 else f"\\x{byte:02x}"


def _layer(layer: nn.Module, read: Read, seed: int) -> Iterator[Look]:
    """Take one layer, which reads numbers as they are, and bytes as fixed random vectors."""
    weight = next(layer.parameters(), torch.empty(0))
    x = read.inputs
    if read.series is None:
        x = embed(bytes(x[0].tolist()), layer.d_model, seed)  # type: ignore[arg-type]
    system = system_of(layer, x.to(weight.dtype))
    with validate(True):
        system.check_values()
    yield Look(layer, system, {})


def _layers(model: SequenceModel, inputs: Tensor) -> Iterator[Look]:
    """Take each layer of a model on its own input, recorded in one run."""
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append((args[0], dict(options.get("shared") or {})))

    mixers: list[Any] = [block.mixer for block in model.blocks]
    hooks = [mixer.register_forward_pre_hook(keep, with_kwargs=True) for mixer in mixers]
    try:
        out = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    with validate(True):
        require_finite(out.logits, f"the logits of this {type(model).__name__}")
    for i, mixer in enumerate(mixers):
        u, shared = seen[i]
        seen[i] = (torch.empty(0), {})
        yield Look(mixer, mixer.system(u, Past(None, shared)) if shared else system_of(mixer, u), {})


def _reading(opened: Opened, text: str | Path | Tensor | None, most: int) -> Read:
    """Read the tokens of a pretrained model."""
    if isinstance(text, Tensor):
        read = _tokens(text, most)
    else:
        source, data = read_text(text)
        read = Read(source, opened.tokens(data, most), excerpt=data[:EXCERPT].decode(errors="replace"))
        require(read.inputs.shape[1] >= 2, f"{source} has {read.inputs.shape[1]} token; expected at least 2")
    return replace(read, shown=opened.decode(read.inputs[:, :SHOWN]))


def _pretrained(opened: Opened, read: Read, dtype: str) -> Subject:
    """Take each mixer of a model of transformers, with the certificate of its System."""
    lifted = lift(opened.model, read.inputs, dtype=DTYPES[dtype])
    names = list(lifted)

    def looks() -> Iterator[Look]:
        for name in names:
            layer, system = lifted.module(name), None
            with suppress(StateformError):  # the certificate says it
                layer, system = lifted.layer(name), lifted[name]
            yield Look(layer, system, {"certificate": lifted.certificate(name, system).to_dict()})

    kinds = [type(lifted.module(name)).__name__ for name in names]
    width = getattr(opened.model.config, "hidden_size", None)
    return Subject(opened.name, opened.model, read, width, kinds, _short(names), looks)


def _short(names: Sequence[str]) -> list[str]:
    """Shorten names of modules by the parts with which all begin."""
    parts = [name.split(".") for name in names]
    same = 0
    while len(parts) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    return [".".join(p[same:]) for p in parts]


# -- before any work ----------------------------------------------------------------------------------------------


def _tokens(text: str | Path | Tensor | None, most: int) -> Read:
    """Read at most so many tokens: the bytes of a text, or ids."""
    if isinstance(text, Tensor):
        whole = not (text.is_floating_point() or text.is_complex() or text.dtype == torch.bool)
        require(whole and (text.ndim == 1 or (text.ndim == 2 and text.shape[0] == 1)),
                f"the tokens are {text.dtype} of shape {list(text.shape)}; expected integers [T] or [1,T]")  # fmt: skip
        ids = text.reshape(1, -1)[:, :most].long()
        read = Read("token ids", ids, [str(i) for i in ids[0, :SHOWN].tolist()])
    else:
        source, data = read_text(text)
        data = data[:most]
        ids = torch.frombuffer(bytearray(data), dtype=torch.uint8).long().unsqueeze(0)
        read = Read(source, ids, [printable(i) for i in data[:SHOWN]], data[:EXCERPT].decode(errors="replace"))
    require(ids.shape[1] >= 2, f"{read.source} has {ids.shape[1]} token; expected at least 2")
    return read


def _module(
    thing: str | Path | type[nn.Module] | nn.Module, d_model: int, n_heads: int | None, d_state: int | None, seed: int
) -> tuple[str, nn.Module]:
    """Find the layer or the model, and what it is called."""
    if isinstance(thing, nn.Module):
        fits = isinstance(thing, SequenceModel) or hasattr(thing, "system")
        require(fits, f"{type(thing).__name__} has no method system(u); give a layer that has, or a model of them")
        return type(thing).__name__, thing
    spec = str(thing) if isinstance(thing, Path) else thing
    if isinstance(spec, str) and is_folder(spec):
        return spec, open_folder(spec)
    name = spec if isinstance(spec, str) else spec.__name__
    cls = resolve(spec)[0] if isinstance(spec, str) else spec
    known = accepted(cls)
    options = {"d_model": d_model, "n_heads": n_heads, "d_state": d_state}
    torch.manual_seed(seed)
    layer: nn.Module = build(spec, **{k: v for k, v in options.items() if k in known and v is not None})
    require(hasattr(layer, "system"), f"{name} has no method system(u): analyze needs layers that give a System")
    return name, layer


def _example(thing: Any, most: int) -> Read | Series | None:
    """Draw an example of the task that a folder's model was trained on; None for models of bytes."""
    if not (isinstance(thing, str | Path) and is_folder(str(thing)) and os.path.isfile(Path(thing) / EXPERIMENT)):
        return None
    task = Experiment.from_dict(read_json(Path(thing) / EXPERIMENT)).task
    if task.tokenizer == "bytes":
        return None
    example, source = task.sample(1, split="test"), f"an example of {task.spec}"
    if task.vocab_size is not None:
        return replace(_tokens(example.inputs, most), source=source)
    there = slice(None) if example.mask is None else example.mask[0]  # without the padding
    return replace(read_series(example.inputs[0, there]), source=source).first(most)


def is_folder(spec: str) -> bool:
    """True if a name is meant as the folder of a model; `./name` is one even where a layer has that name."""
    head = spec.partition("(")[0]
    return head not in REGISTRY and (os.path.isdir(spec) or (".py" not in head and "/" in head))


def _fits(name: str, model: SequenceModel, read: Read | Series, given: bool) -> Read:
    """Select what the model can read of it."""
    config, width = model.config, model.config.d_input
    if isinstance(read, Series):
        require(width is not None, f"{name} {NO_NUMBERS}")
        found = Read.of(read.fitted(width or 0, name))
        return replace(found, inputs=found.inputs.to(model.dtype)).first(config.max_positions)
    require(width is None, f"{name} reads numbers, {width} a step, not tokens; give them as data")
    kind, size, ids = config.tokenizer, config.vocab_size or 0, read.inputs
    require(given or kind == "bytes",
            f"the model's tokenizer is {kind!r}; a text is read as bytes: give ids, analyze(model, ids)")  # fmt: skip
    require(int(ids.max()) < size and int(ids.min()) >= 0,
            f"the tokens reach {int(ids.max())}; the model's vocabulary is 0..{size - 1}")  # fmt: skip
    return read.first(config.max_positions)
