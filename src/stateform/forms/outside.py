"""What is added to the logits of an exp readout, g_{j+1} + ... + g_i + beta_j + r_{i-j} + m_{i,j/block}; -inf hides.

See `softmax`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import readable, require
from ..graph import any_length
from ..system import System
from ..system.precision import real_dtype, upcast
from ..system.readout import SoftmaxRead
from ..system.shapes import spread_heads
from ..system.state import State


@dataclass(frozen=True)
class Outside:
    """What is added to the logits of a system behind its past."""

    past: int
    """Keys in the cache before the first token, L."""
    seen: Tensor
    """Tokens seen before, per row [B]."""
    log_weight: Tensor | None
    """Of each past key, its bias and the log decays from it to the end of the past [B,L,H|1]."""
    g: Tensor | None
    """Log decays of the new tokens [B|1,T,H|1]."""
    bias: Tensor | None
    """Biases of the new keys [B|1,T,H|1]."""
    distance: Tensor | None
    """Biases of the distances [H|1,D]."""
    blocks: Tensor | None
    """Biases of the blocks of keys, for each new token [B,T,H|1,M]."""
    block: int
    """Keys in a block."""

    def of_distances(self, i: Tensor, j: Tensor) -> Tensor:
        """Look up the biases of queries i [queries,1] and keys j [keys]: [1,H|1,queries,keys]."""
        assert self.distance is not None
        return self.distance[None, :, (i - j).clamp(0, self.distance.shape[1] - 1)]

    def of_blocks(self, rows: slice | Tensor, j: Tensor) -> Tensor:
        """Look up the biases of chosen new tokens and keys j [keys]: [B,H|1,queries,keys]."""
        assert self.blocks is not None
        asked = select(self.blocks, rows).transpose(1, 2)  # [B,H|1,queries,M]
        number = (self.seen[:, None] - self.past + j).clamp(min=0) // self.block  # a key's place in its sequence
        return asked.gather(-1, number[:, None, None].expand(*asked.shape[:3], -1))


def select(x: Tensor, rows: slice | Tensor) -> Tensor:
    """Select tokens of x [B,T,...]."""
    if isinstance(rows, slice):  # whose ends a graph of any length sees as numbers if it is taken as it is
        return x[:, rows.start : rows.stop]
    return x[:, rows]


def outside(system: System, state: State | None, past: int) -> Outside:
    """Gather what is added to the logits."""
    B, T, parts = system.B, system.T, system.parts
    precise = real_dtype(upcast(system.k).dtype)
    seen = torch.zeros(B, dtype=torch.long, device=system.device) if state is None else state["position"]

    def per_token(name: str) -> Tensor | None:
        x = parts.get(name)
        return x if x is None else (x if x.ndim == 3 else x[None, None].expand(1, T, -1)).to(precise)

    g, bias = per_token("forget"), per_token("bias")
    distance, blocks = (None if (x := parts.get(name)) is None else x.to(precise) for name in ("distance", "blocks"))
    block = _check_blocks(system, seen, past)
    log_weight = None
    if g is not None or bias is not None:
        none = system.k.new_zeros(1, T, 1, dtype=precise)
        g, bias = none if g is None else g, none if bias is None else bias
        log_weight = none.new_zeros(B, 0, lcm(g.shape[2], bias.shape[2])) if state is None else state["log_weight"]
    return Outside(past, seen, log_weight, g, bias, distance, blocks, block)


def _check_blocks(system: System, seen: Tensor, past: int) -> int:
    """Raise unless every key has a block; return how many are in one."""
    read = system.readout
    if not isinstance(read, SoftmaxRead) or read.blocks is None or read.block is None:
        return 1
    if torch.compiler.is_compiling():  # a graph of any length has no number to compare
        return read.block
    held, before = read.blocks.shape[3] * read.block, int(seen.max()) if readable(seen) and len(seen) else past
    require(held >= before + system.T, f"{read.blocks.shape[3]} blocks of {read.block} keys hold {held} of the "
            f"{before + system.T} tokens so far; expected blocks [B,T,H,M] for all of them")  # fmt: skip
    return read.block


def bias_of(
    added: Outside, log_weight: Tensor | None, start: int, stop: int, system: System
) -> tuple[int, Tensor | None, Tensor | None]:
    """Find, for the queries start..stop, the first key that any of them sees; what is added to their logits,
    [B|1,H|1,queries,keys] or None for "causal, nothing else"; and the running log weights of all keys up to `stop`.
    """
    L, device = added.past, added.seen.device
    cut = system.window is not None and (any_length(L + stop) or system.window < stop)
    free = added.g is None and added.distance is None and added.blocks is None
    if free and system.causal and start == L == 0 and not cut:
        return 0, None, None  # before a mask of queries x keys is made
    low = 0 if system.window is None or any_length(L + start) else max(0, L + start - system.window + 1)
    i = torch.arange(L + start, L + stop, device=device)[:, None]
    j = torch.arange(low, L + stop, device=device)
    visible = _visible(system, i - j)[None, None]
    valid = added.seen.clamp(max=L)
    uneven = L > 0 and (not readable(valid) or bool((valid < L).any()))
    if uneven:
        visible = visible & (j >= (L - valid)[:, None])[:, None, None]
    if free and stop - start == 1 and system.window is None and not uneven:
        return low, None, None
    H, bias = system.H, torch.zeros(1, 1, 1, 1, device=device, dtype=system.dtype)
    if added.g is not None:
        assert added.bias is not None and log_weight is not None
        bias, log_weight = _weighted_keys(added.g[:, start:stop], added.bias[:, start:stop], log_weight, low)
    if added.distance is not None:
        bias = spread_heads(bias, H, 1) + spread_heads(added.of_distances(i, j), H, 1)
    if added.blocks is not None:
        bias = spread_heads(bias, H, 1) + spread_heads(added.of_blocks(slice(start, stop), j), H, 1)
    return low, torch.where(visible, bias, -torch.inf), log_weight


def _visible(system: System, behind: Tensor) -> Tensor:
    """Mark, by True, the keys so many tokens behind a query that it sees."""
    away = behind if system.causal else behind.abs()
    return away >= 0 if system.window is None else (away >= 0) & (away < system.window)


def _weighted_keys(g: Tensor, bias: Tensor, log_weight: Tensor, low: int) -> tuple[Tensor, Tensor]:
    """Sum bias_j + g_{j+1} + ... + g_i of c queries and the keys from `low` on [B,H|1,c,keys], and of every key up to
    the last query [B,keys,H|1], from log decays and biases [B|1,c,H|1] and the log weights of earlier keys.
    """
    B, c, H = log_weight.shape[0], g.shape[1], log_weight.shape[2]
    g, bias = (spread_heads(x, H) for x in (g, bias))
    inclusive = torch.cumsum(g, 1)
    later = torch.cat([g[:, 1:], torch.zeros_like(g[:, :1])], 1).flip(1).cumsum(1).flip(1)
    steps = torch.where(torch.ones(c, c, dtype=torch.bool, device=g.device).tril(-1)[..., None], g[:, :, None], 0.0)
    inside = (torch.cumsum(steps, 1) + bias[:, None]).expand(B, -1, -1, H)
    before = log_weight[:, None, low:] + inclusive[:, :, None]
    new = torch.cat([log_weight + inclusive[:, -1:], (later + bias).expand(B, -1, H)], 1)
    return torch.cat([before, inside], 2).movedim(-1, 1), new


def bias_of_rows(added: Outside, rows: Tensor, system: System) -> Tensor:
    """Give what is added to the logits of chosen queries from an empty cache, [B|1,H|1,rows,T]; memory rows x T."""
    i, j = rows[:, None], torch.arange(system.T, device=rows.device)
    visible = _visible(system, i - j)
    H, bias = system.H, torch.zeros(1, 1, 1, 1, device=rows.device, dtype=real_dtype(upcast(system.k).dtype))
    if added.g is not None and added.bias is not None:
        g = added.g.transpose(1, 2)
        sums = [F.pad(_until(g[..., : row + 1]), (0, system.T - row - 1)) for row in rows.tolist()]
        own = added.bias.transpose(1, 2).unsqueeze(2)
        bias = spread_heads(torch.stack(sums, 2), H, 1) + spread_heads(own, H, 1)
    if added.distance is not None:
        bias = spread_heads(bias, H, 1) + spread_heads(added.of_distances(i, j), H, 1)
    if added.blocks is not None:
        bias = spread_heads(bias, H, 1) + spread_heads(added.of_blocks(rows, j), H, 1)
    return torch.where(visible, bias, -torch.inf)


def _until(g: Tensor) -> Tensor:
    """Sum g_{j+1} + ... + g_i at j, for g up to i on the last axis."""
    return F.pad(g[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
