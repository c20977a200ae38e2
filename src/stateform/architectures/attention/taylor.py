"""Softmax attention by the Taylor polynomial of its exponential: n' = C(n + P, P) features.  arXiv 2402.18668

    phi(q)^T phi(k) = sum_{p<=P} (q^T k)^p / p!
    S_t = S_{t-1} + phi(k_t) v_t^T     s_t = s_{t-1} + phi(k_t)     y_t = phi(q_t)^T S_t / phi(q_t)^T s_t

The name there is Based; lemma 1 of arXiv 2405.15731 is the expansion for every degree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import require
from ..registry import register
from .features import FeatureAttention


def taylor_features(x: Tensor, degree: int) -> Tensor:
    """Map x to phi(x) [..., C(n+P,P)], phi(q)^T phi(k) = sum_{p<=P} (q^T k)^p / p! (arXiv 2405.15731, appendix C).

    The monomial x^{n_1..n_m} of degree p has the factor sqrt(1 / (n_1! ... n_m!)): each is built from the one before it
    by a variable of no smaller index, so that every monomial occurs once.
    """
    n = x.shape[-1]
    blocks = [torch.ones_like(x[..., :1])]
    exponents: list[tuple[int, ...]] = [()]
    for _ in range(degree):
        grown = [(*e, i) for e in exponents for i in range(e[-1] if e else 0, n)]
        parent = torch.tensor([exponents.index(e[:-1]) for e in grown], device=x.device)
        last = torch.tensor([e[-1] for e in grown], device=x.device)
        # sqrt(1/m!) of a power m, one factor at a time
        repeats = torch.tensor([e.count(e[-1]) for e in grown], dtype=x.dtype, device=x.device)
        blocks.append(blocks[-1][..., parent] * x[..., last] * repeats.rsqrt())
        exponents = grown
    return torch.cat(blocks, -1)


@register("taylor")
class Taylor(FeatureAttention):
    """Heads of linear attention with Taylor features.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head before the features; keep it small.
        degree: P; even, as an odd polynomial can make the denominator vanish.
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int = 4, degree: int = 2) -> None:
        super().__init__(d_model, n_heads, d_state)
        require(degree >= 2 and degree % 2 == 0, f"degree is {degree}; expected an even number, 2 or more")
        self.degree = degree

    def features(self, x: Tensor) -> Tensor:
        return taylor_features(x, self.degree)
