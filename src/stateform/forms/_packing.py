"""Packed sequences: rows of one length go together, so that every form sees plain batches and nothing can leak."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import StateformError, require, values_checked


@dataclass(frozen=True)
class Group:
    """The sequences of one length in a pack."""

    rows: Tensor
    """Their numbers [N']."""
    tokens: Tensor
    """Their tokens in the pack [N',l]."""


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int, batch: int) -> None:
    """Raise unless cu_seqlens marks sequences of a pack [1,tokens,...]."""
    ends_given = isinstance(cu_seqlens, Tensor) and cu_seqlens.ndim == 1 and len(cu_seqlens) >= 1
    require(ends_given and not cu_seqlens.is_floating_point(),
            "cu_seqlens is expected to be an integer tensor [N+1]: 0 and the end of each sequence")  # fmt: skip
    require(batch == 1, f"packed sequences lie in one row (B = 1); this input has B = {batch}")
    if not values_checked(cu_seqlens):
        return
    ends = cu_seqlens.tolist()
    require(ends[0] == 0, f"cu_seqlens starts at {ends[0]}; expected 0")
    require(ends[-1] == tokens, f"cu_seqlens ends at {ends[-1]}; expected the number of tokens, {tokens}")
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        if b < a:
            raise StateformError(f"cu_seqlens decreases from {a} to {b} at index {i + 1}; expected increasing ends")


def groups(cu_seqlens: Tensor) -> Iterator[Group]:
    """The sequences of a pack, by length (empty ones are left out)."""
    starts, ends = cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist()
    by_length: dict[int, list[int]] = {}
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        by_length.setdefault(end - start, []).append(row)
    for length, rows in by_length.items():
        if length:
            first = torch.tensor([starts[row] for row in rows], device=cu_seqlens.device)
            yield Group(
                torch.tensor(rows, device=cu_seqlens.device), first[:, None] + torch.arange(length, device=first.device)
            )


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A padding mask [B,T] as a pack: the tokens kept (flat indices), and cu_seqlens [B+1].

    Raises:
        StateformError: if a row has a hole (a masked token between kept ones).
    """
    keep = mask.bool()
    lengths = keep.sum(1)
    if values_checked(mask):
        first = keep.int().argmax(1)
        last = keep.shape[1] - keep.int().flip(1).argmax(1)
        holes = (lengths > 0) & (last - first != lengths)
        if bool(holes.any()):
            row = int(holes.nonzero()[0])
            raise StateformError(f"attention_mask has a hole in row {row}; expected padding on the left or right alone")
    cu_seqlens = torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)])
    return keep.flatten().nonzero().squeeze(1), cu_seqlens
