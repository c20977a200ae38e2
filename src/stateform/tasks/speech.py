"""Raw audio: spoken digits, sample by sample."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ..errors import StateformError, require
from ..series import read_sound
from .base import Batch, Split, register_task
from .data import Digits, Stored, padded, stamp

PUBLIC = (
    "the recordings of github.com/Jakobovski/free-spoken-digit-dataset, a folder of .wav files or recordings.tar.xz"
)
RATE = 8000
"""Samples a second of the recordings."""
INDICES: dict[str, range] = {"test": range(5), "valid": range(5, 10), "train": range(10, 1_000_000)}
"""The splits, by the number of the recording; officially, those from 5 on are for training."""


def _files(place: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the .wav files in a folder or an archive."""
    if place.is_dir() and not any(place.glob("*.wav")):
        archives = sorted(place.glob("recordings.tar*"))
        require(archives, f"{place} holds neither .wav files nor recordings.tar.xz; expected {PUBLIC}")
        place = archives[0]
    if place.is_dir():
        for file in sorted(place.glob("*.wav")):
            yield file.name, file.read_bytes()
        return
    try:
        with tarfile.open(place) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(".wav") else None
                if content is not None:
                    yield member.name.rpartition("/")[2], content.read()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        why = str(error).partition(":\n")[0]
        raise StateformError(f"cannot read {place}: {why}; fetch it again") from None


@lru_cache(maxsize=2)
def read_recordings(place: Path, version: object) -> tuple[tuple[int, int, np.ndarray], ...]:
    """Read every recording in a folder or an archive, in order of names: its digit, its number, its int16 samples.

    Raises:
        StateformError: a file of another format, or none.
    """
    found = []
    for name, content in sorted(_files(place)):
        match = re.fullmatch(r"([0-9])_(\w+)_([0-9]{1,5})\.wav", name)
        require(match, f"{place} has a file {name}; expected names such as 7_jackson_32.wav: digit, speaker, number")
        assert match
        sound = read_sound(content, f"{name} in {place}", "fetch it again")
        kind = (sound.samples.shape[1], sound.bits, sound.rate)
        says = f"{name} in {place} has {kind[0]} channels of {kind[1]} bits, {kind[2]} samples a second"
        require(kind == (1, 16, RATE), f"{says}; expected 1 channel of 16 bits, {RATE} a second")
        found.append((int(match[1]), int(match[3]), sound.samples[:, 0]))
    require(found, f"{place} holds no recordings; expected {PUBLIC}")
    return tuple(found)


def read_digits(place: Path, split: Split, length: int, rate: int, normalize: bool) -> Stored:
    """Read a split of the spoken digits, at `rate` samples a second, cut or filled up to a length.

    The files are read again once they have changed.
    """
    return _read_digits(place, split, length, rate, normalize, stamp(place))


@lru_cache(maxsize=8)
def _read_digits(place: Path, split: Split, length: int, rate: int, normalize: bool, version: object) -> Stored:
    rows, digits, width = [], [], RATE // rate
    for digit, number, samples in read_recordings(place, version):
        if number not in INDICES[split]:
            continue
        kept = samples[: max(len(samples) // width * width, 1)]
        mean = kept.reshape(-1, min(width, len(kept))).mean(1)[:length]
        if normalize:
            mean = mean * (32767 / max(float(np.abs(mean).max()), 1.0))
        rows.append(torch.from_numpy(np.rint(mean).astype(np.int16)))
        digits.append([digit])
    require(rows, f"{place} has no recording for the split {split}, whose numbers start at {INDICES[split][0]}")
    inputs, mask = padded(rows, length, 0)
    return Stored(inputs, torch.tensor(digits), mask, scale=1 / 32768)


@register_task("spoken_digits", source="Jackson et al., Free Spoken Digit Dataset (CC BY-SA 4.0)")
@dataclass(frozen=True, kw_only=True)
class SpokenDigits(Digits):
    """Which digit is spoken, in raw audio.

    Each token is one number, a sample of the wave between -1 and 1, 8,000 a second; the class is the digit 0 to 9.
    Shorter recordings are followed by zeros, where the mask is false; longer ones are cut (at 8,000 samples: 20 of
    3,000). Recordings 0 to 4 of each digit and speaker are "test", as officially; of the others 5 to 9 are "valid".
    `path` is a folder of recordings or an archive (.tar.xz and such).
    """

    length: int = 8000
    """Samples: the most that are kept of a recording."""
    rate: int = 8000
    """Samples a second; below 8000, means of 8000 / rate neighbours. Lower `length` in proportion."""
    normalize: bool = True
    """True if each recording is made as loud as possible (the loudest have 100 times the amplitude of the softest)."""

    folder: ClassVar[str] = "spoken-digits"
    public: ClassVar[str] = PUBLIC

    def check(self) -> None:
        divides = 1 <= self.rate <= RATE and RATE % self.rate == 0
        require(divides, f"rate is {self.rate}; expected a divisor of {RATE}, e.g. 4000, 2000 or 1000")
        super().check()

    def check_length(self, length: int) -> None:
        super().check_length(length)
        same = length == self.length
        require(same, f"length is {length}; the recordings are read for length {self.length}: change that option")

    def whole(self, split: Split) -> Batch:
        return read_digits(self.place, split, self.length, self.rate, self.normalize)
