"""The gated attention unit: attention with one head, whose reads a gate multiplies.  arXiv 2202.10447

    y_t = W_o ( u_t * sum_{j<=t} alpha_tj v_j ),     alpha_tj ~ exp( q_t^T k_j / sqrt(s) )
    q = gamma_q * z + beta_q,  k = gamma_k * z + beta_k,  z = silu(W_z x),  u = silu(W_u x),  v = silu(W_v x)

The paper also weighs by relu(q_t^T k_j / T)^2. That is not here: it is no softmax, and for two keys or more no finite
features give it, so no readout of a System does.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...layer import Layer, Past
from ...layer.parts import gated, pair_up, rope_angles
from ...system import System
from ..registry import register


@register("gau")
class GAU(Layer):
    """One head of softmax attention, whose queries and keys are two scalings of one map, and a gate.

    Args:
        d_model: width.
        d_state: keys s.
        expand: values over d_model.
        positions: "rope" or "none".
        rope_base: the largest wavelength is 2 pi times about this.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, expand: int = 2, positions: Literal["rope", "none"] = "rope",
        rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        self.d_state, self.positions, self.rope_base = d_state, positions, rope_base
        if positions == "rope":
            rope_angles(d_state, rope_base)
        self.z_proj = nn.Linear(d_model, d_state)
        self.v_proj, self.gate_proj = nn.Linear(d_model, expand * d_model), nn.Linear(d_model, expand * d_model)
        self.gamma, self.beta = nn.Parameter(torch.ones(2, d_state)), nn.Parameter(torch.zeros(2, d_state))
        self.out_proj = nn.Linear(expand * d_model, d_model)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        z, v = F.silu(self.z_proj(u)).unsqueeze(2), F.silu(self.v_proj(u)).unsqueeze(2)  # [B,T,1,n or p]
        q, k = (z * self.gamma + self.beta).split(1, 2)
        q = q * self.d_state**-0.5
        if self.positions == "none":
            return System(q, k, v, readout="exp", eta="sum")
        phase = rope_angles(self.d_state, self.rope_base, u.device)  # [1,n/2]
        return System(pair_up(q), pair_up(k, conjugate=True), v, phase=phase, readout="exp", eta="sum")

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return self.out_proj(gated(y, self.gate_proj(u)))  # [B,T,d_model]
