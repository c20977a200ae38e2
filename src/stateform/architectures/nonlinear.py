"""Nonlinear recurrent networks: each is one step, written as a cell."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Past, ShortConv
from ..layer.cell import Cell
from ..layer.parts import HeadNorm, above_zero, heads, plain, split_size
from ..system import System
from .registry import register

NOTHING = -1000.0
"""The logarithm of a normaliser into which nothing was written: below any gate, and finite."""


@register("lstm", paper="doi 10.1162/neco.1997.9.8.1735")
class LSTM(Cell):
    """Long short-term memory; weights and gates as in torch.nn.LSTM.

    i, f, g, o = W u_t + R h_{t-1} + b,  c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t);
    the state is (h, c), the output W_o h_t.

    Args:
        d_model: width.
        d_state: size of h and of c (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        self.x_proj, self.h_proj = nn.Linear(d_model, 4 * d), nn.Linear(d, 4 * d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        h, c = s.chunk(2, -1)
        i, f, g, o = (x + self.h_proj(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def loop(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        maps = weights(self.x_proj, self.h_proj)
        if maps is None:
            return None
        h, c = s.transpose(0, 1).contiguous().chunk(2, -1)
        y, h, c = torch.lstm(u, (h, c), maps, True, 1, 0.0, self.training, False, True)
        return y.unsqueeze(2), torch.cat([h, c], -1).transpose(0, 1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        return self.out_proj(y.flatten(2)[..., : self.n // 2])


@register("gru", paper="arXiv 1406.1078")
class GRU(Cell):
    """Gated recurrent unit; weights and gates as in torch.nn.GRU.

    r, z = sigmoid(W u_t + R h_{t-1} + b),  n = tanh(W_n u_t + b_n + r (R_n h_{t-1} + c_n)),
    h_t = (1 - z) n + z h_{t-1}.

    Args:
        d_model: width.
        d_state: size of h (default d_model).
    """

    def __init__(self, d_model: int, *, d_state: int | None = None) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        self.x_proj, self.h_proj = nn.Linear(d_model, 3 * d), nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.h_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), self.h_proj(s).chunk(3, -1)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (1 - z) * n + z * s

    def loop(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        maps = weights(self.x_proj, self.h_proj)
        if maps is None:
            return None
        h = s.transpose(0, 1).contiguous()
        y, h = torch.gru(u, h, maps, True, 1, 0.0, self.training, False, True)
        return y.unsqueeze(2), h.transpose(0, 1)


@register("slstm", paper="arXiv 2405.04517")
class SLSTM(Cell):
    """The scalar memory of xLSTM: exponential input gate, a normaliser, and memory mixing within each head.

    i, f, z, o = W u_t + R h_{t-1} + b (i and f from a short convolution of u),
    c_t = f' c_{t-1} + exp(i) tanh(z),  n_t = f' n_{t-1} + exp(i),  h_t = sigmoid(o) c_t / n_t, with f' = sigmoid(f) or
    exp(f) (eq. 8 to 17). The state of a head is (h, a, l) with a = c / n and l = log n, which never overflow:

        l_t = log(exp(log f' + l_{t-1}) + exp(i)),  w_t = exp(i - l_t) <= 1,  a_t = a_{t-1} + w_t (tanh(z) - a_{t-1})

    Args:
        d_model: width.
        n_heads: heads, the blocks of R.
        d_conv: taps of the convolution.
        forget: f = sigmoid(.) or exp(.).
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_conv: int = 4, forget: Literal["sigmoid", "exp"] = "sigmoid"
    ) -> None:
        d = split_size(d_model, n_heads)
        super().__init__(d_model, 3 * d, n_heads)
        self.forget = forget
        self.conv = ShortConv(d_model, d_conv, "conv", bias=True)
        self.if_proj, self.zo_proj = nn.Linear(d_model, 2 * d_model), nn.Linear(d_model, 2 * d_model)
        self.R = nn.Parameter(torch.randn(n_heads, d, 4 * d) * d**-0.5)
        self.norm = HeadNorm(d)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():  # begin with long memory, spread over the channels
            self.if_proj.bias[d_model:] = torch.linspace(3.0, 6.0, d_model)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        gates = (*self.if_proj(self.conv(u, past)).chunk(2, -1), *self.zo_proj(u).chunk(2, -1))
        return torch.cat([heads(x, self.n_heads) for x in gates], -1)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        h, a, log_n = s.chunk(3, -1)
        i, f, z, o = (x + torch.einsum("...hd,hde->...he", h, self.R)).chunk(4, -1)
        log_n = log_sum((F.logsigmoid(f) if self.forget == "sigmoid" else f) + log_n, i)
        a = a + torch.exp(i - log_n) * (torch.tanh(z) - a)
        return torch.cat([torch.sigmoid(o) * a, a, log_n], -1)

    def start(self) -> Tensor:
        h = self.R.new_zeros(self.R.shape[:2])
        return torch.cat([h, h, h + NOTHING], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        h = y.chunk(3, -1)[0]
        return self.out_proj(self.norm(h).flatten(2))


@register("lem", paper="arXiv 2110.04744")
class LEM(Cell):
    """Long expressive memory: two coupled states, each with its own learned time steps.

    dt_1 = dt sigmoid(W_1 y_{t-1} + V_1 u_t + b_1),  dt_2 = dt sigmoid(W_2 y_{t-1} + V_2 u_t + b_2),
    z_t = (1 - dt_1) z_{t-1} + dt_1 tanh(W_z y_{t-1} + V_z u_t + b_z),
    y_t = (1 - dt_2) y_{t-1} + dt_2 tanh(W_y z_t + V_y u_t + b_y) (eq. 3). The state is (y, z).

    Args:
        d_model: width.
        d_state: size of y and of z (default d_model).
        dt: the longest time step, at most 1.
    """

    def __init__(self, d_model: int, *, d_state: int | None = None, dt: float = 1.0) -> None:
        d = d_state or d_model
        super().__init__(d_model, 2 * d)
        require(above_zero("dt", dt) <= 1, f"dt is {dt}; expected a time step above 0, at most 1")
        self.dt = dt
        self.x_proj = nn.Linear(d_model, 4 * d)
        self.y_proj, self.z_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        uniform(d**-0.5, self.x_proj, self.y_proj, self.z_proj)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)

    def cell(self, s: Tensor, x: Tensor) -> Tensor:
        y, z = s.chunk(2, -1)
        (x_1, x_2, x_z, x_y), (y_1, y_2, y_z) = x.chunk(4, -1), self.y_proj(y).chunk(3, -1)
        dt_1, dt_2 = self.dt * torch.sigmoid(x_1 + y_1), self.dt * torch.sigmoid(x_2 + y_2)
        z = (1 - dt_1) * z + dt_1 * torch.tanh(x_z + y_z)
        y = (1 - dt_2) * y + dt_2 * torch.tanh(x_y + self.z_proj(z))
        return torch.cat([y, z], -1)

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        y, _ = y.flatten(2).chunk(2, -1)
        return self.out_proj(y)


@register("ltc", paper="arXiv 2006.04439")
class LTC(Cell):
    """Liquid time-constant network: an ordinary differential equation whose time constants depend on state and input.

    dh/dt = -(1/tau + f) h + f A,  f = sigmoid(W_r h + W u_t + b), over one unit of time a token, in `unfolds` fused
    steps h <- (h + dt f A) / (1 + dt (1/tau + f)), dt = 1 / unfolds (eq. 1, algorithm 1).

    Args:
        d_model: width.
        d_state: size of h (default d_model).
        unfolds: steps of the solver per token.
    """

    def __init__(self, d_model: int, *, d_state: int | None = None, unfolds: int = 6) -> None:
        d = d_state or d_model
        super().__init__(d_model, d)
        require(unfolds >= 1, f"unfolds is {unfolds}; expected 1 step of the solver or more")
        self.unfolds = unfolds
        self.x_proj, self.h_proj = nn.Linear(d_model, d), nn.Linear(d, d, bias=False)
        self.A = nn.Parameter(torch.randn(d))
        self.log_tau = nn.Parameter(torch.zeros(d))
        self.out_proj = nn.Linear(d, d_model, bias=False)

    def inputs(self, u: Tensor, past: Past | None = None) -> Tensor:
        return self.x_proj(u).unsqueeze(2)

    def cell(self, s: Tensor, x: Any) -> Tensor:
        rate, dt = torch.exp(-self.log_tau), 1 / self.unfolds
        for _ in range(self.unfolds):
            f = torch.sigmoid(x + self.h_proj(s))
            s = (s + dt * f * self.A) / (1 + dt * (rate + f))
        return s


FAR = {torch.float64: 40.0}
"""A difference of logarithms beyond which the sum is the larger of the two, to the last digit."""
FAR_IN_SINGLE = 20.0


def log_sum(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b). torch's own has no second derivative (0/0) where one is far below the other: it is raised."""
    if torch.is_grad_enabled():
        far = FAR.get(a.dtype, FAR_IN_SINGLE)
        a, b = torch.maximum(a, b - far), torch.maximum(b, a - far)
    return torch.logaddexp(a, b)


def weights(x_proj: nn.Linear, h_proj: nn.Linear) -> list[Tensor] | None:
    """List those of the two maps of a gated cell, in the order of torch's own loops; None where they are not all."""
    if not (plain(x_proj, nn.Linear) and plain(h_proj, nn.Linear)):
        return None
    return [x_proj.weight, h_proj.weight, x_proj.bias, h_proj.bias]


def uniform(bound: float, *maps: nn.Linear) -> None:
    """Draw all weights and biases from [-bound, bound], as torch.nn's recurrent layers do."""
    for p in (p for m in maps for p in m.parameters()):
        nn.init.uniform_(p, -bound, bound)
