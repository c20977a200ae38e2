"""ListOps: nested lists of digits and four operations, as in the Long Range Arena."""

from __future__ import annotations

import lzma
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import StateformError, require
from ..text import decoded
from .base import Batch, Split, Task, register_task
from .data import Stored, find_data, padded, stamp

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*"0123456789", *OPERATORS, "]", "<pad>")
"""The tokens by id."""
CLOSE, PAD = TOKENS.index("]"), TOKENS.index("<pad>")
P_OPERATOR = 0.25
"""The probability that a node is an operation; the constant is called VALUE_P where it was published."""
PUBLIC = "files of the Long Range Arena's ListOps (google-research/long-range-arena writes basic_train.tsv and so on)"


def evaluate(tokens: Sequence[int]) -> int:
    """Compute the value of one expression of token ids, without padding.

    Raises:
        StateformError: brackets that do not match, an operation without arguments, more than one value.
    """
    open_lists: list[list[int]] = [[]]
    try:
        for token in tokens:
            if token < 10:
                open_lists[-1].append(token)
            elif token < CLOSE:
                open_lists.append([token])
            else:
                require(token == CLOSE and len(open_lists) > 1 and len(open_lists[-1]) > 1, "")
                operator, *values = open_lists.pop()
                open_lists[-1].append(_apply(TOKENS[operator], values))
        require(len(open_lists) == 1 and len(open_lists[0]) == 1, "")
    except (StateformError, ValueError):
        text = " ".join(TOKENS[t] for t in tokens)
        raise StateformError(f"no expression of ListOps: {text[:80]!r}; expected e.g. '[MAX 2 [SM 3 4 ] 1 ]'") from None
    return open_lists[0][0]


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    # The median of an even number of values is the mean of the middle ones, rounded down.
    return int(statistics.median(values)) if operator == "[MED" else sum(values) % 10


