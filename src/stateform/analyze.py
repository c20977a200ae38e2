"""A layer or a model on a text: its memory, state, stability, expressivity, layer by layer and head by head."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._errors import StateformError, nearest, require, validate
from ._machine import machine, stateform_version
from ._printed import Printed
from ._text import read_text
from .compare import DTYPES, Progress, embed, printable
from .experiments import Experiment
from .experiments.train import EXPERIMENT, read_json
from .layers import REGISTRY, Past, accepted, build, resolve
from .models import SequenceModel, open_folder
from .questions import QUESTIONS, Question, Site, about, findings
from .state import write_atomically
from .system import System
from .timing import system_of


@dataclass
class Analysis(Printed):
    """What `analyze` found: `print(analysis)` for sentences and tables, `.html()` and `.to_dict()` for the rest."""

    result: dict[str, Any]

    @property
    def complete(self) -> bool:
        """False if it was interrupted: then it holds what was finished."""
        return bool(self.result["complete"])

    @property
    def sentences(self) -> list[str]:
        """The findings, most remarkable first."""
        return [finding["text"] for finding in self.result["findings"]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return self.result

    def html(self) -> str:
        """One self-contained page with interactive figures."""
        from .report import render_analysis  # Plotly is slow to import and not needed until now

        return render_analysis(self.result)

    def save_html(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        write_atomically(Path(path), self.html().encode())

    def save_json(self, path: str | Path) -> None:
        """Write the numbers, whole or not at all."""
        write_atomically(Path(path), (json.dumps(self.result, indent=1) + "\n").encode())

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from .report import analysis_tables

        yield from analysis_tables(self.result)

    def _repr_html_(self) -> str:
        import html

        return f'<iframe srcdoc="{html.escape(self.html())}" style="width:100%;height:85vh;border:0"></iframe>'


def analyze(
    thing: str | Path | type[nn.Module] | nn.Module, text: str | Path | Tensor | None = None, *,
    only: Sequence[str] | str | None = None, d_model: int = 64, n_heads: int | None = None,
    d_state: int | None = None, max_length: int = 1024, dtype: str = "float64", seed: int = 0,
    on_progress: Progress | None = None,
) -> Analysis:  # fmt: skip
    """Look at a layer, or at every layer of a model, on a text.

    A model is run once; each of its layers is then looked at by itself, on the input that it had there, so that one
    System is held at a time. A layer reads the bytes of the text as fixed random vectors, as in `compare`.

    Args:
        thing: a registered name, with options ("mamba2(d_state=16)"), a file "path/file.py:Class", a class, a layer, a
            LanguageModel or Classifier, or the folder of one that `save_pretrained` or a training wrote.
        text: a file whose bytes are the tokens (default: an example of its task for a folder that a training wrote,
            else Python's own documentation), or token ids [T] or [1,T] for a model with another tokenizer.
        only: names of questions (`stateform.questions.QUESTIONS`); default: all.
        d_model: width of a layer that is built here; n_heads and d_state for those that take them.
        n_heads: see d_model.
        d_state: see d_model.
        max_length: tokens of the text that are read.
        dtype: in which all is computed.
        seed: of the weights and the embedding of a layer that is built here.
        on_progress: called as the work goes on.

    Returns:
        An Analysis. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: before any work: an unknown name or question, an unreadable or empty text, a folder that holds
            no model, a model that has no bytes for tokens.
    """
    questions = _questions(only)
    require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    require(max_length >= 2, f"max_length is {max_length}; expected 2 tokens or more")
    example = _example(thing) if text is None else None
    text = text if example is None else example[1]
    source, ids = _tokens(text, max_length)
    source = source if example is None else example[0]
    name, subject = _subject(thing, d_model, n_heads, d_state, seed)
    subject = copy.deepcopy(subject).to(DTYPES[dtype]).eval()
    model = subject if isinstance(subject, SequenceModel) else None
    if model is not None:
        ids = _fits(model, ids, isinstance(text, Tensor))
    else:
        require(not isinstance(text, Tensor), "token ids are for a model; give a layer a text, whose bytes it reads")
        alone = [q for q in questions if q.layer is not None]
        require(not only or len(alone) == len(questions),
                f"{', '.join(q.name for q in questions if q.layer is None)}: about the layers of a model together; "
                "give a model, or leave it out")  # fmt: skip
        questions = alone
    shown = [printable(int(i)) if not isinstance(text, Tensor) else str(int(i)) for i in ids[0, :256]]
    kinds = [name] if model is None else [str(block.spec).partition("(")[0] for block in model.blocks]
    result: dict[str, Any] = {
        "stateform": stateform_version(), "created": datetime.now().isoformat(timespec="seconds"), "machine": machine(),
        "text": {"source": source, "tokens": ids.shape[1], "excerpt": "" if isinstance(text, Tensor) else
                 bytes(int(i) for i in ids[0, :240]).decode(errors="replace")},
        "settings": {"d_model": getattr(subject, "d_model", None) if model is None else model.config.d_model,
                     "batch": 1, "dtype": dtype, "seed": None if model is not None else seed},
        "subject": {"name": name, "kind": "layer" if model is None else "model", "layers": len(kinds),
                    "parameters": sum(p.numel() for p in subject.parameters())},
        "questions": {q.name: {x: getattr(q, x) for x in ("title", "heads", "depth", "reading", "through")}
                      for q in questions},
        "complete": False, "layers": [], "model": {}, "refused": {}, "findings": [],
    }  # fmt: skip
    total = 1 + sum(len(kinds) * (q.layer is not None) + (q.model is not None and model is not None) for q in questions)
    done = 0
    report = on_progress or (lambda what, done, total: None)

    def step(what: str) -> None:
        nonlocal done
        report(what, done, total)
        done += 1

    try:
        with torch.no_grad(), validate(False):
            step(f"{name} reads {ids.shape[1]} tokens")
            for i, (layer, system) in enumerate(_systems(subject, ids, seed)):
                label = name if model is None else f"{i}: {kinds[i]}"
                row = {"name": label, "kind": kinds[i], **about(layer, system), "answers": {}, "refused": {}}
                result["layers"].append(row)
                site = Site(label, layer, system, shown, len(kinds))
                for q in questions:
                    if q.layer is not None:
                        step(f"{label}: {q.name}")
                        _answer(q.name, row["answers"], row["refused"], lambda q=q, site=site: q.layer(site))
            for q in questions:
                if q.model is not None and model is not None:
                    step(f"{name}: {q.name}")
                    _answer(q.name, result["model"], result["refused"], lambda q=q: q.model(model, ids))
        result["complete"] = True
    except KeyboardInterrupt:
        pass
    result["findings"] = [asdict(f) for f in findings(result["layers"], result["model"])]
    report("done", total, total)
    return Analysis(result)


def _answer(name: str, answers: dict[str, Any], refused: dict[str, str], ask: Any) -> None:
    """Keep the answer to a question, or why there is none. What is not finite is None: JSON has no other name."""
    try:
        answers[name] = _finite(ask())
    except StateformError as error:
        refused[name] = str(error)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- before any work ----------------------------------------------------------------------------------------------


def _questions(only: Sequence[str] | str | None) -> list[Question]:
    names = list(QUESTIONS) if not only else [only] if isinstance(only, str) else list(only)
    for name in names:
        require(name in QUESTIONS, f"unknown question {name!r}: {nearest(name, QUESTIONS)}")
    return [q for q in QUESTIONS.values() if q.name in names]


def _tokens(text: str | Path | Tensor | None, most: int) -> tuple[str, Tensor]:
    """Where the tokens come from, and at most so many of them, [1,T]."""
    if isinstance(text, Tensor):
        whole = not (text.is_floating_point() or text.is_complex() or text.dtype == torch.bool)
        require(whole and (text.ndim == 1 or (text.ndim == 2 and text.shape[0] == 1)),
                f"the tokens are {text.dtype} of shape {list(text.shape)}; expected integers [T] or [1,T]")  # fmt: skip
        source, ids = "token ids", text.reshape(1, -1).long()
    else:
        source, data = read_text(text)
        ids = torch.frombuffer(bytearray(data[:most]), dtype=torch.uint8).long().unsqueeze(0)
    require(ids.shape[1] >= 2, f"{source} has {ids.shape[1]} token; expected at least 2")
    return source, ids[:, :most]


def _subject(
    thing: str | Path | type[nn.Module] | nn.Module, d_model: int, n_heads: int | None, d_state: int | None, seed: int
) -> tuple[str, nn.Module]:
    """The layer or the model, and what it is called."""
    if isinstance(thing, nn.Module):
        fits = isinstance(thing, SequenceModel) or hasattr(thing, "system")
        require(fits, f"{type(thing).__name__} has no method system(u); give a layer that has, or a model of them")
        return type(thing).__name__, thing
    spec = str(thing) if isinstance(thing, Path) else thing
    if isinstance(spec, str) and _is_folder(spec):
        return spec, open_folder(spec)
    name = spec if isinstance(spec, str) else spec.__name__
    cls = resolve(spec)[0] if isinstance(spec, str) else spec
    known = accepted(cls)
    options = {"d_model": d_model, "n_heads": n_heads, "d_state": d_state}
    torch.manual_seed(seed)
    layer: nn.Module = build(spec, **{k: v for k, v in options.items() if k in known and v is not None})
    require(hasattr(layer, "system"), f"{name} has no method system(u): analyze needs layers that give a System")
    return name, layer


def _example(thing: Any) -> tuple[str, Tensor] | None:
    """An example of the task that the model in a folder was trained on, and its name; None for models of bytes."""
    if not (isinstance(thing, str | Path) and _is_folder(str(thing)) and (Path(thing) / EXPERIMENT).is_file()):
        return None
    task = Experiment.from_dict(read_json(Path(thing) / EXPERIMENT)).task
    require(task.vocab_size is not None, f"the model in {thing} reads numbers; analyze reads token ids")
    return None if task.tokenizer == "bytes" else (f"an example of {task.spec}", task.sample(1, split="test").inputs)


def _is_folder(spec: str) -> bool:
    """Whether a name is meant as the folder of a model; `./name` is one even where a layer has that name."""
    head = spec.partition("(")[0]
    return head not in REGISTRY and ".py" not in head and ("/" in head or Path(spec).is_dir())


def _fits(model: SequenceModel, ids: Tensor, given: bool) -> Tensor:
    """The tokens that the model can read."""
    kind, size = model.config.tokenizer, model.config.vocab_size or 0
    require(model.embedding is not None, "the model reads numbers; analyze reads token ids")
    require(given or kind == "bytes",
            f"the model's tokenizer is {kind!r}; a text is read as bytes: give ids, analyze(model, ids)")  # fmt: skip
    require(int(ids.max()) < size and int(ids.min()) >= 0,
            f"the tokens reach {int(ids.max())}; the model's vocabulary is 0..{size - 1}")  # fmt: skip
    return ids[:, : model.config.max_positions]


# -- the layers, one after the other ------------------------------------------------------------------------------


def _systems(subject: nn.Module, ids: Tensor, seed: int) -> Iterator[tuple[nn.Module, System]]:
    """Each layer with its System on its own input; a model's inputs are recorded in one run of it."""
    if not isinstance(subject, SequenceModel):
        weight = next(subject.parameters(), torch.empty(0))
        x = embed(bytes(ids[0].tolist()), subject.d_model, seed).to(weight.dtype)  # type: ignore[arg-type]
        yield subject, system_of(subject, x)
        return
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append((args[0], dict(options.get("shared") or {})))

    mixers: list[Any] = [block.mixer for block in subject.blocks]
    hooks = [mixer.register_forward_pre_hook(keep, with_kwargs=True) for mixer in mixers]
    try:
        subject(ids)
    finally:
        for hook in hooks:
            hook.remove()
    for i, mixer in enumerate(mixers):
        u, shared = seen[i]
        seen[i] = (torch.empty(0), {})
        yield mixer, mixer.system(u, Past(None, shared)) if shared else system_of(mixer, u)
