"""Softmax attention that its module writes out itself, past the attention functions: Bloom, Falcon, MPT, GPT.

What ALiBi (arXiv 2108.12409) adds to the logits of key j, s j, is a forgetting by -s a token: only differences within
a row of logits matter.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import require
from ...layer import Past
from ...layer.parts import heads
from ...system import System
from ..lifted import Lifted, adapts
from .softmax import visible_window, with_phase


class LiftedWritten(Lifted):
    """An attention module of q, k, v and a last map, called with `given` besides its input."""

    last: ClassVar[str] = "dense"
    """Name of the last map."""
    finite = False
    left = "its state is a cache of keys and values, which grows"
    windows = ()

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q [B,T,H,n], scaled, k [B,T,H',n] and v [B,T,H',p]."""
        raise NotImplementedError

    def key_bias(self) -> Tensor | None:
        """Find what is added to the logits of each key, [B,H,T]; None for nothing."""
        return None

    def window(self, mask: Tensor | None, T: int) -> int | None:
        """Count the tokens that are seen; None for all."""
        return None if mask is None else visible_window(mask, T, 0, True, None)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        require(past is None or past.state is None, "attention of another library goes on from its own cache")
        (q, k, v), added = self.qkv(u), self.key_bias()
        window = self.window(self.given.get("attention_mask"), u.shape[1])
        forget, bias = (None, None) if added is None else _forgetting(added)
        return System(q, k, v, readout="exp", eta="sum", window=window, forget=forget, bias=bias)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        out: Tensor = getattr(self.module, self.last)(y.flatten(2))
        return out


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


@adapts(mpt="MptAttention")
class LiftedMPT(LiftedWritten):
    """MptAttention, with ALiBi; its maps may be clipped, and its mask says what is hidden."""

    last = "out_proj"

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m: Any = self.module
        x = m.Wqkv(u)
        x = x.clamp(-m.clip_qkv, m.clip_qkv) if m.clip_qkv else x
        q, k, v = (heads(part, m.n_heads) for part in x.chunk(3, -1))
        return q * m.softmax_scale, k, v

    def key_bias(self) -> Tensor | None:
        table, mask = self.given["position_bias"], self.given["attention_mask"]
        return None if table is None else table[None, :, -1, -mask.shape[-1] :]

    def window(self, mask: Tensor | None, T: int) -> int | None:
        return super().window(None if mask is None else ~mask, T)


class LiftedGPTEarly(LiftedWritten):
    """An attention module with a map for each of q, k and v."""

    last = "out_proj"
    scale: ClassVar[float | None] = None
    """Of the logits; None for one over the root of the keys."""

    def qkv(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m: Any = self.module
        q, k, v = (heads(f(u), m.embed_dim // m.head_dim) for f in (m.q_proj, m.k_proj, m.v_proj))
        return q * (m.head_dim**-0.5 if self.scale is None else self.scale), k, v


@adapts(gpt_neo="GPTNeoSelfAttention")
class LiftedGPTNeo(LiftedGPTEarly):
    """GPTNeoSelfAttention, whose logits are not scaled; every other layer has a window."""

    scale = 1.0

    def window(self, mask: Tensor | None, T: int) -> int | None:
        super().window(mask, T)
        m: Any = self.module
        return int(m.config.window_size) if m.attention_type == "local" else None


@adapts(gptj="GPTJAttention")
class LiftedGPTJ(LiftedGPTEarly):
    """GPTJAttention, which turns neighbours among the first entries of q and k."""

    def system(self, u: Tensor, past: Past | None = None) -> System:
        m: Any = self.module
        sin, cos = m.embed_positions[self.given["position_ids"][:1]].chunk(2, -1)  # [1,T,r/2]
        r, turn = 2 * cos.shape[-1], importlib.import_module(type(m).__module__).apply_rotary_pos_emb

        def turned(name: str, x: Tensor) -> Tensor:
            return torch.cat([turn(x[..., :r], sin, cos), x[..., r:]], -1) if name in ("q", "k") else x

        return with_phase(super().system(u, past).map(turned), cos, sin, neighbours=True)
