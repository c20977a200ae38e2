"""The mixers of mamba_ssm, Mamba and Mamba-2, whose maps lie in one matrix, `in_proj`; and its language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import require
from ...models import LanguageModel, ModelConfig
from ..formats.weights import FileWeights, filled
from .naming import NamedWeights, Ours, in_one_dtype, names, read_weights

LAYERS = {"Mamba1": "mamba_ssm.mamba", "Mamba2": "mamba_ssm.mamba2"}
"""Namings by the name of a layer in `ssm_cfg`."""
SHOWN = {
    "layer", "ngroups", "d_state", "d_conv", "expand", "headdim", "dt_rank", "chunk_size", "bias", "conv_bias",
    "conv_init", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "use_fast_path",
    "use_mem_eff_path",
}  # fmt: skip
"""Settings of `ssm_cfg` that are read, that weights show, or that say how weights began."""

SAME = ("dt_bias", "A_log", "D", "out_proj.weight")
CONV = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias"}


@names("mamba_ssm.mamba")
def mamba(w: NamedWeights) -> Ours:
    """Read Mamba: `in_proj` is [x, z]."""
    into, A, taps = w["in_proj.weight"], w["A_log"], w["conv1d.weight"]
    d_model, inner = into.shape[-1], A.shape[0]
    x, z = into.split([inner, len(into) - inner])
    same = ("x_proj.weight", "dt_proj.weight", "dt_proj.bias", *SAME[1:])
    weights = {"in_proj.weight": x, "gate_proj.weight": z, **w.renamed(CONV), **{name: w[name] for name in same}}
    options = {
        "d_state": A.shape[-1], "d_conv": taps.shape[-1], "expand": inner // d_model,
        "dt_rank": w["dt_proj.weight"].shape[-1],
    }  # fmt: skip
    return Ours("mamba", options, weights, d_model)


@names("mamba_ssm.mamba2")
def mamba2(w: NamedWeights, ngroups: int = 1) -> Ours:
    """Read Mamba-2: `in_proj` is [z, x, B, C, dt]."""
    into, taps = w["in_proj.weight"], w["conv1d.weight"]
    (d_model, inner), n_heads = w["out_proj.weight"].shape, w.rows("A_log")
    z, xBC, dt = into.split([inner, len(into) - inner - n_heads, n_heads])
    weights = {
        "in_proj.weight": xBC, "gate_proj.weight": z, "dt_proj.weight": dt, "norm.weight": w["norm.weight"],
        **w.renamed(CONV), **{name: w[name] for name in SAME},
    }  # fmt: skip
    options = {
        "d_state": (len(xBC) - inner) // (2 * ngroups), "d_conv": taps.shape[-1], "expand": inner // d_model,
        "d_head": inner // n_heads, "n_groups": ngroups,
    }  # fmt: skip
    return Ours("mamba2", options, weights, d_model)


def describes_model(config: Mapping[str, Any]) -> bool:
    """True if it is the configuration of a language model of mamba_ssm, which has no type of model."""
    return "model_type" not in config and {"d_model", "n_layer", "ssm_cfg"} <= config.keys()


def language_model(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> LanguageModel:
    """Make the language model of a checkpoint of mamba_ssm.

    Args:
        config: its config.json.
        weights: its weights.
        source: its folder, for errors.

    Raises:
        StateformError: attention or an MLP between its layers, norms that subtract a mean, a setting that our layers do
            not have; weights that are missing, left over, or do not fit.
    """
    cfg = dict(config["ssm_cfg"] or {})
    naming = LAYERS.get(cfg.get("layer", "Mamba1"))
    require(naming is not None, f"{source} has layers {cfg.get('layer')!r}; expected {' or '.join(LAYERS)}")
    strange = sorted(cfg.keys() - SHOWN)
    require(not strange, f"{source} sets {', '.join(strange)} in ssm_cfg, which our layers do not have")
    plain = not (config.get("attn_layer_idx") or config.get("d_intermediate"))
    require(plain, f"{source} has attention or an MLP between its layers, which is not read")
    require(config.get("rms_norm", True), f"{source} has norms that subtract the mean (rms_norm: false)")
    w, count = FileWeights(source, weights), int(config["n_layer"])
    made = {"embedding.weight": w["backbone.embedding.weight"], "norm.weight": w["backbone.norm_f.weight"]}
    used = {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"}
    settings = {"ngroups": cfg["ngroups"]} if "ngroups" in cfg else {}
    for i in range(count):
        prefix = f"backbone.layers.{i}."
        ours, _ = read_weights(weights, str(naming), prefix=f"{prefix}mixer.", **settings)
        made |= {f"blocks.{i}.mixer.{name}": x for name, x in ours.weights.items()}
        made[f"blocks.{i}.mixer_norm.weight"] = w[f"{prefix}norm.weight"]
        used |= {name for name in w if name.startswith((f"{prefix}mixer.", f"{prefix}norm.weight"))}
    rest = sorted(w.keys() - used)
    require(not rest, f"{source} has weights of more than its {count} layers: {', '.join(rest[:3])}")
    head = weights.get("lm_head.weight", made["embedding.weight"])
    tied = bool(torch.equal(head, made["embedding.weight"]))
    made |= {} if tied else {"head.weight": head}
    vocabulary, d_model = made["embedding.weight"].shape
    ours_config = ModelConfig(
        f"{ours.name}*{count}", d_model=d_model, vocab_size=vocabulary, mlp_ratio=None, tie_embeddings=tied,
        norm_eps=1e-5, options=ours.options,
    )  # fmt: skip
    with torch.device("meta"):
        model = LanguageModel(ours_config)
    return filled(model, in_one_dtype(made), source)
