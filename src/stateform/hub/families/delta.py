"""The delta rule behind a decay: the gated delta nets of Qwen and OLMo, the delta attention of Kimi and its kin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...architectures.delta import delta_rule
from ...layer import Past
from ...layer.parts import heads, precise, split_size, unit
from ...system import System
from ..lifted import Lifted, adapts
from ..parts import activation, gated_norm, short_conv


@adapts(
    qwen3_5_text="Qwen3_5GatedDeltaNet", qwen3_5_moe_text="Qwen3_5MoeGatedDeltaNet",
    qwen4_exp_text="Qwen4ExpTextGatedDeltaNet",
)  # fmt: skip
class LiftedGatedDelta(Lifted):
    """S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, as `stateform.architectures.GatedDeltaNet`.

    q, k and v share a convolution; a head of q and k may serve a group of those of v.
    """

    contractive = True
    last: ClassVar[tuple[str, str]] = ("norm", "out_proj")
    """Names of the gated norm and of the last map."""

    def check(self, module: Any) -> None:
        self.act = activation(module)
        self.key_heads, self.n_heads, self.n = module.num_k_heads, module.num_v_heads, module.head_k_dim
        split_size(self.n_heads, self.key_heads, f"the heads of v of {type(module).__name__}", "those of k")

    def qkv(self, u: Tensor, past: Past | None) -> Tensor:
        """Compute q, k, v side by side, before their convolution."""
        m: Any = self.module
        return m.in_proj_qkv(u)

    def beta(self, u: Tensor, past: Past | None) -> Tensor:
        """Compute beta [B,T,H]."""
        m: Any = self.module
        return torch.sigmoid(m.in_proj_b(u))

    def log_decay(self, u: Tensor, past: Past | None) -> Tensor:
        """Compute g, one a head or one a key."""
        m: Any = self.module
        return self.rate(m.in_proj_a(u))

    def gate(self, u: Tensor, past: Past | None) -> Tensor:
        """Compute the gate of the output, all heads side by side, before its activation."""
        m: Any = self.module
        return m.in_proj_z(u)

    def rate(self, a: Tensor) -> Tensor:
        """Compute -exp(A) softplus(a + dt)."""
        m: Any = self.module
        return -precise(m.A_log).exp() * F.softplus(precise(a) + precise(m.dt_bias))

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        keys = self.key_heads * self.n
        qkv = short_conv(m.conv1d, self.qkv(u, past), past, self.act)
        q, k, v = qkv.split([keys, keys, qkv.shape[-1] - 2 * keys], -1)
        q, k = unit(heads(q, self.key_heads), self.n**-0.5), unit(heads(k, self.key_heads))
        return delta_rule(q, k, heads(v, self.n_heads), self.beta(u, past), self.log_decay(u, past))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        norm, out_proj = (getattr(self.module, name) for name in self.last)
        gate = self.gate(u, past)
        x = gated_norm(self.module, norm, y, gate, getattr(norm, "activation", None))
        return out_proj(norm(y, heads(gate, self.n_heads)).flatten(2) if x is None else x)


@adapts(qwen3_next="Qwen3NextGatedDeltaNet")
class LiftedQwen3Next(LiftedGatedDelta):
    """As LiftedGatedDelta, with one map to q, k, v and the gate and one to beta and a, group of heads by group."""

    def mixed(self, u: Tensor, past: Past | None, name: str) -> Tensor:
        """Compute what a map gives, [B,T,groups,.], once an input."""
        made = None if past is None else past.made.get(name)
        if made is None:
            made = heads(getattr(self.module, name)(u), self.key_heads)
            if past is not None:
                past.made[name] = made
        return made

    def qkv(self, u: Tensor, past: Past | None) -> Tensor:
        q, k, rest = self.mixed(u, past, "in_proj_qkvz").tensor_split([self.n, 2 * self.n], -1)
        return torch.cat([x.flatten(2) for x in (q, k, rest.chunk(2, -1)[0])], -1)

    def beta(self, u: Tensor, past: Past | None) -> Tensor:
        return torch.sigmoid(self.mixed(u, past, "in_proj_ba").chunk(2, -1)[0].flatten(2))

    def log_decay(self, u: Tensor, past: Past | None) -> Tensor:
        return self.rate(self.mixed(u, past, "in_proj_ba").chunk(2, -1)[1].flatten(2))

    def gate(self, u: Tensor, past: Past | None) -> Tensor:
        return self.mixed(u, past, "in_proj_qkvz")[..., 2 * self.n :].chunk(2, -1)[1].flatten(2)


@adapts(olmo_hybrid="OlmoHybridGatedDeltaNet")
class LiftedOlmoHybrid(LiftedGatedDelta):
    """As LiftedGatedDelta, with a map for each part; beta may reach 2."""

    last = ("o_norm", "o_proj")

    def qkv(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module
        return torch.cat([m.q_proj(u), m.k_proj(u), m.v_proj(u)], -1)

    def beta(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module
        beta = torch.sigmoid(m.b_proj(u))
        return 2.0 * beta if getattr(m, "allow_neg_eigval", False) else beta

    def log_decay(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module
        return self.rate(m.a_proj(u))

    def gate(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module
        return m.g_proj(u)


@adapts(
    "Glm5NextTextLinearAttention", kimi_linear="KimiLinearDeltaAttention", bailing_hybrid="BailingHybridDeltaAttention",
)  # fmt: skip
class LiftedKimiDelta(LiftedOlmoHybrid):
    """S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T, as `stateform.architectures.KDA`.

    a_t = exp(-exp(A) softplus(z_t)), or exp(-l sigmoid(exp(A) z_t)), which has a least value.
    """

    opened = ("forget_gate",)

    def check(self, module: Any) -> None:
        self.act = activation(module)
        self.key_heads = self.n_heads = module.num_heads
        self.n, gate = module.head_dim, module.forget_gate
        bounded = getattr(gate, "safe_gate", True)
        self.bound = getattr(gate, "lower_bound", getattr(gate, "safe_gate_lower_bound", None)) if bounded else None

    def log_decay(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module.forget_gate
        z = m.f_proj(u) if hasattr(m, "f_proj") else m.f_b_proj(m.f_a_proj(u))
        z, rate = precise(z) + precise(m.dt_bias), precise(m.A_log).exp().view(-1, 1)
        if self.bound is not None:
            return self.bound * torch.sigmoid(rate * heads(z, self.n_heads))
        return -rate * heads(F.softplus(z), self.n_heads)

    def gate(self, u: Tensor, past: Past | None) -> Tensor:
        m: Any = self.module
        return m.g_proj(u) if hasattr(m, "g_proj") else m.g_b_proj(m.g_a_proj(u))
