"""Linear attention that forgets: retention, gated linear attention, and the matrix memory of xLSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layer import Layer, Past
from ..layer.parts import HeadNorm, above_zero, heads, more_than_a_sign, pair_up, precise, rope_angles, split_size
from ..system import System
from .registry import register


@register("retention", paper="arXiv 2307.08621")
class Retention(Layer):
    """Retention (RetNet): a constant decay per head, rotary phases, normalised heads and a swish gate.

    S_t = gamma_h e^{i theta} S_{t-1} + k_t v_t^T,  y_t = Re(q_t^T S_t),  gamma_h = 1 - 2^{-5-h} (eq. 5 to 8). The
    normalisation of each head makes the paper's further scalings of the scores drop out.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads); even.
        expand: width of the values over d_model.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, expand: int = 2) -> None:
        super().__init__(d_model)
        self.n_heads, self.d_state = n_heads, d_state or split_size(d_model, n_heads)
        p = split_size(expand * d_model, n_heads)
        rope_angles(self.d_state, 10_000.0)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, expand * d_model, bias=False)
        self.gate_proj = nn.Linear(d_model, expand * d_model, bias=False)
        self.norm = HeadNorm(p, affine=False)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        k = k * self.d_state**-0.5
        h = torch.arange(self.n_heads, dtype=precise(u).dtype, device=u.device)
        phase = rope_angles(self.d_state, 10_000.0, u.device)
        return System(pair_up(q), pair_up(k, conjugate=True), v, log_decay=torch.log1p(-(2.0 ** (-5 - h))), phase=phase)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))


@register("gla", paper="arXiv 2312.06635")
class GLA(Layer):
    """Gated linear attention: a decay per key, from the input through a low-rank map.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,  a_t = sigmoid(W_2 W_1 u_t)^{1/16},  y_t = (q_t / sqrt(n))^T S_t
    (eq. 3, section 4.4).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads / 2, the paper's).
        gate_rank: rank of the map to the gates.
        gate_temperature: the exponent is one over this.
    """

    contractive = True

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        *,
        d_state: int | None = None,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
    ) -> None:
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state, self.gate_temperature = n_heads, d_state or max(1, p // 2), gate_temperature
        above_zero("gate_temperature", gate_temperature)
        keys = n_heads * self.d_state
        self.q_proj = nn.Linear(d_model, keys, bias=False)
        self.k_proj = nn.Linear(d_model, keys, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.decay_proj = nn.Sequential(nn.Linear(d_model, gate_rank, bias=False), nn.Linear(gate_rank, keys))
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        g = F.logsigmoid(precise(heads(self.decay_proj(u), self.n_heads))) / self.gate_temperature
        return System(q * self.d_state**-0.5, k, v, log_decay=g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))


@register("mlstm", paper="arXiv 2405.04517")
class MLSTM(Layer):
    """The matrix memory of xLSTM: exponential input gate, sigmoid forget gate, a normaliser with a floor of 1.

    S_t = f_t S_{t-1} + i_t k_t v_t^T,  n_t = f_t n_{t-1} + i_t k_t,  y_t = q_t^T S_t / max(|q_t^T n_t|, 1),
    f_t = sigmoid(.), i_t = exp(.) (eq. 19 to 27; the layer around it as in xLSTM 7B, arXiv 2503.13427).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads / 2, as in xLSTM 7B).
        gate_cap: gates are bent to +- this by cap tanh(x / cap); None leaves them.
    """

    contractive = True

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, gate_cap: float | None = 15.0
    ) -> None:
        super().__init__(d_model)
        p = more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
        self.n_heads, self.d_state, self.gate_cap = n_heads, d_state or max(1, p // 2), gate_cap
        if gate_cap is not None:
            above_zero("gate_cap", gate_cap)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.i_proj = nn.Linear(d_model, n_heads)
        self.f_proj = nn.Linear(d_model, n_heads)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(d_model))
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():  # begin with long memory and small writes, as the reference initialisation does
            self.f_proj.bias.copy_(torch.linspace(3.0, 6.0, n_heads))
            self.i_proj.bias.fill_(-10.0)

    def _gate(self, x: Tensor) -> Tensor:
        x = precise(x)
        return x if self.gate_cap is None else self.gate_cap * torch.tanh(x / self.gate_cap)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        g, log_b = F.logsigmoid(self._gate(self.f_proj(u))), self._gate(self.i_proj(u))
        return System(q * self.d_state**-0.5, k, v, log_decay=g, log_b=log_b, eta="sum", eta_floor=1.0)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        y = F.layer_norm(precise(y), y.shape[-1:], eps=1e-6).to(y.dtype).flatten(2) * self.norm_weight
        return self.out_proj(y * torch.sigmoid(self.gate_proj(u)))
