"""The delta rule with a decay: the gated delta nets of Qwen and OLMo, the delta attention of Kimi and its kin."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...architectures import build
from ...architectures.delta.gated_deltanet import GatedDeltaNet
from ...architectures.delta.rule import delta_rule
from ...layer import Layer, Past, ShortConv
from ...layer.parts import HeadNorm, heads, precise, split_size, unit
from ...system import System
from ..lifted import Lifted, adapts
from ..parts import activation, gated_norm, short_conv
from ..twin import Twin, heads_of, renamed, rows, rows_by_head


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
        """Compute the log decay g, one a head [B,T,H] or one a key [B,T,H,n]."""
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
        q, k = unit(heads(q, self.key_heads), self.n**-0.5), unit(heads(k, self.key_heads))  # [B,T,key heads,n]
        return delta_rule(q, k, heads(v, self.n_heads), self.beta(u, past), self.log_decay(u, past))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        norm, out_proj = (getattr(self.module, name) for name in self.last)
        gate = self.gate(u, past)
        x = gated_norm(self.module, norm, y, gate, getattr(norm, "activation", None))
        return out_proj(norm(y, heads(gate, self.n_heads)).flatten(2) if x is None else x)


@adapts(qwen3_next="Qwen3NextGatedDeltaNet")
class LiftedQwen3Next(LiftedGatedDelta):
    """LiftedGatedDelta with one map to q, k, v and the gate, and one to beta and a, each in groups of heads."""

    def mixed(self, u: Tensor, past: Past | None, name: str) -> Tensor:
        """Compute the output of a map, [B,T,groups,.]; it is kept in `past`, as several parts need it."""
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
    """LiftedGatedDelta with a map for each part; beta may reach 2."""

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
    bailing_hybrid="BailingHybridDeltaAttention", glm5_next_text="Glm5NextTextLinearAttention",
    kimi_linear="KimiLinearDeltaAttention",
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


class WideGatedDeltaNet(GatedDeltaNet):
    """Gated DeltaNet with as many values as keys in a head, whatever d_model is: the proportions of Qwen3-Next."""

    def __init__(self, d_model: int, n_heads: int, *, d_state: int) -> None:
        super().__init__(d_model, n_heads, d_state=d_state)
        values = n_heads * d_state
        self.v_proj, self.gate_proj = (nn.Linear(d_model, values, bias=False) for _ in range(2))
        self.v_conv, self.norm = ShortConv(values, self.q_conv.width, "v_conv"), HeadNorm(d_state)
        self.out_proj = nn.Linear(values, d_model, bias=False)


class Qwen3NextTwin(Twin, pair="gated_deltanet", model="qwen3_next"):
    """Qwen3NextGatedDeltaNet: chunks of 64 for a sequence, a fused step for a token."""

    cache = "cache_params"

    @staticmethod
    def layer(d_model: int) -> Layer:
        n_heads = heads_of(d_model, 64)  # inner width twice d_model
        return WideGatedDeltaNet(d_model, n_heads, d_state=max(1, 2 * d_model // n_heads))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "num_hidden_layers": 1, "layer_types": ["linear_attention"],
            "linear_num_key_heads": layer.n_heads, "linear_num_value_heads": layer.n_heads,
            "linear_key_head_dim": layer.d_state, "linear_value_head_dim": layer.v_proj.out_features // layer.n_heads,
            "linear_conv_kernel_dim": layer.q_conv.width, "rms_norm_eps": layer.norm.eps,
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        wide = (layer.q_proj, layer.k_proj, layer.v_proj, layer.gate_proj)
        return {
            "in_proj_qkvz.weight": rows_by_head(wide, layer.n_heads),
            "in_proj_ba.weight": rows_by_head((layer.beta_proj, layer.a_proj), layer.n_heads),
            "conv1d.weight": rows(layer.q_conv, layer.k_conv, layer.v_conv), "A_log": layer.A_log,
            "dt_bias": layer.dt_bias, "norm.weight": layer.norm.weight, "out_proj.weight": layer.out_proj.weight,
        }  # fmt: skip


class KimiTwin(Twin, pair="kda", model="kimi_linear"):
    """KimiLinearDeltaAttention, the last map of whose gate has no bias."""

    cache = "cache_params"

    @staticmethod
    def layer(d_model: int) -> Layer:
        layer: Any = build("kda", d_model=d_model, n_heads=heads_of(d_model, 128))
        down, up = layer.gate_proj
        layer.gate_proj = nn.Sequential(down, nn.Linear(up.in_features, up.out_features, bias=False))
        return layer

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "num_hidden_layers": 1, "layer_types": ["linear_attention"],
            "linear_head_dim": layer.d_state, "linear_num_heads": layer.n_heads,
            "linear_conv_kernel_dim": layer.q_conv.width, "rms_norm_eps": layer.norm.eps,
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        names = {
            "beta_proj": "b_proj", "a_proj.0": "forget_gate.f_a_proj", "a_proj.1": "forget_gate.f_b_proj",
            "gate_proj.0": "g_a_proj", "gate_proj.1": "g_b_proj", "norm": "o_norm", "out_proj": "o_proj",
            "dt_bias": "forget_gate.dt_bias",
        }  # fmt: skip
        joined = tuple(f"{s}_conv.weight" for s in "qkv")
        return {
            **renamed(layer, names, (*joined, "gate_proj.1.bias", "A_log")),
            "conv1d.weight": rows(layer.q_conv, layer.k_conv, layer.v_conv),
            "forget_gate.A_log": layer.A_log.detach().view(1, 1, -1, 1),
        }
