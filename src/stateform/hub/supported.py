"""The models that can be opened, by their type in transformers, with the classes of their mixers."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from ..errors import nearest, require
from ..models import SequenceModel
from .adapter import ADAPTERS

FAMILIES: dict[str, tuple[str, ...]] = {
    "bailing_hybrid": ("BailingHybridDeltaAttention", "BailingHybridAttention"),
    "bamba": ("BambaMixer", "BambaAttention"),
    "bert": ("BertSelfAttention",),
    "distilbert": ("DistilBertSelfAttention",),
    "electra": ("ElectraSelfAttention",),
    "falcon_h1": ("FalconH1Mixer", "FalconH1Attention"),
    "falcon_mamba": ("FalconMambaMixer",),
    "gemma": ("GemmaAttention",),
    "gemma2": ("Gemma2Attention",),
    "gemma3_text": ("Gemma3Attention",),
    "gpt2": ("GPT2Attention",),
    "granite": ("GraniteAttention",),
    "granitemoehybrid": ("GraniteMoeHybridMambaLayer", "GraniteMoeHybridAttention"),
    "jamba": ("JambaMambaMixer", "JambaAttention"),
    "kimi_linear": ("KimiLinearDeltaAttention", "KimiLinearAttention"),
    "lfm2": ("Lfm2ShortConv", "Lfm2Attention"),
    "lfm2_moe": ("Lfm2MoeShortConv", "Lfm2MoeAttention"),
    "lfm3": ("Lfm3ShortConv", "Lfm3Attention"),
    "llama": ("LlamaAttention",),
    "mamba": ("MambaMixer",),
    "mamba2": ("Mamba2Mixer",),
    "minimax": ("MiniMaxLightningAttention", "MiniMaxAttention"),
    "mistral": ("MistralAttention",),
    "mixtral": ("MixtralAttention",),
    "nemotron_h": ("NemotronHMamba2Mixer", "NemotronHAttention"),
    "olmo": ("OlmoAttention",),
    "olmo2": ("Olmo2Attention",),
    "olmo3": ("Olmo3Attention",),
    "olmo_hybrid": ("OlmoHybridGatedDeltaNet", "OlmoHybridAttention"),
    "phi3": ("Phi3Attention",),
    "qwen2": ("Qwen2Attention",),
    "qwen3": ("Qwen3Attention",),
    "qwen3_5_moe_text": ("Qwen3_5MoeGatedDeltaNet", "Qwen3_5MoeAttention"),
    "qwen3_5_text": ("Qwen3_5GatedDeltaNet", "Qwen3_5Attention"),
    "qwen3_next": ("Qwen3NextGatedDeltaNet", "Qwen3NextAttention"),
    "qwen4_exp_text": ("Qwen4ExpTextGatedDeltaNet",),
    "recurrent_gemma": ("RecurrentGemmaRecurrentBlock", "RecurrentGemmaSdpaAttention"),
    "roberta": ("RobertaSelfAttention",),
    "rwkv": ("RwkvSelfAttention", "RwkvFeedForward"),
    "smollm3": ("SmolLM3Attention",),
    "xlstm": ("xLSTMLayer",),
    "zamba": ("ZambaMambaMixer", "ZambaAttention"),
    "zamba2": ("Zamba2MambaMixer", "Zamba2Attention"),
}
"""Type of a model (`config.model_type`) to the classes of its mixers."""

_FILES = (
    "attention", "delta", "lfm2", "minimax", "mamba", "mamba2", "recurrent_gemma", "rwkv", "xlstm",
)  # fmt: skip
HOW = "see `Your model in Stateform` in the documentation for how to write an adapter (about 40 lines)"


def load_adapters() -> None:
    """Import all adapters, which register themselves."""
    for name in _FILES:
        importlib.import_module(f"{__package__}.adapters.{name}")


def kind_of(model: Any) -> str | None:
    """The type of a model of transformers; None for anything else."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind if isinstance(kind, str) else None


def require_supported(model: Any) -> None:
    """Raise unless the model is of a type with adapters."""
    kind = kind_of(model)
    inner = getattr(model, "model", None)
    hint = "; give .model of what was opened" if kind is None and kind_of(inner) is not None else ""
    hint = "; it is one of Stateform's own, in our forms already" if isinstance(model, SequenceModel) else hint
    require(kind is not None, f"{type(model).__name__} is no model of transformers; its config has no model_type{hint}")
    known = {name for names in FAMILIES.values() for name in names}
    own = any(type(m).__name__ in ADAPTERS and type(m).__name__ not in known for m in model.modules())
    require(kind in FAMILIES or own, no_adapter(kind))


def no_adapter(kind: str | None) -> str:
    """What to say of a type without adapters."""
    return (
        f"models of type {kind!r} have no adapter: {nearest(str(kind), FAMILIES)} "
        f"All types: {', '.join(FAMILIES)}; {HOW}"
    )


def mixers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that have an adapter, by name, in the model's order."""
    load_adapters()
    found = {name: m for name, m in model.named_modules() if type(m).__name__ in ADAPTERS}
    inner = {name for name in found if any(name.startswith(f"{other}.") for other in found)}
    return {name: m for name, m in found.items() if name not in inner}
