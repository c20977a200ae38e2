"""llama2.c: checkpoints of version 0, and tokenizer files.

A checkpoint is seven integers (width, hidden width, layers, heads, heads of keys and values, vocabulary, positions),
then float32 arrays one after the other, without names. A vocabulary below 0 says that the head is not the embedding.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import StateformError, require
from ...models import LanguageModel, ModelConfig
from .format import reads
from .weights import filled, mapped, numbers

_HEADER = struct.Struct("<7i")
_LARGEST = 1 << 24
"""No size of the header is larger in any model."""


@dataclass(frozen=True)
class Sizes:
    """The header."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    shared: bool
    """The head is the embedding."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """List the shapes of the arrays in the file's order."""
        d, h, n = self.width, self.hidden, self.layers
        kv, turns = d * self.kv_heads // self.heads, self.positions * (d // self.heads // 2)
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, d), "mixer_norm": (n, d), "q": (n, d, d), "k": (n, kv, d), "v": (n, kv, d),
            "out": (n, d, d), "mlp_norm": (n, d), "gate": (n, h, d), "down": (n, d, h), "up": (n, h, d), "norm": (d,),
            "cos": (turns,), "sin": (turns,),
        }  # fmt: skip
        return shapes if self.shared else {**shapes, "head": (self.vocabulary, d)}

    @property
    def nbytes(self) -> int:
        """Count the bytes of the whole file."""
        return _HEADER.size + 4 * sum(math.prod(shape) for shape in self.shapes().values())


def _sizes(file: Path) -> Sizes | None:
    """Read the header of a file, if it can be one."""
    with file.open("rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size:
        return None
    d, hidden, layers, heads, kv_heads, vocabulary, positions = _HEADER.unpack(head)
    sizes = (d, hidden, layers, heads, kv_heads, abs(vocabulary), positions)
    fits = all(0 < x < _LARGEST for x in sizes) and d % heads == 0 and heads % kv_heads == 0 and d // heads % 2 == 0
    return Sizes(*sizes, shared=vocabulary > 0) if fits else None


def plausible(file: Path) -> bool:
    """True if a file begins as a checkpoint does."""
    return _sizes(file) is not None


@reads("llama2.c", fits=plausible)
def read(file: Path) -> LanguageModel:
    """Read the model of a checkpoint.

    Raises:
        StateformError: a file of another size than its header says.
    """
    sizes = _sizes(file)
    require(sizes is not None, f"{file} does not begin with the seven sizes of a llama2.c checkpoint")
    assert sizes is not None
    has = os.path.getsize(file)
    require(
        has == sizes.nbytes,
        f"{file} has {has:,} bytes; its header says {sizes.nbytes:,} (width {sizes.width}, {sizes.layers} layers, "
        f"vocabulary {sizes.vocabulary}): it was {'cut short' if has < sizes.nbytes else 'written by another program'}",
    )
    w, at = {}, _HEADER.size
    with mapped(file) as view:
        for name, shape in sizes.shapes().items():
            if name not in ("cos", "sin"):
                w[name] = numbers(view, at, shape)
            at += 4 * math.prod(shape)
    config = ModelConfig(
        f"softmax*{sizes.layers}", d_model=sizes.width, vocab_size=sizes.vocabulary,
        mlp_ratio=sizes.hidden / sizes.width, tie_embeddings=sizes.shared, norm_eps=1e-5,
        options={"n_heads": sizes.heads, "n_kv_heads": sizes.kv_heads},
    )  # fmt: skip
    with torch.device("meta"):
        model = LanguageModel(config)
    room = model.get_parameter("blocks.0.mlp.out_proj.weight").shape[1] - sizes.hidden
    weights = {"embedding.weight": w["embedding"], "norm.weight": w["norm"]}
    if not sizes.shared:
        weights["head.weight"] = w["head"]
    for i in range(sizes.layers):
        block = {
            "mixer_norm": w["mixer_norm"][i], "mlp_norm": w["mlp_norm"][i],
            "mixer.q_proj": _halves(w["q"][i], sizes.heads), "mixer.k_proj": _halves(w["k"][i], sizes.kv_heads),
            "mixer.v_proj": w["v"][i], "mixer.out_proj": w["out"][i],
            # Our hidden width is rounded up to a multiple of 8: the extra rows are 0.
            "mlp.in_proj": torch.cat([F.pad(w[x][i], (0, 0, 0, room)) for x in ("gate", "up")]),
            "mlp.out_proj": F.pad(w["down"][i], (0, room)),
        }  # fmt: skip
        weights |= {f"blocks.{i}.{name}.weight": x for name, x in block.items()}
    return filled(model, weights, file)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head: rotary pairs that are neighbours become i and i + n/2."""
    per_head = weight.unflatten(0, (heads, -1))
    return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], 1).flatten(0, 1)


# -- words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """A tokenizer of llama2.c: pieces of text with scores; 1 begins a text, 2 ends it, 3 to 258 are bytes."""

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    def encode(self, text: str, *, begin: bool = True) -> Tensor:
        """Turn a text into token ids [1,T].

        At first each character is a piece (an unknown one: its bytes). Then the two neighbours whose joined piece has
        the best score are joined, as long as any can be.
        """
        known = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        ids: list[int] = []
        for c in (" " + text) if text else "":
            raw = c.encode()
            ids += [known[raw]] if raw in known else [byte + 3 for byte in raw]
        while True:
            joined = [known.get(self.pieces[a] + self.pieces[b], -1) for a, b in itertools.pairwise(ids)]
            best = max((i for i, x in enumerate(joined) if x >= 0), key=lambda i: self.scores[joined[i]], default=None)
            if best is None:
                break
            ids[best : best + 2] = [joined[best]]
        return torch.tensor([[1] * begin + ids])

    def decode(self, ids: Tensor | list[int]) -> str:
        """Turn token ids [T] into text, without the space before its first word."""
        values = ids.flatten().tolist() if isinstance(ids, Tensor) else ids
        raw = b"".join(_text(self.pieces[i]) for i in values if i not in (1, 2))
        return raw.removeprefix(b" ").decode("utf-8", "replace")


def _text(piece: bytes) -> bytes:
    raw = re.fullmatch(rb"<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(raw[1].decode()) if raw else piece


def read_words(path: str | os.PathLike[str]) -> Words:
    """Read a tokenizer file of llama2.c: an integer (the longest piece), then a score, a length and bytes for each.

    Raises:
        StateformError: no such file, one of another kind, or cut short.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StateformError(f"cannot read {file}: {error.strerror or error}") from None
    require(len(data) >= 4, f"{file} has {len(data)} bytes; expected a tokenizer of llama2.c")
    (longest,), at = struct.unpack_from("<i", data), 4
    require(0 < longest < 1 << 16, f"{file} says that its longest piece has {longest} bytes; it is no tokenizer")
    pieces: list[bytes] = []
    scores: list[float] = []
    while at < len(data):
        require(at + 8 <= len(data), f"{file} is cut short after {len(pieces)} pieces")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + max(length, 0)
        require(0 <= length <= longest, f"piece {len(pieces)} of {file} has {length} bytes; it is no tokenizer")
        require(at <= len(data), f"{file} is cut short after {len(pieces)} pieces")
        pieces.append(data[at - length : at])
        scores.append(score)
    return Words(tuple(pieces), tuple(scores))
