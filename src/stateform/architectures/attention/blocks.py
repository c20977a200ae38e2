"""Blocks of keys that a query chooses among: what they are scored by, and which are shown."""

from __future__ import annotations

import torch
from torch import Tensor

from ...system.precision import upcast


def count(keys: Tensor, block: int) -> int:
    """Count the blocks of a cache [B,L,...] whose first token may be that of its sequence."""
    return -(-keys.shape[1] // block)


def means(keys: Tensor, seen: Tensor, block: int) -> Tensor:
    """Average the keys of each block.

    Args:
        keys: a cache [B,L,H,n], of which the last `seen` are tokens.
        seen: tokens so far, per row [B|1].
        block: keys in a block, counted from the first token.

    Returns:
        [B,blocks,H,n], right for blocks that are whole.
    """
    x = upcast(keys)
    number = (torch.arange(x.shape[1], device=x.device) - x.shape[1] + seen[:, None]).div(block, rounding_mode="floor")
    index = number.clamp_min(-1)[..., None, None] + 1  # the first sum is that of what is no token
    sums = x.new_zeros(x.shape[0], count(x, block) + 1, *x.shape[2:]).scatter_add(1, index.expand_as(x), x)
    return sums[:, 1:] / block


def chosen(scores: Tensor, own: Tensor, most: int, *, first: int = 0, near: int = 1) -> Tensor:
    """Show each query the blocks with the highest scores among those up to its own.

    Args:
        scores: [B,T,H,blocks].
        own: number of the block that each query is in, [B|1,T].
        most: blocks that are shown, those that always are among them.
        first: so many at the start are always shown.
        near: so many up to its own are always shown.

    Returns:
        0 for a block that is shown, -inf for one that is hidden, [B,T,H,blocks].
    """
    number = torch.arange(scores.shape[-1], device=scores.device)
    back = (own[..., None] - number).unsqueeze(2)  # [B|1,T,1,blocks]
    scores = scores.masked_fill((back < near) | (number < first), torch.inf).masked_fill(back < 0, -torch.inf)
    best = scores.topk(min(most, scores.shape[-1]), -1)
    shown = torch.where(best.values == -torch.inf, -torch.inf, 0.0).to(scores.dtype)
    return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, shown)
