"""How much of its width a stack uses: effective rank and decay of the eigenspectrum, layer by layer.

RankMe = exp( - sum_k p_k log p_k ),   p_k = sigma_k / sum_j sigma_j          (arXiv 2210.02885, eq. 1-2)
lambda_k ~ k^(-alpha)                  of the covariance of the features      (alpha-ReQ, arXiv 2202.05808)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require
from .stream import Mix, stream


def effective_rank(Y: Tensor) -> Tensor:
    """Compute RankMe of Y [...,N,d]: exp of the entropy of the singular values, 1 to min(N, d) (0 for Y = 0)."""
    sigma = torch.linalg.svdvals(_wide(Y))
    p = sigma / sigma.sum(-1, keepdim=True).clamp_min(1e-300)
    return torch.where(sigma.sum(-1) > 0, torch.special.entr(p).sum(-1).exp(), 0.0)


def spectral_decay(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Fit alpha of the eigenvalues k^(-alpha) of the covariance of Y [N,d], with its standard error: a least-squares
    line through log lambda_k against log k, over the eigenvalues above rounding.
    """
    centred = _wide(Y) - _wide(Y).mean(0)
    values = torch.linalg.svdvals(centred).square()
    values = values[values > values[0] * 1e-12] if len(values) else values
    if len(values) < 3:
        return torch.tensor(torch.nan), torch.tensor(torch.nan)
    x = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
    y = values.log().cpu()
    dx = x - x.mean()
    slope = (dx * y).sum() / dx.square().sum()
    left = y - y.mean() - slope * dx
    return -slope, (left.square().sum() / (len(x) - 2) / dx.square().sum()).sqrt()


@dataclass(frozen=True)
class Representation:
    """Effective rank and eigenspectrum of the tokens' features, from the embeddings (0) to after the last layer."""

    ranks: tuple[float, ...]
    """RankMe of each layer, over all tokens given."""
    alphas: tuple[float, ...]
    """Decay of the eigenspectrum of each layer: large is few directions, 1 is close to what good features showed."""
    errors: tuple[float, ...]
    """Standard errors of the fits of `alphas`: a line through a curve that need not be straight."""
    tokens: int
    width: int

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "ranks": list(self.ranks), "alphas": list(self.alphas), "errors": list(self.errors),
            "tokens": self.tokens, "width": self.width,
        }  # fmt: skip

    def __str__(self) -> str:
        most = min(self.tokens, self.width)
        head = f"effective rank (RankMe, of at most {most}) and spectral decay (alpha-ReQ), {self.tokens} tokens"
        rows = zip(self.ranks, self.alphas, self.errors, strict=True)
        return "\n".join(
            [head, *(f"  layer {i}: rank {r:.4g}, alpha {a:.3g} +- {e:.1g}" for i, (r, a, e) in enumerate(rows))]
        )


def _wide(Y: Tensor) -> Tensor:
    return Y.to(torch.complex128 if Y.is_complex() else torch.float64)


@torch.no_grad()
def representation(thing: nn.Module | Mix | Sequence[Mix], inputs: Tensor) -> Representation:
    """Effective rank and spectral decay of the residual stream, layer by layer, over all tokens of the batch.

    Args:
        thing: a model (inputs: tokens [B,T]), or a layer or sequence of layers (inputs: x [B,T,d]).
        inputs: the more tokens, the less the rank is bounded by their number: take several times the width.

    Raises:
        StateformError: fewer than two tokens.
    """
    require(inputs.ndim >= 2 and inputs.shape[0] * inputs.shape[1] >= 2, "give at least two tokens, [B,T,...]")
    features = [x.flatten(0, 1) for x in stream(thing, inputs)]
    fits = [spectral_decay(x) for x in features]
    return Representation(
        tuple(float(effective_rank(x)) for x in features), tuple(float(a) for a, _ in fits),
        tuple(float(e) for _, e in fits), *features[0].shape,
    )  # fmt: skip
