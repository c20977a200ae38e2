"""Mamba-2 and its kin: Mamba2Mixer, and those of Bamba, Granite, Nemotron-H, Zamba2 and Falcon-H1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...architectures import build
from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import heads, precise, split_size
from ...system import System
from ..lifted import Lifted, adapts
from ..parts import activation, part, short_conv
from ..twin import Twin, Way, renamed, rows


@adapts(
    mamba2="Mamba2Mixer", bamba="BambaMixer", granitemoehybrid="GraniteMoeHybridMambaLayer",
    nemotron_h="NemotronHMamba2Mixer", zamba2="Zamba2MambaMixer",
)  # fmt: skip
class LiftedMamba2(Lifted):
    """S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T, y_t = C_t^T S_t + D x_t, as `architectures.Mamba2`; dt has limits.

    One map gives the gate, then x, B and C, which share a convolution, then dt.
    """

    contractive = True

    def check(self, module: Any) -> None:
        self.inner, self.n_heads, self.n_groups = module.intermediate_size, module.num_heads, module.n_groups
        self.keys = module.n_groups * module.ssm_state_size
        kind = type(module).__name__
        require(
            self.inner == self.n_heads * module.head_dim,
            f"{kind} has {self.n_heads} heads of {module.head_dim} for {self.inner} channels; expected their product",
        )
        split_size(self.n_heads, self.n_groups, f"the number of heads of {kind}", "n_groups")
        self.low, self.high = low, high = tuple(float(x) for x in module.time_step_limit)
        require(0 <= low <= high, f"the time_step_limit of {kind} is [{low}, {high}]; expected 0 <= least <= most")
        self.act = activation(module)

    def project(self, u: Tensor, start: int, stop: int | None) -> Tensor:
        """Compute the channels start:stop of the input's projection."""
        m: Any = self.module
        return part(m.in_proj, u, start, stop)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        x, dt = self.project(u, self.inner, None).split([self.inner + 2 * self.keys, self.n_heads], -1)
        x, B, C = short_conv(m.conv1d, x, past, self.act).split([self.inner, self.keys, self.keys], -1)
        dt = F.softplus(precise(dt) + precise(m.dt_bias))  # [B,T,H]
        if self.low > 0 or self.high < math.inf:
            dt = torch.clamp(dt, self.low, self.high)
        g = -precise(m.A_log).exp() * dt
        return System(
            heads(C, self.n_groups), heads(B, self.n_groups), heads(x, self.n_heads), log_decay=g, b=dt, d=m.D
        )

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        return m.out_proj(self.gated(y.flatten(2), self.project(u, 0, self.inner)).to(u.dtype))

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """Apply the gate, and the norm of the groups."""
        m: Any = self.module
        return m.norm(y, gate)

    def ours(self, kept: Tensor) -> Tensor:
        # A copy only if the original code began the cache: a step over other strides takes three times as long.
        return kept.mT.contiguous()

    def theirs(self, S: Tensor) -> Tensor:
        return S.mT


@adapts(falcon_h1="FalconH1Mixer")
class LiftedFalconH1(LiftedMamba2):
    """LiftedMamba2 with multipliers of the input and of its projection; the norm around the gate is optional."""

    def project(self, u: Tensor, start: int, stop: int | None) -> Tensor:
        m: Any = self.module
        return part(m.in_proj, u * m.ssm_in_multiplier, start, stop) * m.mup_vector[..., start:stop]

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        m: Any = self.module
        return m.norm(y, gate) if m.mamba_rms_norm else y * F.silu(gate)


class Mamba2Twin(Twin, pair="mamba2", model="mamba2"):
    """Mamba2Mixer with its own or another chunk size."""

    cache = "cache_params"
    ways = (Way(), Way(", chunk 64", settings={"chunk_size": 64}))

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("mamba2", d_model=d_model, d_state=min(128, d_model), d_head=min(64, d_model // 2))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "state_size": layer.d_state, "num_hidden_layers": 1,
            "expand": layer.d_inner // layer.d_model, "conv_kernel": layer.conv.width, "num_heads": layer.n_heads,
            "head_dim": layer.d_inner // layer.n_heads, "n_groups": layer.n_groups,
            "layer_norm_epsilon": layer.norm.eps, "time_step_limit": (0.0, math.inf),
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        weights = renamed(layer, {"conv": "conv1d"}, ("gate_proj.weight", "dt_proj.weight"))
        return {**weights, "in_proj.weight": rows(layer.gate_proj, layer.in_proj, layer.dt_proj)}
