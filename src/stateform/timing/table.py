"""The table of pairs: layers at the sizes of released models of their kind, and what one would take instead."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..architectures import build
from ..architectures.delta import GatedDeltaNet
from ..layer import Layer, ShortConv
from ..layer.parts import HeadNorm
from .pair import Operation, Pair, Rival, heads_of, like
from .rivals import fla as of_fla
from .rivals import mambapy as of_mambapy
from .rivals import torch as of_torch
from .rivals import transformers as of_transformers


class WideGatedDeltaNet(GatedDeltaNet):
    """Gated DeltaNet with as many values as keys in a head, whatever d_model is: the proportions of Qwen3-Next."""

    def __init__(self, d_model: int, n_heads: int, *, d_state: int) -> None:
        super().__init__(d_model, n_heads, d_state=d_state)
        values = n_heads * d_state
        self.v_proj, self.gate_proj = (nn.Linear(d_model, values, bias=False) for _ in range(2))
        self.v_conv, self.norm = ShortConv(values, self.q_conv.width, "v_conv"), HeadNorm(d_state)
        self.out_proj = nn.Linear(values, d_model, bias=False)


def wide_gated_deltanet(d_model: int) -> Layer:
    """Inner width twice d_model, in heads of 128 keys and values at d_model 768."""
    n_heads = heads_of(64)(d_model)
    return WideGatedDeltaNet(d_model, n_heads, d_state=max(1, 2 * d_model // n_heads))


def kda(d_model: int) -> Any:
    """As Kimi Linear has it: no bias in the gate."""
    layer = build("kda", d_model=d_model, n_heads=heads_of(128)(d_model))
    down, up = layer.gate_proj
    layer.gate_proj = nn.Sequential(down, nn.Linear(up.in_features, up.out_features, bias=False))
    return layer


def lightning(d_model: int) -> Any:
    """With the slopes and the normalisation of MiniMax's first layer."""
    layer = build("lightning", d_model=d_model, n_heads=heads_of(64)(d_model), slope_scale=1 + 1e-5)
    layer.norm.eps = 1e-6
    return layer


def of(package: str, name: str, make: Any, **more: Any) -> Rival:
    """A row of the table, shorter."""
    return Rival(name, package, make, **more)


PAIRS: dict[str, Pair | Operation] = {
    pair.name: pair
    for pair in (
        Pair("mamba", like("mamba"), (
            of("transformers", "MambaMixer", of_transformers.mamba()),
            of("mambapy", "MambaMixer, mambapy's scan", of_transformers.mamba(use_mambapy=True)),
            of("mambapy", "MambaBlock", of_mambapy.mamba_block),
        )),
        Pair("mamba2", like("mamba2", d_state=lambda d: min(128, d), d_head=lambda d: min(64, d // 2)), (
            of("transformers", "Mamba2Mixer", of_transformers.mamba2()),
            of("transformers", "Mamba2Mixer, chunk 64", of_transformers.mamba2(64)),
        )),
        Pair("gated_deltanet", wide_gated_deltanet, (
            of("transformers", "Qwen3NextGatedDeltaNet", of_transformers.qwen3_next),
        )),
        Pair("kda", kda, (of("transformers", "KimiLinearDeltaAttention", of_transformers.kimi_linear),)),
        Pair("lightning", lightning, (of("transformers", "MiniMaxLightningAttention", of_transformers.minimax),)),
        Pair("mlstm", like("mlstm", n_heads=heads_of(192)), (of("transformers", "xLSTMLayer", of_transformers.xlstm),)),
        Pair("rg_lru", like("rg_lru(reset_first=True)", n_heads=heads_of(256)), (
            of("transformers", "RecurrentGemmaRecurrentBlock", of_transformers.recurrent_gemma),
        )),
        Pair("rwkv4", like("rwkv4"), (of("transformers", "RwkvSelfAttention", of_transformers.rwkv),)),
        Pair("short_conv", like("short_conv"), (of("transformers", "Lfm2ShortConv", of_transformers.lfm2),)),
        Pair("softmax", like("softmax", n_heads=heads_of(64)), (
            of("transformers", "LlamaAttention, sdpa", of_transformers.llama),
        )),
        Pair("softmax/gpt2", like("softmax(positions='none', bias=True)", n_heads=heads_of(64)), (
            of("transformers", "GPT2Attention, sdpa", of_transformers.gpt2),
            of("torch", "scaled_dot_product_attention", of_torch.fused_attention),
        )),
        Pair("lstm", like("lstm"), (of("torch", "nn.LSTM", of_torch.recurrent(nn.LSTM)),)),
        Pair("gru", like("gru"), (of("torch", "nn.GRU", of_torch.recurrent(nn.GRU)),)),
        *of_fla.OPERATIONS,
    )
}  # fmt: skip
PACKAGES = tuple(dict.fromkeys(rival.package for pair in PAIRS.values() for rival in pair.rivals))
"""Every package that has rivals."""
