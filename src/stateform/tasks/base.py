"""A task: examples, drawn from a seed or read from files; the question they ask, and how answers are scored."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import StateformError, nearest, require
from ..layer.options import checked_fields
from ..layer.spec import class_from_file, names_file, read_spec

IGNORED = -100
"""The label of a position that asks for nothing (of numbers: NaN)."""
Split = Literal["train", "valid", "test"]
"""A part of a task's examples, by name."""
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""The splits, in the order of their use."""


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Args:
        inputs: token ids [B,T], int64; or numbers [B,T,d_input], float32.
        labels: if each token is answered: ids [B,T], int64, `IGNORED` where nothing is asked, or numbers
            [B,T,n_out], float32, NaN where nothing is asked. If the sequence is answered: classes [B,n_labels], int64.
        mask: [B,T], bool, false for the padding after a shorter sequence; None: no padding.
    """

    inputs: Tensor
    labels: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Any) -> Batch:
        """Select rows by a slice, or a tensor of indices."""
        return Batch(self.inputs[rows], self.labels[rows], None if self.mask is None else self.mask[rows])

    @property
    def asked(self) -> Tensor:
        """Mark where something is asked, bool: [B,T], or [B,n_labels] if sequences are answered."""
        x = self.labels
        return ~x.isnan().any(-1) if x.is_floating_point() else x != IGNORED

    def to(self, device: torch.device | str) -> Batch:
        """Move it to a device."""
        moved = [None if x is None else x.to(device) for x in (self.inputs, self.labels, self.mask)]
        assert moved[0] is not None and moved[1] is not None
        return Batch(moved[0], moved[1], moved[2])


