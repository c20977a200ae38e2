"""An experiment: a task, a model and how it is trained. All are plain values, checked before anything is made."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ..architectures import accepted, resolve
from ..errors import StateformError, nearest, require
from ..layer.options import checked_fields
from ..layer.spec import file_of, names_file, read_spec, run_file, was_run
from ..models import Classifier, LanguageModel, ModelConfig
from ..models.pattern import expand, named_in
from ..tasks import Task, make_task
from ..text import TooLargeError, parse_toml, read_bytes
from .parent import Parent, key_of, settings

FORMAT = 1
"""Version of what `Experiment.to_dict` gives, and so of its key."""
FROM_TASK = ("vocab_size", "d_input", "n_classes", "pooling", "tokenizer")
"""Settings of a model that the task decides (a classifier's pooling may be chosen)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training. Whatever changes the outcome is here; where it runs is in `Machine`."""

    steps: int = 1000
    """Steps of the optimizer at most."""
    batch_size: int = 64
    """Examples a step takes at once (of all devices together)."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step."""
    bptt: int | None = None
    """Tokens through which gradients go back: longer sequences are cut into pieces, and the state goes on without its
    gradient (truncated back-propagation through time). The memory is that of one piece; each is computed twice."""
    lr: float = 1e-3
    """The highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The shape in which the learning rate falls after the warm-up, to `final_lr`."""
    warmup: float = 0.1
    """The share of the steps in which the learning rate rises from 0, in equal steps."""
    final_lr: float = 0.0
    """The learning rate at the end, as a share of `lr`."""
    weight_decay: float = 0.1
    """Weight decay of the matrices of projections alone, see `SequenceModel.parameter_groups`."""
    decay_all: bool = False
    """Weight decay on every parameter instead (as some published code has it)."""
    beta1: float = 0.9
    """AdamW's averaging of gradients."""
    beta2: float = 0.98
    """AdamW's averaging of their squares."""
    clip: float | None = 1.0
    """The norm to which gradients are cut; None: never."""
    examples: int | None = None
    """The number of examples, used again and again in a new order; None: every batch is new (data sets: all of it)."""
    eval_every: int = 100
    """Steps between validations; a checkpoint is written after each."""
    eval_examples: int = 512
    """Examples of a validation (data sets: at most as many as there are)."""
    test_examples: int = 1024
    """Examples of the test, at each length."""
    test_lengths: tuple[int, ...] | None = None
    """Lengths at which the trained model is tested; None: those of the task."""
    stop_at: float | None = None
    """End the training once the metric of the validation is this good."""
    patience: int | None = None
    """Validations without a better one after which the training ends."""
    keep: Literal["last", "best"] = "last"
    """The weights that are tested and saved: those at the end, or those of the best validation."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Precision of the computation; weights stay in float32 if it is mixed."""
    seed: int = 0
    """Seed of initial weights, training data and dropout. Validation and test data are the same for every seed."""

    def __post_init__(self) -> None:
        if isinstance(self.test_lengths, list):
            object.__setattr__(self, "test_lengths", tuple(self.test_lengths))
        given = checked_fields(self)
        for f in fields(self):  # 1 and 1.0 are the same, and give the same key
            value = given[f.name]
            number = type(value) is int and str(f.type).startswith("float")
            object.__setattr__(self, f.name, float(value) if number else value)
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_examples", "test_examples"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; expected a whole number, 1 or more")
        for name in ("examples", "patience", "bptt"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; expected a whole number, 1 or more")
        require(self.examples is None or self.examples >= self.batch_size,
                f"examples is {self.examples}, fewer than a batch of {self.batch_size}; lower batch_size")  # fmt: skip
        require(0 < self.lr < math.inf, f"lr is {self.lr}; expected a number above 0")
        require(self.clip is None or self.clip > 0, f"clip is {self.clip}; expected a number above 0, or none")
        require(0 <= self.weight_decay < math.inf, f"weight_decay is {self.weight_decay}; expected 0 or more")
        require(self.seed >= 0, f"seed is {self.seed}; expected a whole number, 0 or more")
        for name in ("warmup", "final_lr"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is {value}; expected a share, from 0 to 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; expected a number from 0 to below 1")
        lengths = self.test_lengths
        fits = lengths is None or (
            isinstance(lengths, tuple) and lengths and all(isinstance(n, int) and n > 0 for n in lengths)
        )
        require(fits, f"test_lengths is {lengths!r}; expected whole numbers, 1 or more")


@dataclass(frozen=True)
class Experiment:
    """A task, a model and a training, from which the outcome follows.

    Args:
        task: the task.
        model: the settings of a ModelConfig (`pattern` among them) and options of its mixers, as one flat dict. What
            the task decides (the vocabulary, the classes) is not among them.
        train: how it is trained.
        parent: the run from whose weights the training begins; None: from initial ones, drawn from the seed.

    Raises:
        StateformError: anything that cannot be used, before any work is done.
    """

    task: Task
    model: Mapping[str, Any]
    train: Training = field(default_factory=Training)
    parent: Parent | None = None

    def __post_init__(self) -> None:
        for length in self.test_lengths:
            self.task.check_length(length)
        share, stop_at = self.task.metric == "accuracy", self.train.stop_at
        require(stop_at is None or not share or 0 <= stop_at <= 1,
                f"stop_at is {stop_at}; the task is scored by accuracy: expected a share, from 0 to 1")  # fmt: skip
        limit, longest = self.config.max_positions, max(self.task.length, *self.test_lengths)
        require(limit is None or longest <= limit,
                f"max_positions is {limit}; the model is trained and tested on up to {longest} tokens: raise it, or "
                "lower test_lengths")  # fmt: skip

    @cached_property
    def config(self) -> ModelConfig:
        """Make the configuration of the model, with what the task decides."""
        given = dict(self.model)
        require("pattern" in given, 'the model has no pattern; expected the names of its layers, such as "mamba2*2"')
        for name in FROM_TASK:
            require(name not in given or (name == "pooling" and self.task.answers == "sequence"),
                    f"the task decides the model's {name}; leave it out")  # fmt: skip
        known = {f.name for f in fields(ModelConfig)}
        taken = {name for spec in expand(given["pattern"]) for name in accepted(resolve(spec)[0])}
        for name in given:
            require(name in known | taken, f"the model has no setting {name!r}: {nearest(name, known | taken)}")
        task = self.task
        if self.speaks:
            decided: dict[str, Any] = {"vocab_size": task.vocab_size, "tokenizer": task.tokenizer}
        else:
            decided = {"vocab_size": task.vocab_size, "d_input": task.d_input, "n_classes": task.n_out * task.n_labels}
            if task.answers == "tokens":
                decided["pooling"] = "none"
        return ModelConfig.of(given.pop("pattern"), **given, **decided)

    @property
    def speaks(self) -> bool:
        """True if tokens are answered with tokens: then the model is a LanguageModel, else a Classifier."""
        return self.task.vocab_size is not None and self.task.answers == "tokens"

    @property
    def test_lengths(self) -> tuple[int, ...]:
        """List the lengths at which the model is tested."""
        return self.train.test_lengths or self.task.test_lengths

    @property
    def seeds(self) -> list[int]:
        """List the seeds of what the training draws: its own and, if it has a parent, one from the parent's weights."""
        return [self.train.seed, *([] if self.parent is None else [int(self.parent.weights[:8], 16)])]

    def build(self) -> LanguageModel | Classifier:
        """Make the model, with initial values from PyTorch's current random state."""
        return LanguageModel(self.config) if self.speaks else Classifier(self.config)

    @property
    def name(self) -> str:
        """Name it in a line: the pattern, the task, and the other settings of the model."""
        more = ", ".join(f"{k} {v}" for k, v in self.model.items() if k != "pattern")
        return f"{self.model['pattern']} on {self.task.spec}" + (f" ({more})" if more else "")

    # -- as plain values -----------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, run_files: bool = False) -> Experiment:
        """Make it from {"task": spec or {"name": ..., options}, "model": {...}, "train": {...}}.

        Args:
            values: these. "from" may be the folder of a run: the training begins from its weights, and takes its
                settings where none are given.
            run_files: run the files of the user's own code that task and pattern name (`file.py:Class`). Otherwise they
                must have been run before: code named in a folder is never run unasked.

        Raises:
            StateformError: a part that is missing or unknown (with the nearest), or a value that cannot be used.
        """
        version = values.get("format", FORMAT)
        require(version == FORMAT, f"the experiment is of format {version!r}; this version reads format {FORMAT}")
        values = {k: v for k, v in values.items() if k not in ("format", "sources")}
        if isinstance(values.get("from"), str | Path):
            values = inherited(values)
        for name in values:
            parts = ("task", "model", "train", "from")
            require(name in parts, f"an experiment has no part {name!r}: {nearest(name, parts)}")
        require("task" in values, 'the experiment has no task; name one, e.g. task = "mqar(n_pairs=8)"')
        task, options = values["task"], {}
        if isinstance(task, Mapping):
            require("name" in task, "the table task has no name; expected the name of a task")
            task, options = task["name"], {k: v for k, v in task.items() if k != "name"}
        for spec in _files_named(task, values.get("model")):
            require(run_files or was_run(spec),
                    f"{spec} is code in a file, which is not run unasked; if you trust it, run it first: "
                    f"stateform.architectures.run_file({file_of(spec)!r})")  # fmt: skip
            if run_files:
                run_file(file_of(spec))
        model, train = values.get("model", {}), values.get("train", {})
        for name, part in (("model", model), ("train", train)):
            require(isinstance(part, Mapping), f"{name} is {part!r}; expected a table of settings")
        known = [f.name for f in fields(Training)]
        for name in train:
            require(name in known, f"a training has no setting {name!r}: {nearest(str(name), known)}")
        parent = None if values.get("from") is None else Parent.from_dict(values["from"])
        made = make_task(task, options)
        return cls(made, _with_none(model, ModelConfig), Training(**_with_none(train, Training)), parent)

    def to_dict(self) -> dict[str, Any]:
        """Give all settings, defaults too, as plain numbers, strings, lists and dicts."""
        train = asdict(self.train)
        train["test_lengths"] = list(self.test_lengths)
        if self.train.bptt is None:  # so that keys from before this setting existed stay valid
            del train["bptt"]
        return {
            "format": FORMAT, "task": {"name": self.task.name, **self.task.options()}, "model": dict(self.model),
            "train": train, **({} if self.parent is None else {"from": self.parent.to_dict()}),
        }  # fmt: skip

    @cached_property
    def key(self) -> str:
        """Compute sixteen hexadecimal digits that two experiments share if and only if they are the same."""
        return key_of(self.to_dict())


def inherited(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the values of an experiment, or a sweep: where none are given, take those of the run that `from` names.

    Raises:
        StateformError: a folder that no training wrote, one without weights, or one whose code was not run.
    """
    run = settings(values["from"])
    given = values.get("task")
    named = _files_named(given.get("name") if isinstance(given, Mapping) else given, values.get("model"))
    for spec in _files_named(run["task"].get("name"), run["model"]):
        require(spec in named or was_run(spec),
                f"the run in {values['from']} is made of {spec}, code in a file, which is not run unasked; if you "
                "trust it, name it in the task or the pattern")  # fmt: skip
    merged = dict(values) | {"from": Parent.from_folder(values["from"]).to_dict()}
    if given is None or (isinstance(given, Mapping) and "name" not in given):
        merged["task"] = {**run["task"], **(given or {})}
    if given is not None:  # another task has other lengths
        run["train"].pop("test_lengths", None)
    for part in ("model", "train"):
        own = values.get(part, {})
        merged[part] = {**run[part], **own} if isinstance(own, Mapping) else own
    return merged


def _files_named(task: Any, model: Any) -> list[str]:
    """List the specifications `file.py:Class` that a task and a model's pattern name."""
    pattern = model.get("pattern") if isinstance(model, Mapping) else None
    found = [read_spec(task)[0]] if isinstance(task, str) else []
    found += named_in(pattern) if isinstance(pattern, str) else []
    return [spec for spec in dict.fromkeys(found) if names_file(spec)]


def _with_none(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Replace "none" by None where a field may be None, for which TOML has no word."""
    return {name: None if value == "none" and name in _may_be_none(kind) else value for name, value in values.items()}


@lru_cache
def _may_be_none(kind: type) -> frozenset[str]:
    return frozenset(name for name, hint in get_type_hints(kind).items() if type(None) in get_args(hint))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        StateformError: no such file, or one that is no TOML.
    """
    path = Path(path)
    require(os.path.exists(path), f"there is no file {path}; expected a TOML file")
    return parse_toml(read_bytes(path), path)


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set `part.setting` ("train.lr", "model.d_state", "task.n_pairs") in the nested dict of an experiment."""
    part, dot, setting = name.partition(".")
    require(dot and setting, f"{name!r} names no setting; expected task.NAME, model.NAME or train.NAME")
    if part == "task" and "task" in values:  # options in brackets would otherwise override this one
        given = values["task"]
        beside = dict(given) if isinstance(given, dict) else {"name": given}
        if isinstance(beside.get("name"), str):
            task, options = read_spec(beside.pop("name"))
            values["task"] = {"name": task, **beside, **options}
    table = values.setdefault(part, {})
    require(isinstance(table, dict), f"{part} is {table!r}; expected a table, so that {name} can be set")
    table[setting] = value


def overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Replace some values, each given as `part.setting=value`; the value is written as in TOML, or is a bare word.

    Raises:
        StateformError: text that is no such assignment.
    """
    new: dict[str, Any] = copy.deepcopy(dict(values))
    for text in overrides:
        name, equals, value = text.partition("=")
        require(equals and name.strip(), f"cannot read {text!r}; expected setting=value, e.g. train.lr=3e-3")
        put(new, name.strip(), read_value(value.strip(), name.strip()))
    return new


def read_value(text: str, what: str = "the value") -> Any:
    """Read a TOML value; text that is none is given back as it is. `what` names it in the error if it is too large."""
    try:
        return parse_toml(f"x = {text}", what)["x"]
    except TooLargeError:
        raise
    except StateformError:
        return text
