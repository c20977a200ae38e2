"""Rivals from the package transformers: each module as it runs without further kernels, with our layer's weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .party import Inputs, Party, Run, along, place

LONGEST = 1 << 17
"""Positions for which rotary angles are made."""


def code(model: str) -> tuple[Any, Any]:
    """The package transformers, and its modules of a model: imported where they are used, and of no type for mypy."""
    return (
        importlib.import_module("transformers"),
        importlib.import_module(f"transformers.models.{model}.modeling_{model}"),
    )


def loaded(module: nn.Module, layer: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """The module with these weights, its buffers as they were made, where our layer is."""
    module.load_state_dict({**dict(module.named_buffers()), **weights})
    return module.to(**place(layer)).eval()


def renamed(layer: nn.Module, names: Mapping[str, str], without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Our layer's weights under other names: whole names, or those of the modules that they belong to."""
    weights = {}
    for name, p in layer.state_dict().items():
        if name not in without:
            stem, _, kind = name.rpartition(".")
            weights[names[name] if name in names else f"{names.get(stem, stem)}.{kind}" if stem else name] = p
    return weights


def with_cache(call: Callable[[Tensor, Any], Tensor], config: Any) -> Callable[[Inputs, int], Run]:
    """Decoding with the cache that transformers gives to models of one layer."""
    hf = importlib.import_module("transformers")

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache = hf.DynamicCache(config=config)
        call(prompt[0], cache)
        return lambda x: call(x, cache)

    return begin


def mamba(use_mambapy: bool = False) -> Callable[[Any], Party]:
    """MambaMixer: a loop over tokens, or mambapy's scan."""

    def make(layer: Any) -> Party:
        hf, theirs = code("mamba")

        config = hf.MambaConfig(
            hidden_size=layer.d_model, state_size=layer.d_state, num_hidden_layers=1,
            expand=layer.d_inner // layer.d_model, conv_kernel=layer.conv.width, time_step_rank=layer.dt_rank,
            use_mambapy=use_mambapy,
        )  # fmt: skip
        weights = renamed(layer, {"conv": "conv1d"}, ("gate_proj.weight",))
        weights["in_proj.weight"] = torch.cat([layer.in_proj.weight, layer.gate_proj.weight]).detach()
        module = loaded(theirs.MambaMixer(config, layer_idx=0), layer, weights)
        return Party(module, module, with_cache(lambda x, cache: module(x, cache_params=cache), config))

    return make


def mamba2(chunk_size: int | None = None) -> Callable[[Any], Party]:
    """Mamba2Mixer with its own or another chunk size."""

    def make(layer: Any) -> Party:
        hf, theirs = code("mamba2")

        options = {} if chunk_size is None else {"chunk_size": chunk_size}
        config = hf.Mamba2Config(
            hidden_size=layer.d_model, state_size=layer.d_state, num_hidden_layers=1,
            expand=layer.d_inner // layer.d_model, conv_kernel=layer.conv.width, num_heads=layer.n_heads,
            head_dim=layer.d_inner // layer.n_heads, n_groups=layer.n_groups, layer_norm_epsilon=layer.norm.eps,
            time_step_limit=(0.0, float("inf")), **options,
        )  # fmt: skip
        joined = ("gate_proj.weight", "in_proj.weight", "dt_proj.weight")
        weights = renamed(layer, {"conv": "conv1d"}, joined)
        weights["in_proj.weight"] = torch.cat([layer.state_dict()[name] for name in joined])
        module = loaded(theirs.Mamba2Mixer(config, layer_idx=0), layer, weights)
        return Party(module, module, with_cache(lambda x, cache: module(x, cache_params=cache), config))

    return make