@dataclass(frozen=True, kw_only=True)
class Task:
    """The base of all tasks. A task is a frozen dataclass: its fields are its options, all with defaults.

    Subclasses say what goes in (`vocab_size`, or `d_input`) and what is asked (`answers`, `n_out`). They draw examples
    in `draw` from a numpy RandomState, or read those of a data set in `whole`. `oracle` solves the task from its inputs
    alone, as a reader who knows the rule would.
    """

    length: int = 64
    """Tokens of a training example."""

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    """Where the task comes from."""
    answers: ClassVar[Literal["tokens", "sequence"]] = "tokens"
    """The parts that are answered: "tokens", each with a token or `n_out` numbers, or the "sequence" as a whole."""
    metric: ClassVar[Literal["accuracy", "mse", "bits"]] = "accuracy"
    """The score: the share of right labels, the mean squared error, or bits per token."""
    summary: ClassVar[str] = ""
    solvable: ClassVar[bool] = True
    """True if `oracle` knows the answers; of pictures, recordings and texts it does not."""
    folder: ClassVar[str] = ""
    """The folder in STATEFORM_DATA that the task reads by default, where it cannot do without one."""

    # -- what a task says -----------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int | None:
        """Count the token ids, of inputs and answers together; None for inputs that are numbers."""
        raise NotImplementedError

    @property
    def d_input(self) -> int | None:
        """Count the numbers of a token; None for inputs that are token ids."""
        return None

    @property
    def tokenizer(self) -> Literal["bytes"] | None:
        """Name the tokenizer that makes text of the ids: "bytes" if they are its bytes."""
        return None

    @property
    def n_out(self) -> int:
        """Count the classes of a sequence's label, or the numbers of a token's answer."""
        return self.vocab_size or 0

    @property
    def n_labels(self) -> int:
        """Count the labels of a sequence, if sequences are answered."""
        return 1

    @property
    def min_length(self) -> int:
        """Give the length of the shortest training example; each batch draws a length from it up to `length`."""
        return self.length

    @property
    def test_lengths(self) -> tuple[int, ...]:
        """List the lengths at which a trained model is tested; the first is that of training."""
        return (self.length,)

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        """Draw n examples of `length` tokens, taking every random number from rng."""
        raise NotImplementedError

    def oracle(self, batch: Batch) -> Tensor:
        """Find the right answers [like labels] from the inputs; positions that ask for nothing may hold anything."""
        raise StateformError(f"the task {self.name} has no rule that gives its answers: they are in the data alone")

    def whole(self, split: Split) -> Batch | None:
        """Read all examples of a split, if the task is a data set; None if examples are drawn without end."""
        return None

    def contents(self) -> str | None:
        """Compute a hash of the data that examples are read from; None: they are drawn, and follow from the options.

        Raises:
            StateformError: data that do not exist.
        """
        parts = [(split, self.whole(split)) for split in SPLITS]
        if all(batch is None for _, batch in parts):
            return None
        found = hashlib.sha256()
        for split, batch in parts:
            for x in () if batch is None else (batch.inputs, batch.labels, batch.mask):
                found.update(f"{split} {None if x is None else (x.dtype, tuple(x.shape))}".encode())
                if x is not None:
                    found.update(x.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        return found.hexdigest()

    # -- what follows ---------------------------------------------------------------------------------------------

    def sample(
        self, n: int, *, seed: int | Sequence[int] = 0, split: Split = "train", length: int | None = None
    ) -> Batch:
        """Draw n examples: the same for the same arguments on every machine, different in every split.

        Args:
            n: how many, 1 or more (of a data set: drawn from it, with replacement only if it has fewer).
            seed: a whole number, or several.
            split: "train", "valid" or "test".
            length: tokens an example; default: the task's `length`.

        Raises:
            StateformError: no such split, n below 1, a length for which the task does not exist.
        """
        require(split in SPLITS, f"split is {split!r}; expected {', '.join(SPLITS)}")
        require(isinstance(n, int) and n >= 1, f"n is {n!r}; expected a number of examples, 1 or more")
        seeds = [int(s) for s in ([seed] if isinstance(seed, int | np.integer) else seed)]
        require(all(s >= 0 for s in seeds), f"seed is {seed!r}; expected whole numbers, 0 or more")
        length = self.length if length is None else length
        self.check_length(length)
        # Mixed, so that neighbouring seeds give unrelated draws; with their number, as numpy ignores zeros at the end.
        mixed = np.random.SeedSequence([SPLITS.index(split), len(seeds), *seeds]).generate_state(4)
        rng = np.random.RandomState(mixed)
        everything = self.whole(split)
        if everything is None:
            return self.draw(n, length, rng, split)
        return everything[torch.from_numpy(rng.choice(len(everything), n, replace=n > len(everything)))]

    def check_length(self, length: int) -> None:
        """Raise a StateformError if the task does not exist at that length."""
        whole = isinstance(length, int) and not isinstance(length, bool)
        require(whole and length >= 1, f"length is {length!r}; expected a number of tokens, 1 or more")

    def options(self) -> dict[str, Any]:
        """Give the options as plain values."""
        return dataclasses.asdict(self)

    @property
    def spec(self) -> str:
        """Write the task as `make_task` reads it: its name, and the options that differ from their defaults."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return self.name + (f"({', '.join(f'{k}={v!r}' for k, v in own.items())})" if own else "")

    def __post_init__(self) -> None:
        given = checked_fields(self)
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self.check()
        self.check_length(self.length)

    def check(self) -> None:
        """Raise a StateformError for options that do not go together."""


T = TypeVar("T", bound=type[Task])
TASKS: dict[str, type[Task]] = {}
"""The tasks by the name under which they are registered."""


def register_task(name: str, *, source: str = "") -> Callable[[T], T]:
    """Register a class of tasks under a name, for `make_task`, `task_names` and the command line.

    Args:
        name: lower case, unique.
        source: where the task comes from.

    Raises:
        StateformError: another class has that name, or the decorated object is no class of tasks.
    """
    require(re.fullmatch(r"[\w-]+", name or ""), f"the name of a task is {name!r}; expected letters, digits, _ or -")

    def add(cls: T) -> T:
        require(isinstance(cls, type) and issubclass(cls, Task), f"{cls!r} is no class of tasks; register a class")
        known = TASKS.get(name)
        same = known is None or known.__qualname__ == cls.__qualname__
        require(same, f"the name {name!r} is taken by {known.__qualname__ if known else ''}; choose another")
        cls.name, cls.source = name, source
        cls.summary = (inspect.getdoc(cls) or "").split("\n")[0]
        TASKS[name] = cls
        return cls

    return add


def task_names() -> list[str]:
    """List the names of all tasks."""
    return sorted(TASKS)


def make_task(spec: str | Task, options: Mapping[str, Any] | None = None) -> Task:
    """Make the task that a specification names: "mqar(n_pairs=8, length=128)", or its name and a dict of options.

    A task of the user's own is named `path/file.py:Class`, with options in the same way. The file is run.

    Raises:
        StateformError: an unknown name or option (with the nearest ones), a value that cannot be used.
    """
    options = dict(options or {})
    if isinstance(spec, Task):
        return dataclasses.replace(spec, **options) if options else spec
    require(isinstance(spec, str), f"a task is named by a string such as 'mqar(n_pairs=8)', not {spec!r}")
    name, given = read_spec(spec)
    if names_file(name):
        cls: type[Task] = class_from_file(name, Task, "task", "stateform.tasks.Task")
        cls.name = name  # the name by which `make_task` finds it again
    else:
        require(name in TASKS, f"unknown task {name!r}: {nearest(name, TASKS)}")
        cls = TASKS[name]
    given = {**options, **given}
    known = {f.name for f in fields(cls)}
    for option in given:
        if option not in known:
            raise StateformError(f"the task {name} has no option {option!r}: {nearest(option, known)}")
    return cls(**given)
