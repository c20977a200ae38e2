"""rwkv.cpp: its "ggmf" files of versions 100 and 101, in float32 or float16."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from torch import Tensor

from ...errors import StateformError, require
from .format import reads
from .rwkv import RWKV, model_of, version
from .weights import FileWeights, mapped, numbers

MAGIC = struct.pack("<I", 0x67676D66)
_HEADER, _PART = struct.Struct("<4s5i"), struct.Struct("<3i")
_TYPES = {0: "<f4", 1: "<f2"}
_QUANTISED = {2: "Q4_0", 3: "Q4_1", 4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
_MOST_AXES, _LONGEST_NAME = 4, 512


@reads("rwkv.cpp", begins=lambda head: head[:4] == MAGIC)
def read(file: Path) -> RWKV:
    """Read the model of a file.

    Raises:
        StateformError: another version, quantised weights, a file that is cut short or whose parts do not fit.
    """
    size = file.stat().st_size
    require(size >= _HEADER.size, f"{file} has {size} bytes; it is cut short within its header")
    with mapped(file) as view:
        _, edition, vocabulary, width, layers, kind = _HEADER.unpack_from(view)
        require(edition in (100, 101), f"{file} is of version {edition} of rwkv.cpp's format; expected 100 or 101")
        _float(file, "the file", kind)
        require(
            min(vocabulary, width, layers) > 0,
            f"the header of {file} says vocabulary {vocabulary}, width {width}, {layers} layers; it is damaged",
        )
        w = FileWeights(file, _parts(file, view, size))
    found = w["emb.weight"].shape
    require(
        tuple(found) == (vocabulary, width) and f"blocks.{layers - 1}.ln1.weight" in w
        and f"blocks.{layers}.ln1.weight" not in w,
        f"the header of {file} says vocabulary {vocabulary}, width {width}, {layers} layers; its weights are of "
        f"another model, with an embedding of {list(found)}",
    )  # fmt: skip
    return model_of(FileWeights(file, _original(w)), norm_eps=1e-5 if version(w)[0] == "5" else None)


def _float(file: Path, what: str, kind: int) -> str:
    require(
        kind in _TYPES,
        f"{what} of {file} is quantised ({_QUANTISED.get(kind, f'type {kind}')}); expected FP32 or FP16: convert the "
        "original model without quantising it",
    )
    return _TYPES[kind]


def _parts(file: Path, view: memoryview, size: int) -> dict[str, Tensor]:
    """Read the named arrays, each of which must lie within the file."""
    weights: dict[str, Tensor] = {}
    at = _HEADER.size
    while at < size:
        after = f"{file} is cut short after {len(weights)} weights"
        require(at + _PART.size <= size, after)
        axes, length, kind = _PART.unpack_from(view, at)
        at += _PART.size
        require(
            1 <= axes <= _MOST_AXES and 1 <= length <= _LONGEST_NAME,
            f"{file} is damaged after {len(weights)} weights: {axes} axes, and a name of {length} bytes",
        )
        require(at + 4 * axes + length <= size, after)
        shape = struct.unpack_from(f"<{axes}i", view, at)[::-1]
        at += 4 * axes
        try:
            name = bytes(view[at : at + length]).decode()
        except UnicodeDecodeError:
            raise StateformError(f"{file} is damaged after {len(weights)} weights: a name that is no text") from None
        at += length
        form = _float(file, name, kind)
        require(min(shape) > 0, f"{name} of {file} has shape {list(shape)}; the file is damaged")
        require(name not in weights, f"{file} holds {name} twice; it is damaged")
        nbytes = math.prod(shape) * int(form[2:])
        require(at + nbytes <= size, f"{after}: {name} {list(shape)} takes {nbytes:,} bytes, {size - at:,} are left")
        weights[name] = numbers(view, at, shape, form)
        at += nbytes
    return weights


def _original(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the weights of the original files, undoing what the converter did to them."""
    made: dict[str, Tensor] = {}
    kind = version(w)
    for name, x in w.items():
        stem, _, last = name.rpartition(".")
        if last == "time_decay":  # the file holds -exp(w), or exp(-exp(w))
            made[name] = (-x).log() if kind == "4" else (-x.log()).log()
        elif last == "x_rwkvag":
            made |= {f"{stem}.x_{which}": share for which, share in zip("rwkvag", x, strict=True)}
        elif kind == "7" and stem.endswith(".att") and last in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
            made[name] = x.T
        else:
            made[name] = x
    return made
