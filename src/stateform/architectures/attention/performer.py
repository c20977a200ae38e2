"""Softmax attention by positive random features.  arXiv 2009.14794

    phi(x) = exp(w_r^T x - |x|^2 / 2) / sqrt(m), r = 1 .. m, w_r normal                                       (lemma 1)
    S_t = S_{t-1} + phi(k_t) v_t^T     s_t = s_{t-1} + phi(k_t)     y_t = phi(q_t)^T S_t / phi(q_t)^T s_t

The directions w_r are orthogonal in blocks of n, and drawn once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import require
from ...layer import Past
from ...layer.parts import heads, precise, split_size
from ...system import System
from ..registry import register
from .features import FeatureAttention


def random_directions(m: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw m directions [m,n] for `positive_features`: normal, and orthogonal in blocks of n for a smaller variance."""
    blocks = [_rotation(n, generator) for _ in range(-(-m // n))]
    return torch.cat(blocks)[:m] * _normal(m, n, generator).norm(dim=-1, keepdim=True)


def _rotation(n: int, generator: torch.Generator | None) -> Tensor:
    """Draw an orthogonal matrix, every one equally likely (a QR decomposition alone prefers some signs)."""
    Q, R = torch.linalg.qr(_normal(n, n, generator))
    return Q * R.diagonal().sign()


def _normal(m: int, n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(m, n, generator=generator, device=None if generator is None else generator.device)


def positive_features(x: Tensor, directions: Tensor) -> Tensor:
    """Map x to phi(x) = exp(w_r^T x - |x|^2 / 2) / sqrt(m), r = 1 .. m: phi(q)^T phi(k) is exp(q^T k) on average over
    the directions w.
    """
    return torch.exp(_exponents(x, directions)) / math.sqrt(len(directions))


def _exponents(x: Tensor, directions: Tensor) -> Tensor:
    return x @ directions.to(x).T - x.square().sum(-1, keepdim=True) / 2


@register("performer")
class Performer(FeatureAttention):
    """Heads of linear attention with positive random features.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head before the features (default d_model / n_heads).
        n_features: m random directions, orthogonal in blocks; they are a buffer, drawn once.
    """

    directions: Tensor

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_features: int = 32) -> None:
        super().__init__(d_model, n_heads, d_state or split_size(d_model, n_heads))
        require(n_features >= 1, f"n_features is {n_features}; expected 1 or more")
        self.register_buffer("directions", random_directions(n_features, self.d_key))

    def features(self, x: Tensor) -> Tensor:
        return positive_features(x, self.directions)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """Put the largest exponent of each key into log_b, since it may be far below what a number can hold; that of
        each query cancels in y.
        """
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        q, k = (_exponents(precise(x) * self.d_key**-0.25, self.directions) for x in (q, k))  # [B,T,H,m]
        most_q, most_k = (x.detach().amax(-1, keepdim=True) for x in (q, k))  # [B,T,H,1]
        q, k = torch.exp(q - most_q), torch.exp(k - most_k)
        return System(q.to(v.dtype), k.to(v.dtype), v, log_b=most_k.squeeze(-1), eta="sum")
