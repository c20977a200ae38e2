"""Blocks of keys that a query chooses among: what they are scored by, and which are shown."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...system.precision import upcast


def count(keys: Tensor, block: int) -> int:
    """Count blocks that hold a cache [B,L,...] whose first key is the first token, two at least: a graph of any length
    is not one of a single block.
    """
    return keys.shape[1] // block + 2


def means(keys: Tensor, places: Tensor, block: int) -> Tensor:
    """Average the keys of each block.

    Args:
        keys: a cache [B,L,H,n].
        places: their numbers in the sequence [B|1,L], below 0 for what is no token.
        block: keys in a block.

    Returns:
        [B,blocks,H,n], right for blocks that are whole.
    """
    x, first = upcast(keys), places.div(block, rounding_mode="floor").clamp_min(-1) + 1  # 0: no token
    sums = x.new_zeros(x.shape[0], count(x, block) + 1, *x.shape[2:])
    return sums.scatter_add(1, first[..., None, None].expand_as(x), x)[:, 1:] / block


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
    scores = F.pad(scores, (0, most), value=-torch.inf)  # as many as are asked for, however few there are
    best = scores.topk(most, -1)
    shown = torch.where(best.values == -torch.inf, -torch.inf, 0.0).to(scores.dtype)
    return torch.full_like(scores, -torch.inf).scatter(-1, best.indices, shown)[..., : number.shape[0]]
