"""More linear attention that forgets: GateLoop, HGRN2, lightning attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer, Past
from ..layer.parts import HeadNorm, heads, precise, split_size
from ..system import System
from .registry import register


@register("gateloop", paper="arXiv 2311.01927")
class GateLoop(Layer):
    """GateLoop: a complex decay per key from the input, the modulus a sigmoid, the phase free.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,  y_t = Re(q_t^T S_t),  a_t = sigmoid(alpha_t) exp(i beta_t) (section 3.1),
    and a silu gate.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None) -> None:
        super().__init__(d_model)
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state = n_heads, d_state or p
        keys = n_heads * self.d_state
        self.q_proj, self.k_proj = (nn.Linear(d_model, keys, bias=False) for _ in range(2))
        self.v_proj, self.gate_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.modulus_proj, self.phase_proj = nn.Linear(d_model, keys), nn.Linear(d_model, keys)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        g = F.logsigmoid(precise(heads(self.modulus_proj(u), self.n_heads)))
        return System(q, k, v, log_decay=g, phase=precise(heads(self.phase_proj(u), self.n_heads)))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y, self.gate_proj(u)))


@register("hgrn2", paper="arXiv 2404.07904")
class HGRN2(Layer):
    """HGRN2: the forget gate is the decay, what it lets go is the key, and the output gate is the query.

    S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T,  y_t = o_t^T S_t,  f_t = l + (1 - l) sigmoid(W_f u_t) (eq. 6 to 8).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        lower_bound: l, the least that is kept; the paper lets it grow with the depth of the layer.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, lower_bound: float = 0.0) -> None:
        super().__init__(d_model)
        require(0 <= lower_bound < 1, f"lower_bound is {lower_bound}; expected 0 or more, less than 1")
        p = split_size(d_model, n_heads)
        self.n_heads, self.d_state, self.lower_bound = n_heads, d_state or p, lower_bound
        keys = n_heads * self.d_state
        self.o_proj, self.f_proj = (nn.Linear(d_model, keys, bias=False) for _ in range(2))
        self.i_proj = nn.Linear(d_model, d_model, bias=False)
        self.norm = HeadNorm(p)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        o, z = F.silu(heads(self.o_proj(u), self.n_heads)), precise(heads(self.f_proj(u), self.n_heads))
        kept = (1 - self.lower_bound) * torch.sigmoid(-z)  # 1 - f without cancellation
        g = F.logsigmoid(z) if self.lower_bound == 0 else torch.log1p(-kept)
        return System(o, kept.to(o.dtype), heads(self.i_proj(u), self.n_heads), log_decay=g)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y).flatten(2))


@register("lightning", paper="arXiv 2401.04658")
class Lightning(Layer):
    """Lightning attention (TransNormerLLM, MiniMax): a constant decay per head, silu features, RMS norm, sigmoid gate.

    S_t = exp(-s_h) S_{t-1} + k_t v_t^T,  y_t = q_t^T S_t,  q, k, v = silu(W u),  s_h = 2^{-8 h / H}, h = 1 .. H.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        slope_scale: factor of all slopes; deeper layers of a model take smaller ones.
    """

    contractive = True

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, slope_scale: float = 1.0) -> None:
        super().__init__(d_model)
        require(slope_scale >= 0, f"slope_scale is {slope_scale}; a negative one would let the state grow")
        self.n_heads, self.d_state, self.slope_scale = n_heads, d_state or split_size(d_model, n_heads), slope_scale
        split_size(d_model, n_heads)
        self.q_proj, self.k_proj = (nn.Linear(d_model, n_heads * self.d_state, bias=False) for _ in range(2))
        self.v_proj, self.gate_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(2))
        self.norm = HeadNorm(d_model)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (F.silu(heads(f(u), self.n_heads)) for f in (self.q_proj, self.k_proj, self.v_proj))
        h = torch.arange(1, self.n_heads + 1, dtype=precise(u).dtype, device=u.device)
        return System(q, k, v, log_decay=-self.slope_scale * 2.0 ** (-8 * h / self.n_heads))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(self.norm(y.flatten(2), self.gate_proj(u), "sigmoid"))
