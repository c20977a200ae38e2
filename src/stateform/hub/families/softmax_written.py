"""Softmax attention that its module writes out itself, past the attention functions: Bloom and Falcon.

What ALiBi (arXiv 2108.12409) adds to the logits of key j, s j, is a forgetting by -s a token: only differences within
a row of logits matter.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...layer import Past
from ...layer.parts import heads
from ...system import System
from ..lifted import Lifted, adapts
from .softmax import visible_window, with_phase


class LiftedWritten(Lifted):
    """An attention module of q, k, v and a last map `dense`, called with `given` besides its input."""

    finite = False
    left = "its state is a cache of keys and values, which grows"
    windows = ()

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q [B,T,H,n], scaled, k [B,T,H',n] and v [B,T,H',p]."""
        raise NotImplementedError

    def key_bias(self) -> Tensor | None:
        """Find what is added to the logits of each key, [B,H,T]; None for nothing."""
        return self.given["alibi"]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        require(past is None or past.state is None, "attention of another library goes on from its own cache")
        (q, k, v), mask, added = self.qkv(u), self.given.get("attention_mask"), self.key_bias()
        window = None if mask is None else visible_window(mask, u.shape[1], 0, True, None)
        forget, bias = (None, None) if added is None else _forgetting(added)
        return System(q, k, v, readout="exp", eta="sum", window=window, forget=forget, bias=bias)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        return m.dense(y.flatten(2))


def _forgetting(added: Tensor) -> tuple[Tensor, Tensor | None]:
    """Turn biases s_h j of the keys, [B,H,T], into log decays -s_h [H]; and what is left of rounded biases [B,T,H]."""
    slope = added[0, :, 1] - added[0, :, 0] if added.shape[2] > 1 else added.new_zeros(added.shape[1])
    rest = added - slope[:, None] * torch.arange(added.shape[2], device=added.device)
    return -slope, rest.mT if bool(rest.any()) else None


@adapts(bloom="BloomAttention")
class LiftedBloom(LiftedWritten):
    """BloomAttention; it adds the residual stream to its output itself."""

    def check(self, module: Any) -> None:
        require(not (module.pretraining_tp > 1 and module.slow_but_exact),
                "slow_but_exact leaves out the bias of the last map; set it to False")  # fmt: skip

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m: Any = self.module
        q, k, v = heads(m.query_key_value(u), m.num_heads).chunk(3, -1)
        return q * m.inv_norm_factor, k, v

    def key_bias(self) -> Tensor | None:
        m: Any = self.module
        return self.given["alibi"].view(-1, m.num_heads, self.given["alibi"].shape[-1])

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        return super().output(y, u, system, past) + self.given["residual"]


@adapts(falcon="FalconAttention")
class LiftedFalcon(LiftedWritten):
    """FalconAttention, with ALiBi or rotary positions, and one key and value for all heads or for groups of them."""

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m: Any = self.module
        q, k, v = m._split_heads(m.query_key_value(u))
        if m.new_decoder_architecture:  # the groups' keys come as copies
            k, v = (x[:, :, :: m.num_heads // m.num_kv_heads] for x in (k, v))
        if self.given["alibi"] is None:
            turn = importlib.import_module(type(m).__module__).apply_rotary_pos_emb
            q, k = turn(q, k, *self.given["position_embeddings"], unsqueeze_dim=2)
        return q * m.inv_norm_factor, k, v

    def key_bias(self) -> Tensor | None:
        """Take the biases from the mask, divided as the logits are; written out, the module adds them once more."""
        m: Any = self.module
        if self.given["alibi"] is None:
            return None
        bias = self.given["attention_mask"][:, :, -1]
        return (
            bias if m.config._attn_implementation == "sdpa" else bias + self.given["alibi"][:, :, 0] * m.inv_norm_factor
        )

    def system(self, u: Tensor, past: Past | None = None) -> System:
        system = super().system(u, past)
        if self.given["alibi"] is None:
            system = with_phase(system, *self.given["position_embeddings"])
        return system
