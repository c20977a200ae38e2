"""A sequence in pieces, given what a layer makes of one piece: long inputs stretch by stretch, packed and padded rows.

Nothing here knows what a layer is. `Piece` is its computation from a state: x [B,T,d], the state before it (None: the
start), the form, and what the layers of a model share, to y and the state after it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import readable
from ..forms import FORMS, put_rows
from ..forms.packing import groups
from ..system.state import State

Shared = dict[str, Tensor]
"""What the layers of a model hand on, by name, [B,T,...] each."""
Piece = Callable[[Tensor, State | None, str, Shared | None], tuple[Tensor, State]]

STRETCH = {"cpu": 2**21}
"""Bytes of the input to a stretch, in the precision of the state. What a layer makes of them is ten times as much and
should stay in the cache; and memory that large tensors leave goes back to the system, so that the next ones pay for
every page anew.
"""
STRETCH_ELSEWHERE = 2**26
"""The same on an accelerator, which wants much work at a time and keeps its memory."""
LEAST = 128
"""Tokens that a stretch has at least: below, the calls cost more than the numbers."""


def stretch_length(x: Tensor, form: str) -> int:
    """Say how many tokens of x [B,T,d] to compute at a time, T for all. Stretches are of about one size: a short rest
    would be a poor product.
    """
    T = x.shape[1]
    if torch.compiler.is_compiling() or T <= LEAST:
        return T
    size = max(x.element_size(), 4) * x.shape[0] * x.shape[2]
    length = max(LEAST, STRETCH.get(x.device.type, STRETCH_ELSEWHERE) // max(1, size))
    if length >= T or not (form == "auto" or FORMS[form].forward) or not readable(x):
        return T
    parts = -(-T // (length - length % LEAST))
    return -(-T // (parts * LEAST)) * LEAST


def by_stretches(
    piece: Piece, length: int, x: Tensor, state: State | None, form: str, shared: Shared | None
) -> tuple[Tensor, State]:
    """Compute x [B,T,d] by stretches of `length` tokens: y, x and the state are all that is as long as T."""
    y: Tensor | None = None
    made: Shared = {}
    for start in range(0, x.shape[1], length):
        at = slice(start, start + length)
        handed = None if shared is None else {name: z[:, at] for name, z in shared.items()}
        part, state = piece(x[:, at], state, form, handed)
        y = part.new_empty(x.shape) if y is None else y
        y[:, at] = part
        for name, z in (handed or {}).items():
            if name not in (shared or {}):
                made[name] = made[name] if name in made else z.new_empty(*x.shape[:2], *z.shape[2:])
                made[name][:, at] = z
    if shared is not None:
        shared.update(made)
    assert y is not None and state is not None
    return y, state


def by_rows(
    piece: Piece, x: Tensor, kept: Tensor, ends: Tensor, before: State | None, blank: State, form: str,
    shared: Shared | None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Compute N sequences that lie one behind the other in x [B,T,d], those of one length together.

    Args:
        piece: what computes rows of one length.
        x: all tokens; those that no sequence has get the output 0.
        kept: the places in x, all B*T counted, of the tokens of the first sequence, then the second, ... [K].
        ends: where in `kept` the sequences begin and end, [N+1].
        before: the state before each sequence, N rows; None at the start.
        blank: N rows, those of sequences without a token in the state after them all.
        form: as in `sf.run`.
        shared: as in `Layer.forward`.
    """
    tokens, state = x.flatten(0, 1), blank
    y = x.new_zeros(tokens.shape)
    filled: Shared = {}
    for group in groups(ends, x.device):
        at = kept[group.tokens]
        handed = None if shared is None else {name: z.flatten(0, 1)[at] for name, z in shared.items()}
        part, new = piece(tokens[at], None if before is None else before.select(group.rows), form, handed)
        # In place where nothing looks at what was there: y may be as large as all the rest.
        put = Tensor.index_copy if torch.is_grad_enabled() or not readable(part) else Tensor.index_copy_
        y = put(y.to(part.dtype), 0, at.flatten(), part.flatten(0, 1))
        state = put_rows(state, group.rows, new)
        for name, z in (handed or {}).items():
            empty = filled[name] if name in filled else z.new_zeros(y.shape[0], *z.shape[2:])
            filled[name] = empty.index_copy(0, at.flatten(), z.flatten(0, 1))
    if shared is not None:
        shared.update({name: z.unflatten(0, (x.shape[0], x.shape[1])) for name, z in filled.items()})
    return y.unflatten(0, (x.shape[0], x.shape[1])), state


def owning(state: State) -> State:
    """Copy tensors of the state that are views of much larger ones: the last of T steps would keep all of them."""

    def own(x: Tensor) -> Tensor:
        return x.clone() if x.untyped_storage().nbytes() > 2 * x.numel() * x.element_size() else x

    return state.map(own) if all(readable(x) for x in state.tensors.values()) else state