def qwen3_next(layer: Any) -> Party:
    """Qwen3NextGatedDeltaNet: chunks of 64 for a sequence, a fused step for a token."""
    hf, theirs = code("qwen3_next")

    config = hf.Qwen3NextConfig(
        hidden_size=layer.d_model, num_hidden_layers=1, layer_types=["linear_attention"],
        linear_num_key_heads=layer.n_heads, linear_num_value_heads=layer.n_heads, linear_key_head_dim=layer.d_state,
        linear_value_head_dim=layer.v_proj.out_features // layer.n_heads, linear_conv_kernel_dim=layer.q_conv.width,
        rms_norm_eps=layer.norm.eps,
    )  # fmt: skip
    # Theirs has the rows of q, k, v and the gate head by head, and those of beta and the decay.
    per_head = [
        f.weight.detach().unflatten(0, (layer.n_heads, -1))
        for f in (layer.q_proj, layer.k_proj, layer.v_proj, layer.gate_proj)
    ]
    gates = torch.stack([layer.beta_proj.weight, layer.a_proj.weight], 1).detach()
    weights = {
        "in_proj_qkvz.weight": torch.cat(per_head, 1).flatten(0, 1), "in_proj_ba.weight": gates.flatten(0, 1),
        "conv1d.weight": torch.cat([layer.q_conv.weight, layer.k_conv.weight, layer.v_conv.weight]).detach(),
        "A_log": layer.A_log, "dt_bias": layer.dt_bias, "norm.weight": layer.norm.weight,
        "out_proj.weight": layer.out_proj.weight,
    }  # fmt: skip
    module = loaded(theirs.Qwen3NextGatedDeltaNet(config, layer_idx=0), layer, weights)
    return Party(module, module, with_cache(lambda x, cache: module(x, cache_params=cache), config))


def kimi_linear(layer: Any) -> Party:
    """KimiLinearDeltaAttention, whose last map has no bias."""
    hf, theirs = code("kimi_linear")

    config = hf.KimiLinearConfig(
        hidden_size=layer.d_model, num_hidden_layers=1, layer_types=["linear_attention"],
        linear_head_dim=layer.d_state, linear_num_heads=layer.n_heads, linear_conv_kernel_dim=layer.q_conv.width,
        rms_norm_eps=layer.norm.eps,
    )  # fmt: skip
    convolutions = tuple(f"{s}_conv.weight" for s in "qkv")
    names = {
        "beta_proj": "b_proj", "a_proj.0": "forget_gate.f_a_proj", "a_proj.1": "forget_gate.f_b_proj",
        "gate_proj.0": "g_a_proj", "gate_proj.1": "g_b_proj", "norm": "o_norm", "out_proj": "o_proj",
        "dt_bias": "forget_gate.dt_bias",
    }  # fmt: skip
    weights = renamed(layer, names, (*convolutions, "gate_proj.1.bias", "A_log"))
    weights["conv1d.weight"] = torch.cat([layer.state_dict()[name] for name in convolutions])
    weights["forget_gate.A_log"] = layer.A_log.detach().view(1, 1, -1, 1)
    module = loaded(theirs.KimiLinearDeltaAttention(config, layer_idx=0), layer, weights)
    return Party(module, module, with_cache(lambda x, cache: module(x, cache_params=cache), config))


