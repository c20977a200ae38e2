"""Reading numbers from outside: a series [T,d] from an array or a file (.npy, .csv), or from a recording (.wav)."""

from __future__ import annotations

import csv
import io
import os
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import StateformError, require, require_seed
from .text import decoded, read_bytes


@dataclass(frozen=True)
class Series:
    """Numbers, step by step."""

    values: Tensor
    """[T,d] in float64."""
    source: str
    """The file they are from, or what was given."""
    rate: int | None = None
    """Samples a second, of a recording."""
    mapped: str = ""
    """The map that made these numbers of those in the source, in words; empty: they are the same."""

    @property
    def width(self) -> int:
        """Give d, the numbers of a step."""
        return self.values.shape[1]

    @property
    def unit(self) -> str:
        """Name what follows one another: "sample" in a recording, else "step"."""
        return "step" if self.rate is None else "sample"

    def first(self, most: int | None) -> Series:
        """Keep the first steps, at most so many."""
        return replace(self, values=self.values[:most])

    def fitted(self, width: int, what: str, *, project: bool | None = None, seed: int = 0) -> Series:
        """Give the series whose steps have `width` numbers.

        Args:
            width: how many numbers a step is to have.
            what: reads them; it is named in the error.
            project: map steps of another width by a fixed random matrix, divided by the root mean square of the
                numbers, so that they are as large as the vectors that stand for the bytes of a text. None: what reads
                them was made for its own numbers, and the error does not offer it.
            seed: of that matrix.

        Raises:
            StateformError: another width, and no `project`.
        """
        if self.width == width:
            return self
        many = f"{self.width} number{'' if self.width == 1 else 's'} a {self.unit}"
        hint = "" if project is None else ", or map these by a fixed random matrix with project=True (--project)"
        require(project, f"{self.source} has {many}; {what} reads {width}: give numbers [T,{width}]{hint}")
        require_seed(seed)
        drawn = torch.Generator("cpu").manual_seed(seed)
        matrix = torch.randn(self.width, width, generator=drawn, dtype=torch.float64, device="cpu")
        mapped = f"{many}, scaled to mean square 1, mapped to {width} by a fixed random matrix (seed {seed})"
        return replace(self, values=self.scaled().values @ matrix / self.width**0.5, mapped=mapped)

    def scaled(self) -> Series:
        """Give the series divided by its root mean square; zeros stay."""
        tiny = torch.finfo(torch.float64).tiny
        unit = self.values / self.values.abs().max().clamp_min(tiny)  # whose squares do not overflow
        return replace(self, values=unit / unit.square().mean().sqrt().clamp_min(tiny))

    def to_dict(self) -> dict[str, Any]:
        """Give what was read as plain values, without the numbers."""
        return {"source": self.source, "unit": self.unit, "steps": len(self.values), "width": self.width,
                "rate": self.rate, "mapped": self.mapped}  # fmt: skip

    def __str__(self) -> str:
        rate = "" if self.rate is None else f", {self.rate:,} a second"
        width = f", {self.mapped}" if self.mapped else f" of {self.width} number{'' if self.width == 1 else 's'}"
        return f"{len(self.values):,} {self.unit}s of {self.source}{rate}{width}"


Array = np.ndarray[Any, Any] | Tensor
Given = str | Path | Array | Series
"""What numbers are read from."""


def read_series(data: Given) -> Series:
    """Read numbers.

    Args:
        data: a file, by its suffix: .npy with one array, .csv with a row for each step (and a first row of names, or
            none), .wav with samples of 8, 16, 24 or 32 bits, which become numbers from -1 to 1, a column a channel;
            or an array or a tensor. Arrays hold floating-point numbers [T,d], [1,T,d], or [T] for d = 1. A Series is
            given back.

    Raises:
        StateformError: a file that cannot be read, or of another kind; rows of different lengths; integers; NaN or
            infinity; fewer than 2 steps.
    """
    if isinstance(data, Series):
        return data
    if isinstance(data, str | os.PathLike):
        read = READERS.get(Path(data).suffix.lower())
        require(read, f"{data} is no file of numbers by its name; expected {', '.join(READERS)}: numpy.save writes the "
                "first")  # fmt: skip
        assert read is not None
        values, rate = read(read_bytes(data, "the numbers "), str(data))
        return Series(_checked(values, str(data)), str(data), rate)
    kind = type(data).__name__
    require(isinstance(data, np.ndarray | Tensor), f"the numbers are a {kind}; expected a file, an array or a tensor")
    return Series(_checked(data, "an array"), "an array")


NO_NUMBERS = "reads tokens, not numbers; expected integers [T], which are token ids, or a text"
"""What is said of a model that is given numbers."""


