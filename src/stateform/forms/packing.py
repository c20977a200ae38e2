"""Packed sequences: rows of one length go together, so that every form sees plain batches and nothing can leak."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import StateformError, require, require_values, values_checked
from ..graph import require_exportable


@dataclass(frozen=True)
class Group:
    """The sequences of one length in a pack."""

    rows: Tensor
    """Their numbers [N']."""
    tokens: Tensor
    """Their tokens in the pack [N',l]."""


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int, batch: int, device: torch.device) -> None:
    """Raise unless cu_seqlens marks sequences of a pack [1,tokens,...] on a device."""
    if not (
        isinstance(cu_seqlens, Tensor) and cu_seqlens.ndim == 1 and len(cu_seqlens) and cu_seqlens.dtype in INTEGERS
    ):
        given = (
            f"{cu_seqlens.dtype} of shape {list(cu_seqlens.shape)}"
            if isinstance(cu_seqlens, Tensor)
            else f"a {type(cu_seqlens).__name__}"
        )
        raise StateformError(
            f"cu_seqlens is {given}; expected an integer tensor [N+1], 0 and the end of each sequence: "
            "torch.tensor([0, 5, 9]) for two sequences of 5 and 4 tokens"
        )
    require(batch == 1, f"packed sequences lie in one row (B = 1); this input has B = {batch}")
    if cu_seqlens.device.type != "cpu" and cu_seqlens.device != device:
        raise StateformError(f"cu_seqlens is on {cu_seqlens.device}, the input on {device}; move it with .to(device)")
    _require_values(cu_seqlens, "cu_seqlens")
    if torch.compiler.is_compiling():
        return
    ends = cu_seqlens.tolist()  # the forms need them as numbers in any case
    require(ends[0] == 0, f"cu_seqlens starts at {ends[0]}; expected 0")
    require(ends[-1] == tokens, f"cu_seqlens ends at {ends[-1]}; expected the number of tokens, {tokens}")
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        if b < a:
            raise StateformError(f"cu_seqlens decreases from {a} to {b} at index {i + 1}; expected increasing ends")


def _require_values(x: Tensor, name: str) -> None:
    """Raise unless a tensor has values: which tokens go together follows from them."""
    require_exportable(
        name, "which tokens go together follows from its values", "leave it out there, one length a batch"
    )
    require(not x.is_meta, f"{name} is on the device meta, where it has no values; leave it out there")


def groups(cu_seqlens: Tensor, device: torch.device) -> Iterator[Group]:
    """Group the sequences of a pack, by length (empty ones are left out), as indices on a device."""
    starts, ends = cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist()
    by_length: dict[int, list[int]] = {}
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        by_length.setdefault(end - start, []).append(row)
    for length, rows in by_length.items():
        if length:
            first = torch.tensor([starts[row] for row in rows], device=device)
            yield Group(torch.tensor(rows, device=device), first[:, None] + torch.arange(length, device=device))


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a padding mask [B,T] into a pack: the tokens kept (flat indices), and cu_seqlens [B+1].

    Raises:
        StateformError: if a row has a hole (a masked token between kept ones), or the mask other values than 0 and 1.
    """
    _require_values(mask, "attention_mask")
    require_values(mask, "attention_mask", (0, 1), "1 for a token, 0 for padding")
    keep = mask.bool()
    lengths = keep.sum(1)
    if values_checked(mask):
        # A row without holes rises and falls at most once: from padding to tokens and back.
        edges = (keep[:, 1:] != keep[:, :-1]).sum(1)
        outside = 2 - keep[:, :1].sum(1) - keep[:, -1:].sum(1)
        holes = (lengths > 0) & (edges != outside)
        if bool(holes.any()):
            row = int(holes.nonzero()[0])
            raise StateformError(f"attention_mask has a hole in row {row}; expected padding on the left or right alone")
    cu_seqlens = torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)])
    return keep.flatten().nonzero().squeeze(1), cu_seqlens