def recurrent_gemma(layer: Any) -> Party:
    """RecurrentGemmaRecurrentBlock, which keeps its state in itself."""
    hf, theirs = code("recurrent_gemma")

    config = hf.RecurrentGemmaConfig(
        hidden_size=layer.d_model, lru_width=layer.x_proj.out_features, num_attention_heads=len(layer.r_gate.bias),
        num_key_value_heads=1, conv1d_width=layer.conv.width, num_hidden_layers=1,
        hidden_activation="gelu_pytorch_tanh",
    )  # fmt: skip
    names = {
        "x_proj": "linear_x", "y_proj": "linear_y", "out_proj": "linear_out", "conv": "conv_1d",
        "Lambda": "rg_lru.recurrent_param", "r_gate.weight": "rg_lru.recurrent_gate_weight",
        "r_gate.bias": "rg_lru.recurrent_gate_bias", "i_gate.weight": "rg_lru.input_gate_weight",
        "i_gate.bias": "rg_lru.input_gate_bias",
    }  # fmt: skip
    module = loaded(theirs.RecurrentGemmaRecurrentBlock(config, layer_idx=0), layer, renamed(layer, names))

    def call(x: Tensor, start: int, use_cache: bool) -> Tensor:
        positions = torch.arange(start, start + x.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        return module(x, positions, None, use_cache=use_cache)[0]

    def begin(prompt: Inputs, tokens: int) -> Run:
        (x,) = prompt
        module._setup_cache(x.shape[0], x.device, x.dtype)
        call(x, 0, True)
        return lambda x: call(x, tokens, True)

    return Party(lambda x: call(x, 0, False), module, begin)


def rwkv(layer: Any) -> Party:
    """RwkvSelfAttention: a loop over tokens."""
    hf, theirs = code("rwkv")

    names = {
        "log_w": "time_decay", "bonus": "time_first", "r_proj": "receptance", "k_proj": "key", "v_proj": "value",
        "out_proj": "output",
    }  # fmt: skip
    weights = renamed(layer, names, ("mix",))
    for name, share in zip(("receptance", "key", "value"), layer.mix.detach(), strict=True):
        weights[f"time_mix_{name}"] = (1 - share).view(1, 1, -1)
    module = loaded(
        theirs.RwkvSelfAttention(hf.RwkvConfig(hidden_size=layer.d_model, num_hidden_layers=1)), layer, weights
    )

    def begin(prompt: Inputs, tokens: int) -> Run:
        (x,) = prompt
        state = [torch.zeros(x.shape[0], layer.d_model, 1, **place(layer)) for _ in range(5)]
        state[4] -= 1e30
        module(x, state=state, use_cache=True)
        return lambda x: module(x, state=state, use_cache=True)[0]

    return Party(lambda x: module(x)[0], module, begin)


def xlstm(layer: Any) -> Party:
    """xLSTM's layer of the matrix memory, in chunks of 64; eps = 0, as theirs is added beyond the paper's floor."""
    hf, theirs = code("xlstm")

    config = hf.xLSTMConfig(
        hidden_size=layer.d_model, num_heads=layer.n_heads, v_dim_factor=1.0,
        qk_dim_factor=layer.q_proj.out_features / layer.d_model, gate_soft_cap=layer.gate_cap, norm_eps=1e-6, eps=0.0,
        mode="inference",
    )  # fmt: skip
    names = {
        "q_proj": "q", "k_proj": "k", "v_proj": "v", "i_proj": "igate_preact", "f_proj": "fgate_preact",
        "gate_proj": "ogate_preact", "norm_weight": "multihead_norm.weight",
    }  # fmt: skip
    module = loaded(theirs.xLSTMLayer(config), layer, renamed(layer, names))

    def begin(prompt: Inputs, tokens: int) -> Run:
        _, state = module(*prompt)

        def step(x: Tensor) -> Tensor:
            nonlocal state
            y, state = module(x, state)
            return y

        return step

    return Party(lambda x: module(x)[0], module, begin)


def minimax(layer: Any) -> Party:
    """MiniMaxLightningAttention, in blocks of 256; its slopes are those of a first layer."""
    hf, theirs = code("minimax")

    H = layer.n_heads
    config = hf.MiniMaxConfig(
        hidden_size=layer.d_model, num_attention_heads=H, num_key_value_heads=H, head_dim=layer.d_state,
        num_hidden_layers=2, hidden_act="silu", layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    q, k, v = (f.weight.detach().unflatten(0, (H, -1)) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    weights = renamed(layer, {"gate_proj": "output_gate"}, tuple(f"{s}_proj.weight" for s in "qkv"))
    weights["qkv_proj.weight"] = torch.cat([q, k, v], 1).flatten(0, 1)
    module = loaded(theirs.MiniMaxLightningAttention(config, layer_idx=0), layer, weights)

    def call(x: Tensor, cache: Any) -> Tensor:
        return module(x, position_embeddings=None, attention_mask=None, past_key_values=cache)[0]

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache = theirs.MiniMaxCache()
        call(prompt[0], cache)
        return lambda x: call(x, cache)

    return Party(lambda x: call(x, None), module, begin)


def filled(cache: Any, tokens: int) -> None:
    """Fill a cache of keys and values up to so many tokens by repeating what it holds."""
    layer = cache.layers[0]
    layer.keys, layer.values = along(layer.keys, 2, tokens), along(layer.values, 2, tokens)


def llama(layer: Any) -> Party:
    """LlamaAttention with torch's fused attention; the angles are made beforehand, as a model makes them once."""
    hf, theirs = code("llama")

    config = hf.LlamaConfig(
        hidden_size=layer.d_model, num_attention_heads=layer.n_heads, num_key_value_heads=layer.n_kv_heads,
        head_dim=layer.d_state, num_hidden_layers=1, attention_bias=layer.q_proj.bias is not None,
        rope_parameters={"rope_type": "default", "rope_theta": layer.rope_base}, attn_implementation="sdpa",
    )  # fmt: skip
    module = loaded(theirs.LlamaAttention(config, layer_idx=0), layer, renamed(layer, {"out_proj": "o_proj"}))
    rotary = theirs.LlamaRotaryEmbedding(config).to(place(layer)["device"])
    turned: dict[Any, Any] = {}

    def angles(x: Tensor) -> Any:
        if x.dtype not in turned:
            turned[x.dtype] = rotary(x, torch.arange(LONGEST, device=x.device)[None])
        return turned[x.dtype]

    def call(x: Tensor, start: int, cache: Any) -> Tensor:
        cos_sin = tuple(c[:, start : start + x.shape[1]] for c in angles(x))
        return module(x, position_embeddings=cos_sin, attention_mask=None, past_key_values=cache)[0]

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache, at = hf.DynamicCache(config=config), tokens
        call(prompt[0], 0, cache)
        filled(cache, tokens)

        def step(x: Tensor) -> Tensor:
            nonlocal at
            at += 1
            return call(x, at - 1, cache)

        return step

    return Party(lambda x: call(x, 0, None), module, begin)


def gpt2(layer: Any) -> Party:
    """GPT2Attention with torch's fused attention; its maps keep their weights transposed."""
    hf, theirs = code("gpt2")

    config = hf.GPT2Config(
        n_embd=layer.d_model, n_head=layer.n_heads, n_layer=1, attn_pdrop=0.0, resid_pdrop=0.0,
        attn_implementation="sdpa",
    )  # fmt: skip
    maps = (layer.q_proj, layer.k_proj, layer.v_proj)
    weights = {
        "c_attn.weight": torch.cat([f.weight for f in maps]).detach().T.contiguous(),
        "c_attn.bias": torch.cat([f.bias for f in maps]).detach(),
        "c_proj.weight": layer.out_proj.weight.detach().T.contiguous(), "c_proj.bias": layer.out_proj.bias,
    }  # fmt: skip
    module = loaded(theirs.GPT2Attention(config, layer_idx=0), layer, weights)

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache = hf.DynamicCache(config=config)
        module(*prompt, past_key_values=cache)
        filled(cache, tokens)
        return lambda x: module(x, past_key_values=cache)[0]

    return Party(lambda x: module(x)[0], module, begin)


def lfm2(layer: Any) -> Party:
    """Lfm2ShortConv."""
    hf, theirs = code("lfm2")

    config = hf.Lfm2Config(
        hidden_size=layer.d_model, conv_L_cache=layer.taps.shape[1], conv_bias=False, num_hidden_layers=1,
        layer_types=["conv"],
    )  # fmt: skip
    maps = (layer.b_proj, layer.c_proj, layer.x_proj)
    weights = {
        "in_proj.weight": torch.cat([f.weight for f in maps]).detach(),
        "conv.weight": layer.taps.detach().flip(1).unsqueeze(1), "out_proj.weight": layer.out_proj.weight,
    }  # fmt: skip
    module = loaded(theirs.Lfm2ShortConv(config, layer_idx=0), layer, weights)
    return Party(module, module, with_cache(lambda x, cache: module(x, past_key_values=cache), config))
