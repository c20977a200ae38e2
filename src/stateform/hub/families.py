"""Small random models of the families of the package transformers: a few tokens of vocabulary, a few channels, and at
least one layer of each kind that the family mixes. For tests and benchmarks; nothing is loaded from anywhere.

    model = small("mamba2")
    model = small("llama", num_hidden_layers=4, seed=1)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import StateformError, nearest, require

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 16}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8}
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 16,
}  # fmt: skip
_LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_KDA = {
    "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 16, "linear_head_dim": 8,
    "linear_num_heads": 4, "num_key_value_heads": 4, "num_attention_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}  # fmt: skip
_MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 8}

# model_type of the configuration -> what differs from the defaults below, which go to every family that has them.
_FAMILIES: dict[str, dict[str, Any]] = {
    # softmax attention
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "llama": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma": {"head_dim": 8},
    "gemma2": {**_WINDOW},
    "gemma3_text": {**_WINDOW},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    "gpt_oss": {
        **_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "deepseek_v3": {
        **_LATENT, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "moe_intermediate_size": 16, "n_shared_experts": 1,
    },
    # state-space models and recurrent networks
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "recurrent_gemma": {
        "num_hidden_layers": 3, "lru_width": 32, "num_attention_heads": 4, "num_key_value_heads": 1,
        "attention_window_size": 8,
    },
    "xlstm": {  # its cache rounds these widths up to multiples of 64, its layers do not
        "num_blocks": 2, "num_heads": 4, "chunk_size": 8, "hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0,
    },
    # hybrids
    "jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "num_experts": 4, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
    "zamba": {
        "num_hidden_layers": 6, "num_key_value_heads": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "attention_head_dim": 16, "attention_hidden_size": 64, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_ngroups": 2, "mamba_d_state": 8, "chunk_size": 8,
        "adapter_rank": 4, "use_mem_rope": True,
    },
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1], **_MAMBA2},
    "granitemoehybrid": {
        **_MAMBA2, **_MIXED, "num_hidden_layers": 3, "num_local_experts": 4, "shared_intermediate_size": 32,
        "position_embedding_type": "rope",
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
        "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2,
        "chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen3_next": {**_SHARED, **_DELTA, **_MIXED, "num_hidden_layers": 3},
    "qwen3_5_text": {**_DELTA, **_MIXED, "num_hidden_layers": 3},
    "qwen3_5_moe_text": {**_SHARED, **_DELTA, **_MIXED, "num_hidden_layers": 3},
    "qwen4_exp_text": {
        **_SHARED, **_DELTA, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4096,
        "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8,
    },
    "olmo_hybrid": {
        **_MIXED, "num_hidden_layers": 3, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "kimi_linear": {**_LATENT, **_KDA, "num_hidden_layers": 3, "num_shared_experts": 1},
    "bailing_hybrid": {**_LATENT, **_KDA, "num_hidden_layers": 3, "num_expert_group": 1, "topk_group": 1},
    "minimax": {
        "num_hidden_layers": 3, **_MIXED, "num_local_experts": 4, "head_dim": 8, "block_size": 8,
    },
    "lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "lfm2_moe": {
        **_EXPERTS, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1,
    },
    "lfm3": {
        "num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "sliding_attention", "conv"],
        "conv_L_cache": 4, "sliding_window": 8, "head_dim": 8,
    },
    "zaya": {"num_experts": 4, "moe_intermediate_size": 32, "router_hidden_size": 16, "head_dim": 8},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["dense", "sparse"], "head_dim": 8,
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 8,
        "d_rel": 4, "rel_extent": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0,
    },
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid"], "head_dim": 8, "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2, "swa_head_dim": 8, "sliding_window_size": 8, "d_rel": 4, "rel_extent": 64,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "unpadded_vocab_size": 64,
        "n_layers_per_attn_res_block": 1,
    },
    # an encoder, which is to be refused where a causal model is expected
    "bert": {},
}  # fmt: skip
_COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, **_HEADS,
    "max_position_embeddings": 256, "model_max_length": 256, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip


def families() -> list[str]:
    """The model types that `small` builds and the installed transformers knows."""
    known = _transformers().CONFIG_MAPPING
    return [name for name in _FAMILIES if name in known]


def small(model_type: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A small causal language model of a family (for `bert`, a masked one), in eval mode, with random weights.

    The weights are drawn so that every part matters: an initialisation for training makes each block nearly the
    identity, and some gates nearly closed, which would hide most errors of a mixer.

    Args:
        model_type: as in `config.model_type`, e.g. "mamba2" or "qwen3_next"; of a family with a model for text alone
            that ends in `_text`, either name.
        seed: of the weights.
        overrides: settings of the configuration.

    Raises:
        StateformError: if the family is not known here or to the installed transformers.
    """
    package = _transformers()
    name = f"{model_type}_text" if f"{model_type}_text" in _FAMILIES else model_type
    require(name in _FAMILIES, f"no small model of type {model_type!r}; {nearest(model_type, _FAMILIES)}")
    require(
        name in package.CONFIG_MAPPING,
        f"transformers {package.__version__} has no model of type {name!r}; install a newer one",
    )
    kind = package.CONFIG_MAPPING[name]
    common = {k: v for k, v in _COMMON.items() if _has(kind, k)}
    config = kind(**{**common, **_FAMILIES[name], **overrides})
    auto = package.AutoModelForMaskedLM if name == "bert" else package.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).float()
    redraw(model, seed)
    return model.eval()


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw the weights of a model anew, in place, so that every part of it matters.

    Matrices keep the variance of their input, embeddings have variance 1, vectors (norms, biases) are moved by a tenth
    from what they were, decays are such that a state lives for some ten tokens, and input gates are open.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

    def uniform(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(x.shape, generator=generator, dtype=torch.float64)).to(x)

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, x in model.named_parameters():
        last = name.split(".")[-1]
        if id(x) in tables:
            x.copy_(normal(x))
        elif last == "dt_bias" or name.endswith(("dt_proj.bias", "dt_proj_bias")):
            x.copy_(uniform(x, -3.0, -1.0))  # softplus of it: 0.05 to 0.3
        elif last == "A_log" and x.numel() == max(x.shape):
            x.copy_(uniform(x, -0.7, 0.7))
        elif last in ("A_log", "recurrent_param") or last.startswith("time_"):
            x.add_(0.1 * normal(x))
        elif "igate" in name and x.ndim == 1:
            x.copy_(0.5 * normal(x))
        elif x.ndim < 2 or x.numel() == max(x.shape):
            x.add_(0.1 * normal(x))
        else:
            fan = math.prod(x.shape[1:]) if "conv" in name else x.shape[-1]
            x.copy_(normal(x) / math.sqrt(fan))


def _has(kind: type, setting: str) -> bool:
    """Whether a class of configurations has a setting, under its own name or one that it maps to its own."""
    return setting in getattr(kind, "attribute_map", {}) or any(
        setting in getattr(base, "__annotations__", {}) for base in kind.__mro__
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise StateformError(
            "models of the hub need transformers 5 or newer; install it with: pip install 'stateform[hub]'"
        ) from error
    return transformers
