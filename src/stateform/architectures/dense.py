"""Dense transitions from the input: a selected dictionary of matrices, and block-diagonal recurrences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past
from ..layer.parts import heads, precise, precise_linear, split_size
from ..system import System
from ..system.precision import without_autocast
from .registry import register


def column_normalised(A: Tensor, p: float) -> Tensor:
    """A [..., n, n] with every column divided by its L_p norm: for p = 1 no step grows in the 1-norm."""
    return A / A.abs().pow(p).sum(-2, keepdim=True).clamp_min(1e-12).pow(1 / p)


@register("sd_ssm", paper="arXiv 2412.19350")
class SDSSM(Layer):
    """Selective dense state-space model: A_t mixes a dictionary of matrices, the columns of the mixture L_p-normalised.

    h_t = A_t h_{t-1} + B u_t,  A_t = normalise( sum_k softmax(W u_t)_k A_k ),  y_t = W_o LayerNorm(h_t) (section 3).

    Args:
        d_model: width.
        d_state: n.
        dictionary: number of matrices.
        p: of the norm; between 1.1 and 1.4 in the paper.
    """

    def __init__(self, d_model: int, *, d_state: int = 16, dictionary: int = 6, p: float = 1.2) -> None:
        super().__init__(d_model)
        require(dictionary >= 1, f"dictionary is {dictionary}; expected 1 or more matrices")
        require(p >= 1, f"p is {p}; expected 1 or more")
        self.p = p
        self.A = nn.Parameter(torch.randn(dictionary, d_state, d_state) * d_state**-0.5)
        self.select_proj = nn.Linear(d_model, dictionary)
        self.b_proj = nn.Linear(d_model, d_state, bias=False)
        self.norm = nn.LayerNorm(d_state)
        self.out_proj = nn.Linear(d_state, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        mixed = torch.einsum("btk,kij->btij", self.select_proj(u).softmax(-1), self.A)
        A = column_normalised(mixed, self.p).unsqueeze(2)
        return System(None, self.b_proj(u).unsqueeze(2).to(A.dtype), None, transition=A)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2).to(u.dtype)))


@register("block_diagonal", paper="arXiv 2309.07412")
class BlockDiagonal(Layer):
    """Block-diagonal recurrence: each head's dense transition is a linear function of the input, column-normalised.

    h_t = A_t h_{t-1} + B u_t per head,  A_t = normalise(W u_t),  y_t = W_o gelu(h_t) (section 4).

    Args:
        d_model: width.
        n_heads: blocks.
        d_state: size of a block.
        p: of the norm of the columns.
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int = 4, p: float = 1.2) -> None:
        super().__init__(d_model)
        split_size(d_model, n_heads)
        require(p >= 1, f"p is {p}; expected 1 or more")
        self.n_heads, self.d_state, self.p = n_heads, d_state, p
        self.a_proj = nn.Linear(d_model, n_heads * d_state * d_state)
        self.b_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.out_proj = nn.Linear(n_heads * d_state, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        A = self.a_proj(u).unflatten(-1, (self.n_heads, self.d_state, self.d_state))
        return System(None, heads(self.b_proj(u), self.n_heads), None, transition=column_normalised(A, self.p))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(F.gelu(y.flatten(2)))


@register("urn", paper="arXiv 2208.05719")
class URN(Layer):
    """Unitary recurrent network: each token is an orthogonal matrix, and the state is their product on a start vector.

    h_t = Q_t h_{t-1},  Q_t = exp(X_t - X_t^T),  y_t = W_o h_t: no activation, no additive input, no decay,
    so that ||h_t|| = ||h_0|| for ever. X_t is strictly upper triangular, with entries linear in u_t; with `rows`, only
    its first rows are not zero. The state of the System begins at zero: a row's first token writes Q_1 h_0.

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
        """e_i e_j^T - e_j e_i^T for each entry i < j of X, [entries,n,n]."""
        i, j = torch.triu_indices(self.rows, self.d_state, 1, device=device)
        e = torch.eye(self.d_state, device=device)
        return e[i, :, None] * e[j, None] - e[j, :, None] * e[i, None]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        at_start = torch.arange(u.shape[1], device=u.device) == 0
        if past is not None and past.position is not None:
            at_start = at_start & (past.position == 0)[:, None]
        with without_autocast(u.device):  # what an angle loses to rounding stays lost: no half precision here
            x = heads(precise_linear(self.x_proj, u), self.n_heads)
            Q = torch.matrix_exp(torch.einsum("bthe,eij->bthij", x, self.generators(x.device).to(x)))
            Q = (
                1.5 * Q - 0.5 * Q @ Q.mT @ Q
            )  # a step towards the nearest orthogonal matrix: exp loses digits in squaring
            start = F.normalize(precise(self.start), dim=-1)
            first = torch.where(at_start[..., None, None], (Q @ start.unsqueeze(-1)).squeeze(-1), 0.0)
        return System(None, first, None, transition=Q)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2).to(u.dtype))
