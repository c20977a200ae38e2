"""What the versions of RWKV share: the token shift, and how they begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...layer import Past
from ...layer.parts import above_zero, more_than_a_sign, split_size


def mixed(u: Tensor, past: Past | None, *shares: Tensor) -> list[Tensor]:
    """Shift tokens: u_t + (u_{t-1} - u_t) mu for each share mu of the token before (zero before the first)."""
    before = (past or Past()).extend("shift", u, 1)[:, :-1]
    wide = u.dtype if not shares else torch.promote_types(u.dtype, shares[0].dtype)  # under autocast shares are wider
    return [torch.lerp(u.to(wide), before.to(wide), mu.to(wide)) for mu in shares]


def first_shares(d_model: int, *powers: float) -> nn.Parameter:
    """Make shares [len(powers),d_model]: channel i starts with 1 - (i / d_model)^power of the token before."""
    i = torch.arange(d_model) / d_model
    return nn.Parameter(torch.stack([1 - i**power for power in powers]))


def zigzag(size: int) -> Tensor:
    """Give 0, 1, -1, 0, 1, -1, ..."""
    return (torch.arange(1, size + 1) % 3 - 1).to(torch.get_default_dtype())


def low_rank(d_model: int, rank: int | None, activation: nn.Module | None = None, *, factor: float) -> nn.Sequential:
    """Make x -> W_2 act(W_1 x), zero at first; the rank is by default about factor sqrt(d_model), in steps of 32."""
    rank = max(32, round(factor * math.sqrt(d_model) / 32) * 32) if rank is None else rank
    down, up = nn.Linear(d_model, rank, bias=False), nn.Linear(rank, d_model, bias=False)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1 * max(1.0, math.sqrt(rank / d_model)))
    return nn.Sequential(down, activation or nn.Identity(), up)


def head_norm(d_model: int, n_heads: int, eps: float) -> nn.GroupNorm:
    """Make the norm that gives the values of each head mean 0 and variance 1."""
    more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
    return nn.GroupNorm(n_heads, d_model, eps=above_zero("norm_eps", eps))


def normalised(norm: nn.GroupNorm, y: Tensor) -> Tensor:
    """Normalise the reads y [B,T,H,p], to [B,T,H*p]."""
    return norm(y.flatten(2).flatten(0, 1)).unflatten(0, y.shape[:2])