@register_task("listops", source="Tay et al. 2021, Long Range Arena (arXiv 2011.04006), after Nangia and Bowman 2018")
@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """The value, 0 to 9, of nested minima, maxima, medians and sums modulo 10.

        tokens  [MAX 2 9 [MIN 4 7 ] 0 ]
        class   9

    Token ids: the digits are themselves, then `[MIN [MAX [MED [SM ]` and the padding after the expression, where the
    mask is false. The generator is that of the Long Range Arena: with probability 1/4 a node is one of the four
    operations, with 2 to `max_args` nodes below it, and a digit otherwise or at depth `max_depth`; a tree is kept if
    it has more than `shortest` tokens and fewer than `length`. The median of an even number of values is the mean of
    the middle two, rounded down. The original keeps no tree twice; here, without an end, it can come twice, in small
    sizes even in two splits. The files of the original have the same tokens; `path` reads them.
    """

    length: int = 2000
    """Tokens with padding; a tree has fewer."""
    shortest: int = 500
    """A tree has more tokens than this."""
    max_depth: int = 10
    """Nodes from the root to the deepest digit."""
    max_args: int = 10
    """The most arguments of an operation."""
    path: str | None = None
    """A folder with basic_train.tsv, basic_val.tsv (or none: the last tenth of train) and basic_test.tsv, each possibly
    .xz; or one such file, cut into 80% train, 10% valid and 10% test. None: trees are drawn."""

    answers: ClassVar[Literal["tokens", "sequence"]] = "sequence"

    @property
    def vocab_size(self) -> int:
        return len(TOKENS)

    @property
    def n_out(self) -> int:
        return 10

    def check(self) -> None:
        require(self.max_args >= 2, f"max_args is {self.max_args}; expected 2 arguments or more")
        require(self.max_depth >= 1, f"max_depth is {self.max_depth}; expected 1 or more")
        require(self.shortest >= 0, f"shortest is {self.shortest}; expected 0 tokens or more")
        if self.path is not None:
            find_data(self.path, "listops", PUBLIC)
            return
        largest = 1
        for _ in range(self.max_depth - 1):
            largest = min(2 + self.max_args * largest, self.shortest + 1)
        require(
            largest > self.shortest,
            f"a tree of depth {self.max_depth} with up to {self.max_args} arguments has at most {largest} tokens; "
            f"shortest is {self.shortest}: ask for smaller trees, or raise max_depth or max_args",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if self.path is not None:
            require(
                length == self.length, f"length is {length}; the file is read for length {self.length}: change that"
            )
            return
        require(
            length > self.shortest + 1,
            f"trees have more than {self.shortest} tokens and fewer than length, which is {length}: "
            "lower shortest or raise length",
        )

    def whole(self, split: Split) -> Batch | None:
        return None if self.path is None else read_listops(self.path, split, self.length)

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        batches: list[Batch] = []
        missing, tried, kept = n, 0, 0
        while missing:
            # About a third more trees than are needed, by the share that was kept so far (at first: one in 40).
            rate = max(kept, 1) / max(tried, 40)
            candidates = min(int(missing / rate * 1.3) + 8, 20_000)
            levels = self._grow(candidates, length, rng)
            tried += candidates
            found = levels[0].n
            require(kept + found or tried < 1_000_000, f"no tree of {self.shortest} to {length} tokens in {tried}")
            kept += found
            if found:
                batches.append(self._write(levels, length, rng)[: min(found, missing)])
                missing -= min(found, missing)
        masks = torch.cat([batch.mask for batch in batches if batch.mask is not None])
        return Batch(torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches]), masks)

    def _grow(self, n: int, length: int, rng: np.random.RandomState) -> list[_Level]:
        """Draw the shapes of n trees, from the roots downwards, and drop those that are too small or too large."""
        tree = np.arange(n)
        size = np.zeros(n, dtype=np.int64)
        levels: list[_Level] = []
        for depth in range(1, self.max_depth + 1):
            inner = rng.random_sample(len(tree)) <= P_OPERATOR if depth < self.max_depth else np.zeros(len(tree), bool)
            n_args = rng.randint(2, self.max_args + 1, size=int(inner.sum()), dtype=np.int64)
            size += np.bincount(tree, 1 + inner, n).astype(np.int64)
            levels.append(_Level(tree, inner, n_args))
            tree = np.repeat(tree[inner], n_args)
            # A tree stops growing once it is too large, each argument to come counted as one token.
            large = size + np.bincount(tree, minlength=n) >= length
            size[large] = length
            tree = tree[~large[tree]]
        wanted = (self.shortest < size) & (size < length)
        return [level.without(~wanted) for level in levels]

    def _write(self, levels: list[_Level], length: int, rng: np.random.RandomState) -> Batch:
        """Draw digits and operations for these shapes, and write the trees as tokens."""
        contents = []
        size = value = np.zeros(0, dtype=np.int64)
        for level in reversed(levels):
            inner, first = level.inner, level.first
            below, own = size, value
            size, value = np.ones(len(inner), dtype=np.int64), rng.randint(10, size=len(inner), dtype=np.int64)
            operator = rng.randint(len(OPERATORS), size=len(first), dtype=np.int64)
            if len(first):
                size[inner] = 2 + np.add.reduceat(below, first)
                ordered = own[np.lexsort((own, np.repeat(first, level.n_args)))]
                low, high = first + (level.n_args - 1) // 2, first + level.n_args // 2
                results = [
                    np.minimum.reduceat(own, first),
                    np.maximum.reduceat(own, first),
                    (ordered[low] + ordered[high]) // 2,
                    np.add.reduceat(own, first) % 10,
                ]
            token = value.copy()
            if len(first):
                token[inner] = 10 + operator
                value[inner] = np.choose(operator, results)
            contents.append((token, size))
        # All sizes are known now, and give the places from the root downwards.
        rows = levels[0].n
        tokens = np.full((rows, length), PAD, dtype=np.int64)
        row, start = np.arange(rows), np.zeros(rows, dtype=np.int64)
        sizes = size
        for level, (token, size), (_, below) in zip(
            levels, contents[::-1], [*contents[-2::-1], (start[:0], start[:0])], strict=True
        ):
            inner, first = level.inner, level.first
            tokens[row, start] = token
            tokens[row[inner], (start + size - 1)[inner]] = CLOSE
            row = np.repeat(row[inner], level.n_args)
            before = below.cumsum() - below
            start = np.repeat(start[inner] + 1 - before[first], level.n_args) + before if len(first) else start[:0]
        mask = np.arange(length) < sizes[:, None]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(value[:, None]), torch.from_numpy(mask))

    def oracle(self, batch: Batch) -> Tensor:
        rows = [[token for token in row if token != PAD] for row in batch.inputs.tolist()]
        return torch.tensor([[evaluate(row)] for row in rows])


