"""Layers from weights under the names of other libraries, against loops over time written from their code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf
from stateform.hub import NAMINGS, read_layer
from stateform.hub.widen import widened
from tests.fixtures.foreign import small

T, D = 23, 12
ALLOWED = 1e-10
Weights = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Weights of these shapes in float64: matrices keep the variance of their input, vectors are near 0."""
    by = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=by, dtype=torch.float64)
        made[name] = x / math.sqrt(shape[-1]) if len(shape) == 2 else 0.3 * x
        if name.endswith(("norm.weight", "gate.weight")):
            made[name] = 1 + 0.3 * x
    return made


def inputs() -> Tensor:
    return torch.randn(2, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv(x: Tensor, taps: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu of the causal sums of x [B,T,c] over the taps [c,1,w]."""
    w = taps.shape[-1]
    padded = torch.cat([x.new_zeros(x.shape[0], w - 1, x.shape[2]), x], 1)
    y = sum(padded[:, i : i + x.shape[1]] * taps[:, 0, i] for i in range(w))
    return F.silu(y if bias is None else y + bias)


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def l2(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def by_head(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1))


def looped(step: Callable[[Tensor, int], tuple[Tensor, Tensor]], S: Tensor) -> Tensor:
    """Stack the outputs of `S, y = step(S, t)`."""
    out = []
    for t in range(T):
        S, y = step(S, t)
        out.append(y)
    return torch.stack(out, 1)


def same(layer: Any, want: Tensor) -> None:
    with torch.no_grad():
        got = layer(inputs())
        half, state = layer(inputs()[:, :9], return_state=True)
        rest = layer(inputs()[:, 9:], initial_state=state)
    assert float((got - want).abs().max() / want.abs().max()) < ALLOWED
    assert float((torch.cat([half, rest], 1) - want).abs().max() / want.abs().max()) < ALLOWED


# -- mamba_ssm ----------------------------------------------------------------------------------------------------


def mamba_weights(inner: int = 24, n: int = 5, rank: int = 3, taps: int = 4) -> Weights:
    return drawn({
        "in_proj.weight": (2 * inner, D), "conv1d.weight": (inner, 1, taps), "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * n, inner), "dt_proj.weight": (inner, rank), "dt_proj.bias": (inner,),
        "A_log": (inner, n), "D": (inner,), "out_proj.weight": (D, inner),
    })  # fmt: skip


def test_mamba() -> None:
    w, u = mamba_weights(), inputs()
    x, z = (u @ w["in_proj.weight"].T).chunk(2, -1)
    x = conv(x, w["conv1d.weight"], w["conv1d.bias"])
    dt, B, C = (x @ w["x_proj.weight"].T).split([3, 5, 5], -1)
    dt = F.softplus(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"])

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = torch.exp(-dt[:, t, :, None] * w["A_log"].exp()) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        return h, (h * C[:, t, None]).sum(-1) + w["D"] * x[:, t]

    want = looped(step, u.new_zeros(2, 24, 5)) * F.silu(z) @ w["out_proj.weight"].T
    prefix = "backbone.layers.0.mixer."
    model = {f"{prefix}{name}": x for name, x in w.items()} | {"lm_head.weight": u}
    same(read_layer(model, "mamba_ssm.mamba", prefix=prefix), want)


def test_mamba_is_that_of_mambapy() -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    w = mamba_weights(inner=24, n=5)
    block = mamba.MambaBlock(mamba.MambaConfig(d_model=D, n_layers=1, d_state=5, dt_rank=3)).double()
    block.load_state_dict(w)
    with torch.no_grad(), widened(torch.float64):  # it casts to float32 inside
        want = block(inputs())
    same(read_layer(w, "mamba_ssm.mamba"), want)


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups: int) -> None:
    inner, n, H = 24, 5, 4
    c = inner + 2 * groups * n
    w, u = drawn({
        "in_proj.weight": (inner + c + H, D), "conv1d.weight": (c, 1, 4), "conv1d.bias": (c,), "dt_bias": (H,),
        "A_log": (H,), "D": (H,), "norm.weight": (inner,), "out_proj.weight": (D, inner),
    }), inputs()  # fmt: skip
    z, x, dt = (u @ w["in_proj.weight"].T).split([inner, c, H], -1)
    x, B, C = conv(x, w["conv1d.weight"], w["conv1d.bias"]).split([inner, groups * n, groups * n], -1)
    x, B, C = by_head(x, H), *(by_head(y, groups).repeat_interleave(H // groups, 2) for y in (B, C))
    dt = F.softplus(dt + w["dt_bias"])

    def step(S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        a = torch.exp(-dt[:, t] * w["A_log"].exp())[..., None, None]
        S = a * S + dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None]
        return S, (S * C[:, t, :, None]).sum(-1) + w["D"][:, None] * x[:, t]

    y = looped(step, u.new_zeros(2, H, inner // H, n)).flatten(2) * F.silu(z)
    y = by_head(y, groups) / torch.sqrt(by_head(y, groups).square().mean(-1, keepdim=True) + 1e-5)
    same(read_layer(w, "mamba_ssm.mamba2", ngroups=groups), y.flatten(2) * w["norm.weight"] @ w["out_proj.weight"].T)


def saved(folder: Path, kind: str, **config: Any) -> Any:
    """A small model of transformers, and its weights in a folder as mamba_ssm has them."""
    pytest.importorskip("transformers")
    save_file = pytest.importorskip("safetensors.torch").save_file
    net = small(kind, **({"n_groups": 1} if kind == "mamba2" else {}))
    weights = {name.replace("embeddings", "embedding"): x.clone() for name, x in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    layer = {"layer": "Mamba2", "headdim": 16} if kind == "mamba2" else {}
    values = {"d_model": 32, "n_layer": 2, "vocab_size": 64, "ssm_cfg": layer, "rms_norm": True, **config}
    (folder / "config.json").write_text(json.dumps(values))
    return net


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_language_model_of_mamba_ssm(kind: str, tmp_path: Path) -> None:
    net, text = saved(tmp_path, kind), torch.arange(1, 30)[None]
    opened = sf.open_model(tmp_path, dtype="float64", tokenizer="bytes")
    assert isinstance(opened.model, sf.LanguageModel) and opened.tokenizer == "bytes"
    with torch.no_grad(), widened(torch.float64):
        want = net.double()(text).logits
    with torch.no_grad():
        got = opened.model(text).logits
    assert float((got - want).abs().max() / want.abs().max()) < ALLOWED
    opened.model.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(sf.open_model(tmp_path / "ours").model(text).logits, got)


@pytest.mark.parametrize(
    ("config", "said"),
    [({"n_layer": 1}, "more than its 1 layers: backbone.layers.1"), ({"attn_layer_idx": [1]}, "attention or an MLP"),
     ({"ssm_cfg": {"layer": "Mamba3"}}, "layers 'Mamba3'; expected Mamba1 or Mamba2"), ({"rms_norm": False}, "mean"),
     ({"ssm_cfg": {"dt_limit": [0.0, 1.0]}}, "sets dt_limit"), ({"n_layer": 3}, "no weight begins with")],
)  # fmt: skip
def test_other_models_of_mamba_ssm_are_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path, "mamba", **config)
    with pytest.raises(sf.StateformError, match=said):
        sf.open_model(tmp_path)


# -- fla ----------------------------------------------------------------------------------------------------------


def maps(H: int, n: int, p: int, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    keys, values = H * n, H * p
    return {
        "q_proj.weight": (keys, D), "k_proj.weight": (keys, D), "v_proj.weight": (values, D),
        "o_proj.weight": (D, values), **{name.replace("__", "."): shape for name, shape in more.items()},
    }  # fmt: skip


def convolved(w: Weights, H: int) -> list[Tensor]:
    return [by_head(conv(inputs() @ w[f"{x}_proj.weight"].T, w[f"{x}_conv1d.weight"]), H) for x in "qkv"]


def delta_step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, a: Tensor) -> Callable[[Tensor, int], Any]:
    """S <- a S, then the delta rule; a [B,T,H,n or 1]."""
    q, k = l2(q) * q.shape[-1] ** -0.5, l2(k)

    def step(S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        S = a[:, t, ..., None] * S
        old = (S * k[:, t, ..., None]).sum(-2)
        S = S + k[:, t, ..., None] * (beta[:, t, :, None] * (v[:, t] - old))[..., None, :]
        return S, (S * q[:, t, ..., None]).sum(-2)

    return step


@pytest.mark.parametrize("p", [4, 6, 3])
def test_gla(p: int) -> None:
    H, n = 3, 2
    w, u = drawn(maps(H, n, p, g_proj__weight=(H * p, D), gk_proj__0__weight=(5, D), gk_proj__1__weight=(H * n, 5),
                      gk_proj__1__bias=(H * n,), g_norm_swish_gate__weight=(p,))), inputs()  # fmt: skip
    q, k, v = (by_head(u @ w[f"{x}_proj.weight"].T, H) for x in "qkv")
    a = by_head(u @ w["gk_proj.0.weight"].T @ w["gk_proj.1.weight"].T + w["gk_proj.1.bias"], H).sigmoid() ** (1 / 16)

    def step(S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        S = a[:, t, ..., None] * S + k[:, t, ..., None] * v[:, t, ..., None, :]
        return S, (S * q[:, t, ..., None]).sum(-2) * n**-0.5

    y = rms(looped(step, u.new_zeros(2, H, n, p)), w["g_norm_swish_gate.weight"]).flatten(2)
    same(read_layer(w, "fla.gla"), y * F.silu(u @ w["g_proj.weight"].T) @ w["o_proj.weight"].T)


@pytest.mark.parametrize("naming", ["fla.delta_net", "fla.gated_deltanet", "fla.kda"])
@pytest.mark.parametrize(("H", "n", "p"), [(3, 2, 4), (2, 4, 10), (5, 2, 3)])
def test_delta_rules(naming: str, H: int, n: int, p: int) -> None:
    """The widths of all values are 12, as d_model, then 20 and 15."""
    shapes = maps(H, n, p, b_proj__weight=(H, D), o_norm__weight=(p,), q_conv1d__weight=(H * n, 1, 4),
                  k_conv1d__weight=(H * n, 1, 4), v_conv1d__weight=(H * p, 1, 4))  # fmt: skip
    if naming == "fla.gated_deltanet":
        shapes |= {"a_proj.weight": (H, D), "A_log": (H,), "dt_bias": (H,), "g_proj.weight": (H * p, D)}
    if naming == "fla.kda":
        shapes |= {"f_proj.0.weight": (p, D), "f_proj.1.weight": (H * n, p), "A_log": (H,), "dt_bias": (H * n,)}
        shapes |= {"g_proj.0.weight": (p, D), "g_proj.1.weight": (H * p, p), "g_proj.1.bias": (H * p,)}
    w, u = drawn(shapes), inputs()
    a, gate = torch.ones(1, T, 1, 1, dtype=torch.float64).expand(2, T, H, 1), torch.ones(1, 1, 1, dtype=torch.float64)
    if naming == "fla.gated_deltanet":
        a = torch.exp(-w["A_log"].exp() * F.softplus(u @ w["a_proj.weight"].T + w["dt_bias"]))[..., None]
        gate = F.silu(u @ w["g_proj.weight"].T)
    if naming == "fla.kda":
        x = by_head(u @ w["f_proj.0.weight"].T @ w["f_proj.1.weight"].T + w["dt_bias"], H)
        a = torch.exp(-w["A_log"].exp()[:, None] * F.softplus(x))
        gate = torch.sigmoid(u @ w["g_proj.0.weight"].T @ w["g_proj.1.weight"].T + w["g_proj.1.bias"])
    beta = torch.sigmoid(u @ w["b_proj.weight"].T)
    for twice in (False, True):
        step = delta_step(*convolved(w, H), beta * (1 + twice), a)
        y = rms(looped(step, u.new_zeros(2, H, n, p)), w["o_norm.weight"]).flatten(2)
        same(read_layer(w, naming, allow_neg_eigval=twice), y * gate @ w["o_proj.weight"].T)


def test_kda_with_a_safe_gate() -> None:
    H, n = 3, 4
    w = drawn(maps(H, n, n, b_proj__weight=(H, D), o_norm__weight=(n,), q_conv1d__weight=(D, 1, 4),
                   k_conv1d__weight=(D, 1, 4), v_conv1d__weight=(D, 1, 4), f_proj__0__weight=(n, D),
                   f_proj__1__weight=(D, n), A_log=(H,), dt_bias=(D,), g_proj__0__weight=(n, D),
                   g_proj__1__weight=(D, n), g_proj__1__bias=(D,)))  # fmt: skip
    u = inputs()
    x = by_head(u @ w["f_proj.0.weight"].T @ w["f_proj.1.weight"].T + w["dt_bias"], H)
    a = torch.exp(-5.0 * torch.sigmoid(w["A_log"].exp()[:, None] * x))
    step = delta_step(*convolved(w, H), torch.sigmoid(u @ w["b_proj.weight"].T), a)
    gate = torch.sigmoid(u @ w["g_proj.0.weight"].T @ w["g_proj.1.weight"].T + w["g_proj.1.bias"])
    y = rms(looped(step, u.new_zeros(2, H, n, n)), w["o_norm.weight"]).flatten(2)
    same(read_layer(w, "fla.kda", lower_bound=-5.0), y * gate @ w["o_proj.weight"].T)


def test_retnet() -> None:
    H, n, p = 3, 4, 8
    w, u = drawn(maps(H, n, p, g_proj__weight=(H * p, D), g_norm_swish_gate__weight=(p,))), inputs()
    q, k, v = (by_head(u @ w[f"{x}_proj.weight"].T, H) for x in "qkv")
    angle = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k, gamma = turn(q), turn(k), 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))

    def step(S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        S = gamma[:, None, None] * S + k[:, t, ..., None] * v[:, t, ..., None, :]
        return S, (S * q[:, t, ..., None]).sum(-2) * n**-0.5

    y = rms(looped(step, u.new_zeros(2, H, n, p)), w["g_norm_swish_gate.weight"]).flatten(2)
    same(read_layer(w, "fla.retnet"), y * F.silu(u @ w["g_proj.weight"].T) @ w["o_proj.weight"].T)


@pytest.mark.parametrize("first", [True, False])
def test_rwkv7(first: bool) -> None:
    H, n = 3, 4
    shapes: dict[str, tuple[int, ...]] = {f"x_{x}": (1, 1, D) for x in "rwkvag"}
    shapes |= {"k_k": (D,), "k_a": (D,), "r_k": (H, n), "g_norm.weight": (D,), "g_norm.bias": (D,)}
    shapes |= {f"{x}_proj.weight": (D, D) for x in "rkvo"}
    for lora, rank in (("w", 2), ("a", 3), ("g", 5), *(() if first else (("v", 4),))):
        shapes |= {f"{lora}_lora.lora.0.weight": (rank, D), f"{lora}_lora.lora.2.weight": (D, rank)}
        shapes |= {} if lora == "g" else {f"{lora}_lora.lora.2.bias": (D,)}
    w, u = drawn(shapes), inputs()
    before = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], 1)
    at = {x: u + (before - u) * w[f"x_{x}"] for x in "rwkvag"}

    def low(x: str, act: Callable[[Tensor], Tensor] = lambda y: y) -> Tensor:
        y = act(at[x] @ w[f"{x}_lora.lora.0.weight"].T) @ w[f"{x}_lora.lora.2.weight"].T
        return y + w.get(f"{x}_lora.lora.2.bias", 0.0)

    r, k, v = (at[x] @ w[f"{x}_proj.weight"].T for x in "rkv")
    v_first = 0.5 * u
    v = v if first else torch.lerp(v, v_first, low("v").sigmoid())
    a, decay, g = (
        low("a").sigmoid(),
        torch.exp(-math.exp(-0.5) * low("w", torch.tanh).sigmoid()),
        low("g", torch.sigmoid),
    )
    kk = F.normalize(by_head(k * w["k_k"], H), dim=-1)
    k = k * (1 + (a - 1) * w["k_a"])
    r, k, v, a, decay = (by_head(x, H) for x in (r, k, v, a, decay))

    def step(S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        gone = (S * kk[:, t, ..., None]).sum(-2, keepdim=True)
        S = decay[:, t, ..., None] * S - (kk * a)[:, t, ..., None] * gone + k[:, t, ..., None] * v[:, t, ..., None, :]
        return S, (S * r[:, t, ..., None]).sum(-2)

    y = looped(step, u.new_zeros(2, H, n, n)).flatten(2)
    y = F.group_norm(y.flatten(0, 1), H, w["g_norm.weight"], w["g_norm.bias"], eps=n * 1e-5).unflatten(0, (2, T))
    y = y + ((r * k * w["r_k"]).sum(-1, keepdim=True) * v).flatten(2)
    layer = read_layer(w, "fla.rwkv7")
    want = y * g @ w["o_proj.weight"].T
    if first:
        same(layer, want)
        return
    with torch.no_grad():
        got = layer(u, shared={"v_first": v_first})
    assert float((got - want).abs().max() / want.abs().max()) < ALLOWED


# -- S4 -----------------------------------------------------------------------------------------------------------


def s4_weights(n: int, ssms: int) -> Weights:
    w = drawn({
        "layer.D": (1, D), "layer.kernel.C": (1, D, n, 2), "layer.kernel.B": (1, ssms, n, 2),
        "layer.kernel.P": (1, ssms, n, 2), "layer.kernel.A_real": (ssms, n), "layer.kernel.A_imag": (ssms, n),
        "layer.kernel.inv_dt": (D, 1), "output_linear.0.weight": (2 * D, D), "output_linear.0.bias": (2 * D,),
    })  # fmt: skip
    w["layer.kernel.A_imag"] = w["layer.kernel.A_imag"].abs() * 10
    w["layer.kernel.inv_dt"] -= 2
    return w | {"layer.kernel.l_kernel": torch.tensor(0)}


def convolution(kernel: Tensor, w: Weights, D_: Tensor) -> Tensor:
    """The block around a kernel [channels,T]."""
    u = inputs()
    y = torch.stack([(u[:, : t + 1] * kernel[:, : t + 1].flip(1).T).sum(1) for t in range(T)], 1) + u * D_
    out = F.gelu(y) @ w["output_linear.0.weight"].squeeze(-1).T + w["output_linear.0.bias"]
    return out[..., :D] * torch.sigmoid(out[..., D:])


def both(x: Tensor) -> Tensor:
    x = torch.view_as_complex(x)
    return torch.cat([x, x.conj()], -1).expand(*x.shape[:-2], D, -1)


@pytest.mark.parametrize("ssms", [1, D])
@pytest.mark.parametrize("cut", [0, 32])
def test_s4(ssms: int, cut: int) -> None:
    """Dense matrices of both conjugate halves; a kernel that was set up for 32 tokens holds C (I - A^32)."""
    w = s4_weights(3, ssms)
    B, P, C = both(w["layer.kernel.B"])[0], both(w["layer.kernel.P"])[0], both(w["layer.kernel.C"])[0]
    half = -torch.complex(w["layer.kernel.A_real"].exp(), w["layer.kernel.A_imag"])
    A = torch.cat([half, half.conj()], -1).expand(D, -1)
    A = torch.diag_embed(A) - P[:, :, None] * P[:, None].conj()
    dt, eye = w["layer.kernel.inv_dt"].exp()[..., None], torch.eye(6, dtype=A.dtype)
    inverse = torch.linalg.inv(eye - dt / 2 * A)
    dA, dB = inverse @ (eye + dt / 2 * A), (inverse @ (dt * B[..., None]))[..., 0]
    powers = torch.stack([torch.linalg.matrix_power(dA, t) for t in range(T)], 1)  # [channels,T,n,n]
    kernel = torch.einsum("hm,htmn,hn->ht", C, powers, dB).real
    if cut:
        kept = C - torch.einsum("hm,hmn->hn", C, torch.linalg.matrix_power(dA, cut))
        w["layer.kernel.C"] = torch.view_as_real(kept[None, :, :3].contiguous())
        w["layer.kernel.l_kernel"] = torch.tensor(cut)
    same(read_layer(w, "s4.s4"), convolution(kernel, w, w["layer.D"][0]))


def test_diagonal_s4() -> None:
    w = s4_weights(3, 1)
    del w["layer.kernel.P"], w["layer.kernel.l_kernel"]
    C, B = (torch.view_as_complex(w[f"layer.kernel.{x}"])[0] for x in "CB")
    A = -torch.complex(w["layer.kernel.A_real"].exp(), w["layer.kernel.A_imag"])
    dt = w["layer.kernel.inv_dt"].exp()
    gain = B * C * (torch.exp(dt * A) - 1) / A
    kernel = 2 * (gain[..., None] * torch.exp((dt * A)[..., None] * torch.arange(T))).sum(1).real
    same(read_layer(w, "s4.diagonal"), convolution(kernel, w, w["layer.D"][0]))


def test_minimal_s4d() -> None:
    w = drawn({
        "D": (D,), "kernel.C": (D, 3, 2), "kernel.log_dt": (D,), "kernel.log_A_real": (D, 3), "kernel.A_imag": (D, 3),
        "output_linear.0.weight": (2 * D, D, 1), "output_linear.0.bias": (2 * D,),
    })  # fmt: skip
    A, dt = torch.complex(-w["kernel.log_A_real"].exp(), w["kernel.A_imag"]), w["kernel.log_dt"].exp()[:, None]
    gain = torch.view_as_complex(w["kernel.C"]) * (torch.exp(dt * A) - 1) / A
    kernel = 2 * (gain[..., None] * torch.exp((dt * A)[..., None] * torch.arange(T))).sum(1).real
    same(read_layer(w, "s4.s4d"), convolution(kernel, w, w["D"]))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_what_does_not_match_is_named() -> None:
    w = mamba_weights()
    lacking = {name: x for name, x in w.items() if name != "dt_proj.bias"}
    wrong = {**w, "dt_proj.bias": w["dt_proj.bias"][:-1]}
    tensors: Any = {"in_proj.weight": 1}
    for given, options, said in (
        (w, {"naming": "mamba_ssm.mamba3"}, "no naming 'mamba_ssm.mamba3'; did you mean"),
        (w, {"ngroups": 2}, r"mamba_ssm.mamba has no setting \['ngroups'\]; expected none"),
        (w, {"prefix": "layers."}, "no weight begins with 'layers.'; there are in_proj.weight"),
        (tensors, {}, "no mapping from names to tensors"),
        (lacking, {}, "the mamba_ssm.mamba weights has no weight 'dt_proj.bias'"),
        (wrong, {}, r"dt_proj.bias is \[23\], expected \[24\]"),
        (w | {"in_proj.bias": w["D"]}, {}, "our mamba has nothing like in_proj.bias .* another function"),
        (w, {"naming": "fla.gla"}, "the fla.gla weights has no weight 'o_proj.weight'"),
        (s4_weights(3, 1) | {"layer.kernel.P": torch.zeros(2, 1, 3, 2)}, {"naming": "s4.s4"}, "has rank 2"),
        (s4_weights(3, 1) | {"layer.kernel.inv_dt": torch.zeros(D, 3)}, {"naming": "s4.s4"}, "3 steps for each"),
    ):  # fmt: skip
        call: dict[str, Any] = {"naming": "mamba_ssm.mamba", **options}
        with pytest.raises(sf.StateformError, match=said):
            read_layer(given, **call)


def test_the_widest_dtype_is_that_of_the_layer() -> None:
    w = {name: x.float() if name == "A_log" else x.bfloat16() for name, x in mamba_weights().items()}
    assert {p.dtype for p in read_layer(w, "mamba_ssm.mamba").parameters()} == {torch.float32}


def test_every_naming_is_tested_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in text for name in NAMINGS)
