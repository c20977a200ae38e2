"""Lightning attention: MiniMaxLightningAttention, with the cache of MiniMax models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...architectures import build
from ...layer import Layer, Past
from ...layer.parts import heads
from ...system import System
from ...system.state import State, unchecked
from ..lifted import Call, Lifted, adapts
from ..parts import gated_norm
from ..twin import Twin, heads_of, renamed, rows_by_head


@adapts(minimax="MiniMaxLightningAttention")
class LiftedLightning(Lifted):
    """S_t = exp(-s_h) S_{t-1} + k_t v_t^T, y_t = q_t^T S_t, as `architectures.Lightning`, with slopes of the depth.

    One map gives q, k and v, head by head.
    """

    contractive = True
    windows = ()

    @staticmethod
    def width(module: Any) -> int:
        return int(module.qkv_proj.in_features)

    @staticmethod
    def exact(module: Any) -> None:
        tables = module.decay_factors(module.slope_rate)
        module.query_decay, module.key_decay, module.diagonal_decay = (x.to(module.slope_rate) for x in tables)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        q, k, v = heads(m.act_fn(m.qkv_proj(u)), m.num_attention_heads).chunk(3, -1)  # [B,T,H,n]
        return System(q, k, v, log_decay=-m.slope_rate.flatten())

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        y, gate = y.flatten(2), m.output_gate(u)
        x = gated_norm(m, m.norm, y, gate, "sigmoid")
        return m.out_proj(torch.sigmoid(gate) * m.norm(y) if x is None else x)

    def takes(self, call: Call) -> bool:
        return True

    def returns(self, y: Tensor, call: Call) -> Any:
        return y, None if call.cache is None else call.cache.get_linear_cache(self.index)

    def read(self, cache: Any) -> State | None:
        S = cache.get_linear_cache(self.index)
        if not isinstance(S, Tensor):  # an empty list, if a later layer wrote to the cache first
            return None
        position = torch.zeros(S.shape[0], dtype=torch.long, device=S.device)
        return unchecked({"S": S, "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        m: Any = self.module
        cache.set_linear_cache(self.index, state["S"].to(m.slope_rate.dtype))  # the dtype in which the module keeps it


class MiniMaxTwin(Twin, pair="lightning", model="minimax"):
    """MiniMaxLightningAttention, in blocks of 256; its slopes are those of a first layer."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        layer: Any = build("lightning", d_model=d_model, n_heads=heads_of(d_model, 64), slope_scale=1 + 1e-5)
        layer.norm.eps = 1e-6
        return layer

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "num_attention_heads": layer.n_heads, "num_key_value_heads": layer.n_heads,
            "head_dim": layer.d_state, "num_hidden_layers": 2, "hidden_act": "silu",
            "layer_types": ["linear_attention", "full_attention"],
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        weights = renamed(layer, {"gate_proj": "output_gate"}, tuple(f"{s}_proj.weight" for s in "qkv"))
        joined = rows_by_head((layer.q_proj, layer.k_proj, layer.v_proj), layer.n_heads)
        return {**weights, "qkv_proj.weight": joined}

    def begin(self, x: Tensor) -> Any:
        return self.code.MiniMaxCache()

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        return self.module(x, position_embeddings=None, attention_mask=None, past_key_values=cache)[0]
