"""The mixers of flash-linear-attention (fla): GLA, DeltaNet, Gated DeltaNet, KDA, RetNet and RWKV-7.

They have as many heads of values as of keys; values may have any width. `norm_eps` is that of the library's models.
"""

from __future__ import annotations

from typing import Any

import torch

from .naming import NamedWeights, Ours, names

QKV = {f"{x}_proj.weight": f"{x}_proj.weight" for x in "qkv"}
CONVS = {f"{x}_conv.weight": f"{x}_conv1d.weight" for x in "qkv"}
OUT = {"out_proj.weight": "o_proj.weight"}
GATED_NORM = "g_norm_swish_gate.weight"


@names("fla.gla")
def gla(w: NamedWeights, gate_logit_normalizer: float = 16.0, norm_eps: float = 1e-5) -> Ours:
    """Read GatedLinearAttention, whose output has a gate."""
    (d_model, inner), n_heads = _widths(w), _heads(w, GATED_NORM)
    weights = w.renamed({
        **QKV, **OUT, "gate_proj.weight": "g_proj.weight", "norm.weight": GATED_NORM,
        **{f"decay_proj.{x}": f"gk_proj.{x}" for x in ("0.weight", "1.weight", "1.bias")},
    })  # fmt: skip
    options = {
        "n_heads": n_heads, "d_state": w.rows("q_proj.weight") // n_heads, "gate_rank": w.rows("gk_proj.0.weight"),
        "gate_temperature": gate_logit_normalizer,
    }  # fmt: skip
    return Ours("gla", options, weights, d_model, inner, norm_eps)


@names("fla.delta_net")
def delta_net(w: NamedWeights, allow_neg_eigval: bool = False, norm_eps: float = 1e-5) -> Ours:
    """Read DeltaNet with short convolutions, without a gate of its output."""
    return _delta(w, "deltanet", {}, norm_eps, allow_neg_eigval)


@names("fla.gated_deltanet")
def gated_deltanet(w: NamedWeights, allow_neg_eigval: bool = False, norm_eps: float = 1e-5) -> Ours:
    """Read GatedDeltaNet with short convolutions and a gate of its output."""
    more = {
        "a_proj.weight": "a_proj.weight",
        "A_log": "A_log",
        "dt_bias": "dt_bias",
        "gate_proj.weight": "g_proj.weight",
    }
    return _delta(w, "gated_deltanet", more, norm_eps, allow_neg_eigval)


@names("fla.kda")
def kda(
    w: NamedWeights, lower_bound: float | None = None, allow_neg_eigval: bool = False, norm_eps: float = 1e-5
) -> Ours:
    """Read KimiDeltaAttention; `lower_bound` is that of a safe gate."""
    more = {"A_log": "A_log", "dt_bias": "dt_bias"}
    more |= {f"a_proj.{i}.weight": f"f_proj.{i}.weight" for i in (0, 1)}
    more |= {f"gate_proj.{x}": f"g_proj.{x}" for x in ("0.weight", "1.weight", "1.bias")}
    rank = w.rows("f_proj.0.weight")
    return _delta(w, "kda", more, norm_eps, allow_neg_eigval, gate_rank=rank, least_log_decay=lower_bound)


def _delta(
    w: NamedWeights, name: str, more: dict[str, str], norm_eps: float, allow_neg_eigval: bool, **options: Any
) -> Ours:
    (d_model, inner), n_heads = _widths(w), w.rows("b_proj.weight")
    weights = w.renamed({
        **QKV, **CONVS, **OUT, "beta_proj.weight": "b_proj.weight", "norm.weight": "o_norm.weight", **more,
    })  # fmt: skip
    options |= {
        "n_heads": n_heads, "d_state": w.rows("q_proj.weight") // n_heads, "d_conv": w["q_conv1d.weight"].shape[-1],
        "allow_negative_eigenvalues": allow_neg_eigval,
    }  # fmt: skip
    return Ours(name, options, weights, d_model, inner, norm_eps)


@names("fla.retnet")
def retnet(w: NamedWeights, norm_eps: float = 1e-5) -> Ours:
    """Read MultiScaleRetention, whose output has a gate; the weights of its norm become part of the last map."""
    (d_model, inner), n_heads = _widths(w), _heads(w, GATED_NORM)
    weights = w.renamed({**QKV, **OUT, "gate_proj.weight": "g_proj.weight"})
    weights["out_proj.weight"] = weights["out_proj.weight"] * w[GATED_NORM].repeat(n_heads)
    options = {"n_heads": n_heads, "d_state": w.rows("q_proj.weight") // n_heads, "expand": inner // d_model}
    return Ours("retention", options, weights, d_model, norm_eps=norm_eps)


@names("fla.rwkv7")
def rwkv7(w: NamedWeights, norm_eps: float = 1e-5) -> Ours:
    """Read RWKV7Attention. The first layer of a model has no share of the values of an earlier one."""
    d_model, (n_heads, n) = w["r_proj.weight"].shape[-1], w["r_k"].shape
    maps = {"decay": "w_lora", "rate": "a_lora", "residual": "v_lora", "gate": "g_lora"}
    first = not any(name.startswith("v_lora") for name in w)
    weights = w.renamed({
        **{f"{x}_proj.weight": f"{x}_proj.weight" for x in "rkv"}, **OUT, "xi": "k_k", "alpha": "k_a", "rho": "r_k",
        "norm.weight": "g_norm.weight", "norm.bias": "g_norm.bias",
    })  # fmt: skip
    weights["mix"] = torch.stack([w[f"x_{x}"].flatten() for x in "rwkvag"])
    if first:
        none = weights["xi"]
        weights |= {"residual": torch.zeros_like(none), "residual_map.0.weight": torch.zeros_like(none)[None]}
        weights["residual_map.2.weight"] = torch.zeros_like(none)[:, None]
    for ours, theirs in maps.items():
        if not (first and ours == "residual"):
            weights |= {f"{ours}_map.{i}.weight": w[f"{theirs}.lora.{i}.weight"] for i in (0, 2)}
            if ours != "gate":
                weights["w" if ours == "decay" else ours] = w[f"{theirs}.lora.2.bias"]
    ranks = {"decay": "decay_rank", "rate": "rate_rank", "residual": "value_rank", "gate": "gate_rank"}
    options = {option: len(weights[f"{ours}_map.0.weight"]) for ours, option in ranks.items()}
    return Ours("rwkv7", {**options, "n_heads": n_heads, "norm_eps": n * norm_eps}, weights, d_model)


def _widths(w: NamedWeights) -> tuple[int, int]:
    """Find d_model, and the width of the values of all heads."""
    d_model, inner = w["o_proj.weight"].shape
    return d_model, inner


def _heads(w: NamedWeights, norm: str) -> int:
    """Count the heads, from the weights of the norm of one."""
    return w["o_proj.weight"].shape[-1] // w.rows(norm)
