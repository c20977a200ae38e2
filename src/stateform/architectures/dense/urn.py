"""Unitary recurrent network: each token is an orthogonal matrix, the state is their product.  arXiv 2208.05719

    h_t = Q_t h_{t-1}     Q_t = exp(X_t - X_t^T)     y_t = W_o h_t

No activation, no additive input, no decay: ||h_t|| = ||h_0|| for ever. X_t is strictly upper triangular, with entries
linear in u_t; with `rows`, only its first rows are not zero. The state of the System begins at zero: a row's first
token writes Q_1 h_0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import heads, precise, precise_linear, split_size
from ...system import System
from ...system.precision import without_autocast
from ..registry import register


@register("urn")
class URN(Layer):
    """Heads of orthogonal matrices applied to a start vector.

    Args:
        d_model: width.
        n_heads: blocks of the matrices.
        d_state: size of a block, 2 or more.
        rows: of X that are not zero (default all).
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int = 8, rows: int | None = None) -> None:
        super().__init__(d_model)
        split_size(d_model, n_heads)
        rows = d_state - 1 if rows is None else rows
        require(d_state >= 2, f"d_state is {d_state}; expected 2 or more: a matrix of one entry cannot turn")
        require(1 <= rows < d_state, f"rows is {rows}; expected 1 to d_state - 1 = {d_state - 1}")
        self.n_heads, self.d_state, self.rows = n_heads, d_state, rows
        self.x_proj = nn.Linear(d_model, n_heads * len(self.generators()))
        self.start = nn.Parameter(torch.randn(n_heads, d_state))
        self.out_proj = nn.Linear(n_heads * d_state, d_model, bias=False)

    def generators(self, device: torch.device | None = None) -> Tensor:
        """Give e_i e_j^T - e_j e_i^T for each entry i < j of X, [entries,n,n]."""
        i, j = torch.triu_indices(self.rows, self.d_state, 1, device=device)
        e = torch.eye(self.d_state, device=device)
        return e[i, :, None] * e[j, None] - e[j, :, None] * e[i, None]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_start = torch.arange(u.shape[1], device=u.device) == 0
        if past is not None and past.position is not None:
            at_start = at_start & (past.position == 0)[:, None]
        with without_autocast(u.device):  # what an angle loses to rounding stays lost: no half precision here
            x = heads(precise_linear(self.x_proj, u), self.n_heads)  # [B,T,H,entries]
            Q = torch.matrix_exp(torch.einsum("bthe,eij->bthij", x, self.generators(x.device).to(x)))  # [B,T,H,n,n]
            # A step towards the nearest orthogonal matrix: exp loses digits in squaring.
            Q = 1.5 * Q - 0.5 * Q @ Q.mT @ Q
            start = F.normalize(precise(self.start), dim=-1)
            first = torch.where(at_start[..., None, None], (Q @ start.unsqueeze(-1)).squeeze(-1), 0.0)
        return System(None, first, None, transition=Q)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2).to(u.dtype))  # [B,T,d_model]
