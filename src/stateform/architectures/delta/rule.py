"""The delta rule as a System: rank-1 feedback f w^T with f = k.

How much is erased, and through which decay, is in w: what is written then all lies at one key, so that fewer products
are needed than for two.
"""

from __future__ import annotations

from torch import Tensor

from ...layer.parts import precise
from ...system import System


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None = None) -> System:
    """Write S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T, read by q, as a System.

    Args:
        q: [B,T,H,n], or shared by groups of the H heads, as k may be.
        k: [B,T,H,n].
        v: [B,T,H,p].
        beta: [B,T,H].
        g: log decay, none, one a head [B,T,H] or one a key [B,T,H,n].
    """
    if g is None:
        w = spread(-beta, k)
    elif g.ndim == beta.ndim:
        w = spread((g.exp() * precise(-beta)).to(k.dtype), k)
    else:
        w = (g.exp() * precise(spread(-beta, k))).to(k.dtype)
    return System(q, k, v, log_decay=g, b=beta, f=k, w=w)


def spread(c: Tensor, k: Tensor) -> Tensor:
    """Multiply c [B,T,H] with k [B,T,H',n], of which H/H' heads in a row share one."""
    if c.shape[2] == k.shape[2]:
        return c.unsqueeze(-1) * k
    return (c.unflatten(2, (k.shape[2], -1)).unsqueeze(-1) * k.unsqueeze(3)).flatten(2, 3)
