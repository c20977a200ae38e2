"""The mixers of mamba_ssm: Mamba and Mamba-2. Their maps lie in one matrix, `in_proj`."""

from __future__ import annotations

from .naming import NamedWeights, Ours, names

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
