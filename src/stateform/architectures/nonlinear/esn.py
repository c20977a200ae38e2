"""The echo state network: fixed random units, of which a linear readout is trained.  doi 10.1016/j.neunet.2007.04.016

    h_t = (1 - a) h_{t-1} + a tanh( W h_{t-1} + W_in u_t + b )     y_t = W_out h_t

W, W_in and b are drawn once and are no parameters. W is scaled to a spectral radius; a is the leak. W_out is trained as
any weight, or found at once by ridge regression: `fit`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import require
from ...layer import Cell, Past
from ...layer.checks import check_input
from ...layer.parts import above_zero
from ..registry import register


@register("esn")
class ESN(Cell):
    """One fixed reservoir, then a linear map.

    Args:
        d_model: width.
        d_state: units of the reservoir (default d_model).
        spectral_radius: the largest modulus of an eigenvalue of W.
        leak: a, above 0, at most 1.
    """

    W: Tensor
    W_in: Tensor
    b: Tensor

    def __init__(
        self, d_model: int, *, d_state: int | None = None, spectral_radius: float = 0.9, leak: float = 1.0
    ) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        require(above_zero("leak", leak) <= 1, f"leak is {leak}; expected a number above 0, at most 1")
        self.leak = leak
        W = torch.randn(d, d)
        radius = torch.linalg.eigvals(W).abs().max()
        self.register_buffer("W", W * (above_zero("spectral_radius", spectral_radius) / radius))
        self.register_buffer("W_in", torch.randn(d, d_model) * d_model**-0.5)
        self.register_buffer("b", torch.randn(d) * 0.1)
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return F.linear(u, self.W_in, self.b).unsqueeze(2)  # [B,T,1,d]

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        return (1 - self.leak) * s + self.leak * torch.tanh(F.linear(s, self.W) + x)

    @torch.no_grad()
    def fit(self, u: Tensor, target: Tensor, *, ridge: float = 1e-6, washout: int = 0) -> None:
        """Set W_out to where the squared errors of the output and ridge |W_out|^2 have the least sum.

        Args:
            u: input [B,T,d_model].
            target: what the output should be [B,T,d_model].
            ridge: weight of the penalty, above 0.
            washout: tokens at the start of each row that do not count.

        Raises:
            StateformError: u is no input of the layer, target of another shape, or no token counts.
        """
        check_input(u, self.d_model, self._weight())
        require(target.shape == u.shape, f"target has shape {list(target.shape)}; expected that of u, {list(u.shape)}")
        require(
            0 <= washout < u.shape[1], f"washout is {washout}; expected 0 or more, fewer than the {u.shape[1]} tokens"
        )
        above_zero("ridge", ridge)
        wide, s0, x = self._prepared(u, Past())
        h, y = (z[:, washout:].flatten(0, 1).flatten(1).double() for z in (wide._one_by_one(s0, x), target))
        gram = h.T @ h + ridge * torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
        self.out_proj.weight.copy_(torch.linalg.solve(gram, h.T @ y).T)
