"""Mamba: MambaMixer, and its kin with norms on dt, B and C (FalconMamba, Jamba) or with several heads (Zamba)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...architectures import build
from ...layer import Layer, Past
from ...layer.parts import heads, precise
from ...system import System
from ..lifted import Lifted, adapts
from ..parts import activation, part, short_conv
from ..twin import Twin, Way, renamed, rows


@adapts(mamba="MambaMixer", falcon_mamba="FalconMambaMixer", jamba="JambaMambaMixer")
class LiftedMamba(Lifted):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t^T h_t + D x_t, as `stateform.architectures.Mamba`."""

    contractive = True

    def check(self, module: Any) -> None:
        self.act = activation(module)
        self.inner, self.n, self.rank = module.intermediate_size, module.ssm_state_size, int(module.time_step_rank)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        x = short_conv(m.conv1d, part(m.in_proj, u, 0, self.inner), past, self.act)  # [B,T,inner]
        dt, B, C = m.x_proj(x).split([self.rank, self.n, self.n], -1)  # [B,T,rank], [B,T,n], [B,T,n]
        if hasattr(m, "b_layernorm"):
            dt, B, C = m.dt_layernorm(dt), m.b_layernorm(B), m.c_layernorm(C)
        dt = F.softplus(precise(m.dt_proj(dt)))  # [B,T,inner]
        A = -precise(m.A_log).exp()  # [inner,n]
        return System(C.unsqueeze(2), B.unsqueeze(2), x.unsqueeze(-1), log_decay=(dt, A), b=dt, d=m.D)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        gate = part(m.in_proj, u, self.inner, 2 * self.inner)
        return m.out_proj(y.flatten(2).to(u.dtype) * F.silu(gate))

    def ours(self, kept: Tensor) -> Tensor:
        return kept.unsqueeze(-1)

    def theirs(self, S: Tensor) -> Tensor:
        return S.squeeze(-1)


@adapts(zamba="ZambaMambaMixer")
class LiftedZamba(Lifted):
    """LiftedMamba with the channels in heads, each with its own maps to dt, B and C."""

    contractive = True

    def check(self, module: Any) -> None:
        self.act = activation(module)
        self.inner, self.n, self.rank = module.intermediate_size, module.ssm_state_size, module.time_step_rank
        self.n_heads = module.n_mamba_heads

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        x = short_conv(m.conv1d, part(m.in_proj, u, 0, None, 2), past, self.act)  # channels and gates take turns
        each = heads(x, self.n_heads)  # [B,T,H,inner / H]
        dt, B, C = (each.unsqueeze(-2) @ m.x_proj_weight.mT).squeeze(-2).split([self.rank, self.n, self.n], -1)
        dt = (dt.unsqueeze(-2) @ m.dt_proj_weight.mT).squeeze(-2)
        dt = F.softplus(precise(dt) + precise(m.dt_proj_bias)).flatten(2)
        A = -precise(m.A_log).exp().flatten(0, 1)
        return System(C, B, x.unsqueeze(-1), log_decay=(dt, A), b=dt, d=m.D.flatten())

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        gate = part(m.in_proj, u, 1, None, 2)
        return m.out_proj(y.flatten(2).to(u.dtype) * F.silu(gate))

    def ours(self, kept: Tensor) -> Tensor:
        return kept.flatten(1, 2).unsqueeze(-1)

    def theirs(self, S: Tensor) -> Tensor:
        return S.squeeze(-1).unflatten(1, (self.n_heads, -1))


class MambaTwin(Twin, pair="mamba", model="mamba"):
    """MambaMixer: a loop over tokens, or mambapy's scan."""

    cache = "cache_params"
    ways = (Way(), Way(", mambapy's scan", "mambapy", {"use_mambapy": True}))

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("mamba", d_model=d_model)

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "state_size": layer.d_state, "num_hidden_layers": 1,
            "expand": layer.d_inner // layer.d_model, "conv_kernel": layer.conv.width, "time_step_rank": layer.dt_rank,
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        weights = renamed(layer, {"conv": "conv1d"}, ("gate_proj.weight",))
        return {**weights, "in_proj.weight": rows(layer.in_proj, layer.gate_proj)}
