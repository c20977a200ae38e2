"""Pictures as sequences: MNIST, pixel by pixel."""

from __future__ import annotations

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ...errors import StateformError, require
from ..base import Split
from ..data import Stored, stamp

PUBLIC = (
    "MNIST's four IDX files, train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each possibly .gz (yann.lecun.com/exdb/mnist and its mirrors)"
)
"""The files to get, for error messages."""


PIXELS = 784
"""Pixels of a picture, 28 by 28."""


def read_idx(file: Path, n_dims: int) -> np.ndarray:
    """Read the array of bytes in an IDX file, possibly .gz.

    The format: two zero bytes, 8 (unsigned bytes), the number of dimensions, each as four bytes, big-endian; the data.

    Raises:
        StateformError: a file that cannot be read, of another format, or cut off.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StateformError(f"cannot read {file}: {error}; fetch it again") from None
    start = bytes([0, 0, 8, n_dims])
    found = data[:4].hex(" ")
    require(data[:4] == start, f"{file} starts with {found or 'nothing'}; an IDX file starts with {start.hex(' ')}")
    offset = 4 + 4 * n_dims
    require(len(data) >= offset, f"{file} ends within its header: fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", n_dims, 4))
    expected = offset + math.prod(shape)
    require(len(data) == expected, f"{file} has {len(data)} bytes; its header says {expected}: fetch it again")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def read_mnist(place: Path, split: Split, permutation: int | None) -> Stored:
    """Read a split of MNIST as sequences of 784 pixels, permuted by a seed if given; changed files are read again."""
    return _read_mnist(place, split, permutation, stamp(place))


@lru_cache(maxsize=8)
def _read_mnist(place: Path, split: Split, permutation: int | None, version: object) -> Stored:
    part = "t10k" if split == "test" else "train"

    def read(name: str, n_dims: int) -> np.ndarray:
        files = [place / f"{part}-{name}-idx{n_dims}-ubyte{end}" for end in (".gz", "")]
        found = [file for file in files if file.is_file()]
        require(found, f"there is no {files[0]}, nor without .gz; expected {PUBLIC}")
        return read_idx(found[0], n_dims)

    images, labels = read("images", 3), read("labels", 1)
    require(images.shape[1:] == (28, 28), f"the images of {place} are {images.shape[1:]}; expected 28 by 28 pixels")
    found, least = f"{place} has {len(images)} images and {len(labels)} labels", 1 if split == "test" else 12
    require(len(images) == len(labels) >= least, f"{found} in {part}; expected as many, and {least} or more")
    require(labels.max() <= 9, f"{place} has the label {labels.max()}; expected 0 to 9")
    if split != "test":
        cut = len(images) - len(images) // 12
        rows = slice(0, cut) if split == "train" else slice(cut, None)
        images, labels = images[rows], labels[rows]
    pixels = images.reshape(len(images), PIXELS)
    if permutation is not None:
        pixels = pixels[:, np.random.RandomState(permutation).permutation(PIXELS)]
    return Stored(torch.from_numpy(pixels.copy()), torch.from_numpy(labels.astype(np.int64)[:, None]), scale=1 / 255)