@dataclass(frozen=True)
class _Level:
    """All nodes of one depth: the tree of each, a mask of those that are operations, and their numbers of arguments.

    Nodes of the next depth come in the order of their operations.
    """

    tree: np.ndarray
    inner: np.ndarray
    n_args: np.ndarray

    @property
    def n(self) -> int:
        return len(self.tree)

    @property
    def first(self) -> np.ndarray:
        """Give the index of each operation's first argument, among the nodes below."""
        return self.n_args.cumsum() - self.n_args

    def without(self, trees: np.ndarray) -> _Level:
        """Leave out the nodes of some trees, given as a mask."""
        stays = ~trees[self.tree]
        return _Level(self.tree[stays], self.inner[stays], self.n_args[stays[self.inner]])


def read_listops(path: str, split: Split, length: int) -> Stored:
    """Read a split of the files of the Long Range Arena, see `ListOps.path`; files are read again once changed.

    Raises:
        StateformError: a file that is missing or of another format, an expression longer than `length`.
    """
    place = find_data(path, "listops", PUBLIC)
    return _read_listops(place, split, length, stamp(place))


@lru_cache(maxsize=8)
def _read_listops(place: Path, split: Split, length: int, version: object) -> Stored:
    if place.is_file():
        lines = _lines(place)
        low, high = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}[split]
        lines = lines[int(low * len(lines)) : int(high * len(lines))]
    else:
        named = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
        files = {s: f for s, name in named.items() for f in (place / name, place / f"{name}.xz") if f.is_file()}
        source = "train" if split == "valid" and "valid" not in files else split
        require(source in files, f"{place} has no {named[source]} (or .xz); expected {PUBLIC}")
        lines = _lines(files[source])
        if "valid" not in files and split != "test":
            cut = len(lines) - len(lines) // 10
            lines = lines[:cut] if split == "train" else lines[cut:]
    require(lines, f"{place} has no line for the split {split}; expected more lines")
    rows, values = [], []
    for where, source_text, target in lines:
        tokens = parse(source_text, where)
        require(len(tokens) < length + 1, f"{where} has {len(tokens)} tokens; length is {length}: raise it")
        rows.append(torch.tensor(tokens, dtype=torch.uint8))
        values.append([target])
    inputs, mask = padded(rows, length, PAD)
    return Stored(inputs, torch.tensor(values), mask)


_IDS = {**{token: i for i, token in enumerate(TOKENS[:-1])}, "X": CLOSE}


def parse(text: str, where: str = "the expression") -> list[int]:
    """Read the token ids of an expression as the Long Range Arena writes it, without its redundant parentheses.

    Raises:
        StateformError: a token that ListOps does not have.
    """
    tokens = text.replace("(", " ").replace(")", " ").split()
    for token in tokens:
        if token not in _IDS:
            raise StateformError(f"{where} has the token {token!r}; expected one of {' '.join(TOKENS[:-1])}")
    return [_IDS[token] for token in tokens]


def _lines(file: Path) -> list[tuple[str, str, int]]:
    """Read the lines of a file: the place of each, its expression and its value."""
    try:
        data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise StateformError(f"cannot read {file}: {error}; expected {PUBLIC}") from None
    text = decoded(data, file)
    head, *lines = text.splitlines() or [""]
    found = [part.strip() for part in head.split("\t")]
    require(found == ["Source", "Target"], f"{file} starts with {head[:40]!r}; expected 'Source', a tab, 'Target'")
    out = []
    for number, line in enumerate(lines, start=2):
        source, tab, target = line.rpartition("\t")
        fine = bool(tab) and target.strip() in TOKENS[:10]
        require(fine, f"line {number} of {file} ends in {line[-20:]!r}; expected an expression, a tab and 0 to 9")
        out.append((f"line {number} of {file}", source, int(target)))
    return out
