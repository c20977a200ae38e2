"""RecurrentGemma (Griffin): RecurrentGemmaRecurrentBlock, which keeps its state in itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...architectures import build
from ...architectures.rnn.elementwise import elementwise
from ...errors import require
from ...layer import Layer, Past
from ...layer.parts import heads, precise
from ...system import System
from ...system.state import State, unchecked
from ..lifted import Call, Lifted, adapts, named
from ..parts import short_conv
from ..twin import Twin, heads_of, renamed

C = 8.0
STEEPEST = 1e3
"""The derivative of sqrt is cut off here, as in the module."""


@dataclass
class Within:
    """The module, which holds the state itself; the rows that begin in this call [B]; True if they are packed."""

    module: Any
    first: Tensor
    packed: bool


@adapts(recurrent_gemma="RecurrentGemmaRecurrentBlock")
class LiftedRecurrentGemma(Lifted):
    """As `stateform.architectures.RGLRU`: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t, at the first token h = i x."""

    contractive = True
    opened = ("rg_lru",)

    @staticmethod
    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = named(module, args, kwargs)
        u, at, used = given.pop("input_states"), given["position_ids"], given.pop("use_cache", True)
        at = at.expand(u.shape[0], -1)
        ends, mask = None, None
        if u.shape[1] > 1:
            mask = _present(given.get("attention_mask"), u)
            zeros = (at == 0).any(0).nonzero().flatten()
            if mask is None and u.shape[0] == 1 and len(zeros) > 1 and int(zeros[0]) == 0:
                ends = torch.cat([zeros, zeros.new_full((1,), u.shape[1])])
        kept = Within(module, (at == 0).any(1), ends is not None) if used else None
        return Call(u, kept, mask, ends, given)

    def takes(self, call: Call) -> bool:
        at = call.rest["position_ids"]  # rows that begin anew midway are left to the module
        whole = call.mask is not None or call.cu_seqlens is not None or not bool((at[:, 1:] == 0).any())
        return whole and super().takes(call)

    def returns(self, y: Tensor, call: Call) -> Any:
        return y, None

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        lru = m.rg_lru
        x = short_conv(m.conv_1d, m.linear_x(u), past, None)  # [B,T,width]
        parts = heads(x, lru.num_attention_heads).unsqueeze(-2)  # [B,T,H,1,width / H]
        r = ((parts @ lru.recurrent_gate_weight).squeeze(-2) + lru.recurrent_gate_bias).flatten(2)
        i = ((parts @ lru.input_gate_weight).squeeze(-2) + lru.input_gate_bias).flatten(2)
        g = -C * F.softplus(precise(lru.recurrent_param)) * torch.sigmoid(precise(r))  # [B,T,width]
        first = torch.arange(u.shape[1], device=u.device) == 0
        before = None if past is None else past.position
        first = first if before is None else first & (before == 0)[:, None]
        scale = torch.where(first[..., None], 1.0, _root(-torch.expm1(2 * g)))
        return elementwise(x, log_decay=g, b=scale * torch.sigmoid(precise(i)))

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        return m.linear_out(y.flatten(2).to(u.dtype) * m.act_fn(m.linear_y(u)))

    def read(self, cache: Any) -> State | None:
        window, S = cache.module.conv1d_state, cache.module.rg_lru.recurrent_states
        if cache.packed or window is None or S is None or len(window) != len(cache.first) or len(S) != len(cache.first):
            return None
        if bool(cache.first.all()):  # an earlier text leaves nothing, neither its graph nor its dtype
            return None
        on = ~cache.first
        return unchecked(
            {
                "conv": torch.where(on[:, None, None], window.mT, 0),
                "S": torch.where(on[:, None], S, 0)[..., None, None],
                "position": on.long(),
            },
            self.fingerprint,
        )

    def write(self, cache: Any, state: State) -> None:
        cache.module.conv1d_state = state["conv"].mT
        cache.module.rg_lru.recurrent_states = state["S"].flatten(1)


def _root(x: Tensor) -> Tensor:
    """Compute sqrt(x) of x >= 0, its derivative at most STEEPEST."""
    least = 0.25 / STEEPEST**2
    near = x.detach().sqrt() + STEEPEST * (x - x.detach())
    return torch.where(x < least, near, x.clamp_min(least).sqrt())


def _present(mask: Any, u: Tensor) -> Tensor | None:
    """Mark the tokens that are no padding [B,T], from an attention mask [B,L+T] or [B,1,T,L+T]; None if all are."""
    if mask is None:
        return None
    require(isinstance(mask, Tensor), f"the attention mask is a {type(mask).__name__}; expected a tensor or None")
    mask = mask[..., -u.shape[1] :]
    if mask.ndim == 4:  # a token sees itself, unless it is padding
        mask = mask[:, 0].diagonal(dim1=-2, dim2=-1)
        mask = mask if mask.dtype == torch.bool else mask >= 0
    mask = mask.bool().expand(u.shape[0], -1)
    return None if bool(mask.all()) else mask


class RecurrentGemmaTwin(Twin, pair="rg_lru", model="recurrent_gemma"):
    """RecurrentGemmaRecurrentBlock."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("rg_lru(reset_first=True)", d_model=d_model, n_heads=heads_of(d_model, 256))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "lru_width": layer.x_proj.out_features,
            "num_attention_heads": len(layer.r_gate.bias), "num_key_value_heads": 1, "conv1d_width": layer.conv.width,
            "num_hidden_layers": 1, "hidden_activation": "gelu_pytorch_tanh",
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        names = {
            "x_proj": "linear_x", "y_proj": "linear_y", "out_proj": "linear_out", "conv": "conv_1d",
            "Lambda": "rg_lru.recurrent_param", "r_gate.weight": "rg_lru.recurrent_gate_weight",
            "r_gate.bias": "rg_lru.recurrent_gate_bias", "i_gate.weight": "rg_lru.input_gate_weight",
            "i_gate.bias": "rg_lru.input_gate_bias",
        }  # fmt: skip
        return renamed(layer, names)

    def begin(self, x: Tensor) -> Any:
        self.module._setup_cache(x.shape[0], x.device, x.dtype)
        return self.module

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        positions = torch.arange(start, start + x.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        return self.module(x, positions, None, use_cache=cache is not None)[0]
