"""The impulse response of a system at a token: what one write does to everything that comes after it.

    h_i = A_i ... A_{j+1} b_j k_j,      alpha_ij = phi(q_i^T h_i) / eta_i,      i = j, j + 1, ...

the autonomous system hit by one impulse at j (arXiv 2510.09389): a column of the coefficients, where `horizon` looks
at rows. In python-control `impulse_response` is the same for a constant system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...forms import run
from ...system import System
from ...system.shapes import indices
from ..attention.coefficients import TILE, has_weights, influence, without_normaliser


@dataclass(frozen=True)
class ImpulseResponse:
    """What a write at one token leaves, 0, 1, 2, ... tokens later."""

    coefficients: Tensor
    """alpha_{j+d,j} [B,H,lags]; for vector states the norm of the contribution."""
    state: Tensor | None
    """||A_{j+d} ... A_{j+1} b_j k_j|| [B,H,lags], H the heads of the state (the writes of a token's micro-steps added
    up; with log_b and eta = "sum" in the coordinates of `stabilise`); None for a cache, whose entries stay as they are.
    """
    token: int

    def half_life(self) -> Tensor:
        """Find the first lag from which on what is left in the state is never again more than half of the most it was,
        [B,H]; inf where it is not within the tokens at hand (of the coefficients, for a cache).
        """
        size = (self.coefficients if self.state is None else self.state).abs().double()
        lags = torch.arange(size.shape[-1], device=size.device)
        above = torch.where(size > 0.5 * size.amax(-1, keepdim=True), lags, -1).amax(-1) + 1
        return torch.where(above < size.shape[-1], above.double(), torch.inf)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        lives = self.half_life().flatten(0, 1).tolist()
        return {
            "token": self.token, "coefficients": self.coefficients.abs().tolist(),
            "state": None if self.state is None else self.state.tolist(),
            "half_life": [None if math.isinf(x) else x for x in lives],
        }  # fmt: skip

    def __str__(self) -> str:
        lives = ", ".join("more" if math.isinf(x) else f"{x:.0f}" for x in self.half_life()[0].tolist()[:16])
        what = "its coefficients" if self.state is None else "the state"
        return (
            f"impulse at token {self.token}, seen for {self.coefficients.shape[-1] - 1} tokens\n"
            f"half of it is gone from {what} after (tokens, per head): {lives}"
        )


@torch.no_grad()
def impulse_response(
    system: System, token: int, *, lags: int | None = None, heads: Sequence[int] | None = None
) -> ImpulseResponse:
    """Compute the response of a system to the write at one token, in time and memory linear in the tokens that follow.

    Args:
        system: any causal system, from a zero state.
        token: j; negative ones count from the end.
        lags: tokens afterwards that are looked at (default all).
        heads: the heads wanted (default all; with an output map all heads count together).

    Raises:
        StateformError: a system that is not causal, or no such token.
    """
    require(system.causal, "the response after a write needs a causal system; see influence(system)")
    require(lags is None or (isinstance(lags, int) and lags >= 0), f"lags is {lags!r}; expected tokens, 0 or more")
    system = system if heads is None else system.select_heads(heads)
    (j,) = indices(token, system.T, "token")
    stop = system.T if lags is None else min(system.T, j + lags + 1)
    if system.readout.cached:
        alpha = [influence(system[:stop], queries=at)[..., j] for at in _tiles(j, stop, system)]
        return ImpulseResponse(torch.cat(alpha, -1), None, j)
    plain, eta = without_normaliser(system[:stop])
    after = plain[j:]
    alpha_j = _response(after)
    return ImpulseResponse(alpha_j if eta is None else alpha_j / eta[:, j:].transpose(1, 2), _state(after), j)


def _tiles(start: int, stop: int, system: System) -> list[range]:
    """Cut the queries start..stop-1 into stretches whose rows of coefficients are small."""
    step = max(1, TILE // stop)
    return [range(at, min(at + step, stop)) for at in range(start, stop, step)]


def _first(x: Tensor, system: System, r: int) -> Tensor:
    """Keep the value of a part at the first token (r steps of it), 0 after it, [B,T*r,...]."""
    x = x if x.ndim > 2 else x.expand(system.B, system.T * r, *x.shape)
    out = torch.zeros_like(x)
    out[:, :r] = x[:, :r]
    return out


def _response(system: System) -> Tensor:
    """Compute alpha_{d,0} of the writes of the first token, [B,H,T] (or the norm of their contributions)."""
    if not has_weights(system):
        d = system.d
        if d is not None:
            d = _first(system.gate("d").expand(system.B, system.T, system.H), system, 1)
        read = _run(replace(system, k=_first(system.k, system, system.micro), d=d))
        return read.transpose(1, 2).norm(dim=-1)
    assert system.v is not None
    ones = _first(torch.ones_like(system.v[..., :1]), system, system.micro)
    alpha = _run(replace(system, v=ones))
    if ones.is_complex():  # y = Re(alpha v): the imaginary part is the answer to -i
        alpha = torch.complex(alpha.real, _run(replace(system, v=-1j * ones)).real)
    return alpha.squeeze(-1).transpose(1, 2)


def _state(system: System) -> Tensor:
    """Compute ||h_d|| of the writes of the first token, [B,H,T]: the whole state is read, after its last write."""
    k = _first(system.k, system, system.micro)
    whole = replace(system, q=None, v=None, k=k, eta=None, eta_floor=None, d=None, w_out=None, exclusive=False)
    return _run(whole).transpose(1, 2).norm(dim=-1)


def _run(system: System) -> Tensor:
    y = run(system)
    return y