def is_floating(data: Any) -> bool:
    """True if the data are an array or a tensor of real numbers, which is a series; integers are token ids."""
    real = isinstance(data, np.ndarray) and data.dtype.kind == "f"
    return real or (isinstance(data, Tensor) and data.is_floating_point())


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Give an array of token ids or of numbers as a tensor, int64 or float64.

    Raises:
        StateformError: an array of something else.
    """
    whole = array.dtype.kind in "iu"
    known = whole or is_floating(array)
    require(known, f"an array of {array.dtype} was given; expected integers, token ids, or floating-point numbers")
    return torch.from_numpy(array.astype(np.int64 if whole else np.float64))


def told_apart(text: str | Path | Array | None, data: Given | None) -> tuple[str | Path | Tensor | None, Given | None]:
    """Tell a text or token ids from numbers: an array of real numbers is numbers wherever it is given.

    Raises:
        StateformError: both were given; an array of something else, or neither a file nor an array.
    """
    require(text is None or data is None, "a text and numbers were given, of which one can be read; leave one out")
    if is_floating(text):
        return None, text
    text = tensor_of(text) if isinstance(text, np.ndarray) else text
    known = text is None or isinstance(text, str | os.PathLike | Tensor)
    kind = type(text).__name__
    require(known, f"the text is a {kind}; expected a file, token ids [T] or numbers [T,d]: an array or a tensor")
    return text, data


def _checked(data: Array, what: str) -> Tensor:
    """Give the numbers as [T,d] in float64; raise unless that is what they are."""
    shape = list(data.shape)
    whole = "; token ids are for a model, as a tensor" if "int" in str(data.dtype) else ""
    require(is_floating(data), f"{what} holds {data.dtype} of shape {shape}; expected floating-point numbers [T,d]: "
            f"convert them with values.astype(float){whole}")  # fmt: skip
    if isinstance(data, Tensor):
        require(
            not data.is_meta, f"{what} is on the device meta, where there are no numbers; give a tensor with values"
        )
        x = data.detach().to_dense().to("cpu", torch.float64)
    else:
        x = torch.from_numpy(np.array(np.ma.filled(data.astype(np.float64), np.nan)))  # a masked number is none
    x = x[0] if x.ndim == 3 and len(x) == 1 else x.unsqueeze(1) if x.ndim == 1 else x
    require(x.ndim == 2, f"{what} has the shape {shape}; expected [T,d], T steps of d numbers (or [T] for d = 1)")
    require(x.numel() > 0, f"{what} is empty, of shape {shape}; expected [T,d], at least 2 steps of 1 number")
    require(len(x) >= 2, f"{what} has {len(x)} step; expected at least 2")
    bad = (~x.isfinite()).nonzero()
    if len(bad):
        t, k = bad[0].tolist()
        raise StateformError(f"{what} holds {x[t, k].item()} at step {t}, number {k} (counted from 0); expected finite "
                             "numbers: fill the gaps, or leave those steps out")  # fmt: skip
    return x


# -- files ------------------------------------------------------------------------------------------------------------


def _npy(data: bytes, what: str) -> tuple[np.ndarray[Any, Any], None]:
    """Read the array of a .npy file; nothing is unpickled."""
    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False), None
    except (ValueError, EOFError, MemoryError, OverflowError, TypeError) as error:
        raise StateformError(f"cannot read {what} as .npy: {error}; expected one array of floating-point numbers, as "
                             "numpy.save writes it") from None  # fmt: skip


def _csv(data: bytes, what: str) -> tuple[np.ndarray[Any, Any], None]:
    """Read rows; a first row without any number holds names. Cells are parted by `;`, else tabs, else `,`."""
    text = decoded(data, what)
    mark = next((m for m in ";\t" if m in text.partition("\n")[0]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row not in ([], [""])]
    except csv.Error as error:
        raise StateformError(f"cannot read {what} as .csv: line {reader.line_num}: {error}") from None
    if rows and not any(_is_number(cell) for cell in rows[0][1]):
        rows = rows[1:]
    require(rows, f"{what} holds no row of numbers; expected one for each step")
    first, width = rows[0][0], len(rows[0][1])
    for line, row in rows:
        if len(row) != width:
            raise StateformError(f"line {line} of {what} has {len(row)} cells, line {first} has {width}; expected as "
                                 "many numbers in every row")  # fmt: skip
        bad = [k for k, cell in enumerate(row) if not _is_number(cell)]
        if bad:
            raise StateformError(
                f"line {line} of {what} has {row[bad[0]]!r} in column {bad[0] + 1}; expected a number with a decimal "
                "point in every cell (names may stand in the first row, one over each column)"
            )
    return np.array([[float(cell) for cell in row] for _, row in rows]), None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Sound:
    """What a .wav file holds."""

    samples: np.ndarray[Any, Any]
    """[T,channels], signed integers."""
    bits: int
    rate: int
    """Samples a second."""


def read_sound(data: bytes, what: str, do: str = "save it anew, with samples of 16 bits") -> Sound:
    """Read a .wav file of whole numbers (PCM).

    Args:
        data: the bytes of the file.
        what: names it in the error.
        do: tells in the error what to do.

    Raises:
        StateformError: another format; fewer samples than it says, or none.
    """
    try:
        with wave.open(io.BytesIO(data)) as sound:
            channels, width, rate = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
            stated, raw = sound.getnframes(), sound.readframes(sound.getnframes())
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise StateformError(f"{what} is no .wav file: {str(error) or 'it ends too early'}; {do}") from None
    known = width in (1, 2, 3, 4) and rate > 0
    has = f"{what} has samples of {8 * width} bits, {rate} a second"
    require(known, f"{has}; expected 8, 16, 24 or 32 bits: {do}")
    there = len(raw) // (channels * width)
    require(there == stated > 0, f"{what} has {there} samples; it says {stated}: {do}")
    return Sound(_integers(raw, width).reshape(there, channels), 8 * width, rate)


def _integers(raw: bytes, width: int) -> np.ndarray[Any, Any]:
    """Decode little-endian numbers of 1 (unsigned), 2, 3 or 4 bytes."""
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.int16) - 128
    if width == 3:
        low, middle, high = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32).T
        return low | middle << 8 | high.astype(np.int8).astype(np.int32) << 16
    return np.frombuffer(raw, f"<i{width}")


def _wav(data: bytes, what: str) -> tuple[np.ndarray[Any, Any], int]:
    """Read a recording, from -1 to 1."""
    sound = read_sound(data, what)
    return sound.samples / 2.0 ** (sound.bits - 1), sound.rate


READERS: dict[str, Callable[[bytes, str], tuple[np.ndarray[Any, Any], int | None]]] = {
    ".npy": _npy, ".csv": _csv, ".wav": _wav,
}  # fmt: skip
"""How a file of numbers is read, by its suffix."""
