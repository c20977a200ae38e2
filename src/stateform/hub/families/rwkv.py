"""RWKV-4: RwkvSelfAttention, and RwkvFeedForward, which remembers a token. Their model keeps five tensors [B,d,layers]
for all its layers; its own code takes a step of one row alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...architectures import build
from ...architectures.rwkv.shared import mixed
from ...layer import Layer, Past
from ...layer.parts import precise
from ...system import System
from ...system.state import State, unchecked
from ..lifted import Call, Lifted, adapts, named
from ..twin import Twin, renamed


class LiftedRWKV(Lifted):
    """The base of time and channel mixing: their arguments and their cache."""

    contractive = True
    windows = ()

    def check(self, module: Any) -> None:
        self.index = module.layer_id

    @staticmethod
    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = named(module, args, kwargs)
        return Call(given.pop("hidden"), given.pop("state", None), rest=given)

    def returns(self, y: Tensor, call: Call) -> Any:
        return y, call.cache


@adapts(rwkv="RwkvSelfAttention")
class LiftedTimeMixing(LiftedRWKV):
    """As `architectures.RWKV4`: channels are heads, a bonus for the token itself, eta the sum of the weights."""

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        at_k, at_v = mixed(u, past, *(1 - mix.flatten() for mix in (m.time_mix_key, m.time_mix_value)))
        k, v = precise(m.key(at_k.to(u.dtype))), m.value(at_v.to(u.dtype)).unsqueeze(-1)
        one = v.new_ones(1, 1)
        decay, bonus = -precise(m.time_decay).exp(), precise(m.time_first)
        return System(one, one, v, log_decay=decay, log_b=k, d=(bonus + k).exp(), eta="sum", exclusive=True)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        (at_r,) = mixed(u, past, 1 - m.time_mix_receptance.flatten())
        return m.output(torch.sigmoid(m.receptance(at_r.to(u.dtype))) * y.flatten(2).to(u.dtype))

    def read(self, cache: Any) -> State | None:
        _, before, numerator, denominator, scale = (x[:, :, self.index] for x in cache)
        return unchecked(
            {
                "shift": before.unsqueeze(1),
                "S": torch.stack([numerator, denominator], -1).unsqueeze(2),
                "log_scale": scale,
                "position": torch.zeros(len(before), dtype=torch.long, device=before.device),
            },
            self.fingerprint,
        )

    def write(self, cache: Any, state: State) -> None:
        new = (state["shift"].squeeze(1), *state["S"].squeeze(2).unbind(-1), state["log_scale"])
        for kept, x in zip(cache[1:], new, strict=True):
            kept[:, :, self.index] = x


@adapts(rwkv="RwkvFeedForward")
class LiftedChannelMixing(LiftedRWKV):
    """y_t = sigmoid(W_r .) * W_v relu(W_k .)^2 of u_t and u_{t-1}: the state is one token, forgotten at the next."""

    def system(self, u: Tensor, past: Past | None = None) -> System:
        one = u.new_ones(1, 1)
        never = torch.full((1,), -torch.inf, dtype=precise(u).dtype, device=u.device)
        return System(one, one, u.unsqueeze(2), log_decay=never, exclusive=True)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        before = y.squeeze(2).to(u.dtype)
        k, r = (u * mix + before * (1 - mix) for mix in (m.time_mix_key, m.time_mix_receptance))
        return torch.sigmoid(m.receptance(r)) * m.value(torch.relu(m.key(k)).square())

    def read(self, cache: Any) -> State | None:
        before = cache[0][:, :, self.index]
        position = torch.zeros(len(before), dtype=torch.long, device=before.device)
        return unchecked({"S": before[:, None, None], "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        cache[0][:, :, self.index] = state["S"].flatten(1)


class RWKVTwin(Twin, pair="rwkv4", model="rwkv"):
    """RwkvSelfAttention: a loop over tokens."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("rwkv4", d_model=d_model)

    def settings(self, layer: Any) -> dict[str, Any]:
        return {"hidden_size": layer.d_model, "num_hidden_layers": 1}

    def weights(self, layer: Any) -> dict[str, Tensor]:
        names = {
            "log_w": "time_decay", "bonus": "time_first", "r_proj": "receptance", "k_proj": "key", "v_proj": "value",
            "out_proj": "output",
        }  # fmt: skip
        shares = zip(("receptance", "key", "value"), layer.mix.detach(), strict=True)
        mixes = {f"time_mix_{name}": (1 - share).view(1, 1, -1) for name, share in shares}
        return {**renamed(layer, names, ("mix",)), **mixes}

    def begin(self, x: Tensor) -> Any:
        state = [x.new_zeros(x.shape[0], x.shape[2], 1) for _ in range(5)]
        state[4] -= 1e30
        return state

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        return self.module(x, state=cache, use_cache=cache is not None)[0]
