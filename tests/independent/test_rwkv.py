"""RWKV 4 to 7: transformers' module, the equations of the papers, recorded logits, and a model that reverses digits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

import stateform as sf

from .helpers import (
    EXACT,
    RECORDED,
    Double,
    assert_close,
    assert_same_function,
    assert_same_gradient,
    drawn,
    inputs,
    join_heads,
    numbers,
    recorded,
    sigmoid,
    silu,
    split_heads,
)

# -- version 4 ----------------------------------------------------------------------------------------------------


def transformers_rwkv4(layer: Any) -> RwkvSelfAttention:
    """transformers' RWKV attention with the weights of our layer."""
    module = RwkvSelfAttention(RwkvConfig(hidden_size=layer.d_model, num_hidden_layers=2)).double()
    module.load_state_dict({
        "time_decay": layer.log_w, "time_first": layer.bonus,
        "time_mix_receptance": 1 - layer.mix[0].view(1, 1, -1), "time_mix_key": 1 - layer.mix[1].view(1, 1, -1),
        "time_mix_value": 1 - layer.mix[2].view(1, 1, -1), "receptance.weight": layer.r_proj.weight,
        "key.weight": layer.k_proj.weight, "value.weight": layer.v_proj.weight, "output.weight": layer.out_proj.weight,
    })  # fmt: skip
    return module


def true_state(state: sf.State) -> Tensor:
    """Numerator and denominator [B,H,2] without their common scale."""
    return state["S"].squeeze(-2) * state["log_scale"].exp().unsqueeze(-1)


def test_rwkv4_is_transformers() -> None:
    layer, x = drawn("rwkv4", d_model=12), inputs(2, 40, 12)
    module = transformers_rwkv4(layer)
    state = [torch.zeros(2, 12, 2, dtype=torch.float64) for _ in range(5)]
    state[4] -= 1e30
    with torch.no_grad(), Double():
        y, (_, last, numerator, denominator, scale) = module(x, state=state, use_cache=True)
    final = torch.stack([numerator, denominator], -1)[:, :, 0] * scale[:, :, :1].exp()
    assert_same_function(layer, x, y, true_state, final)
    assert_same_function(layer, x, y, lambda s: s["shift"][:, 0], last[:, :, 0])

    def published(u: Tensor) -> Tensor:
        with Double():
            return module(u)[0]

    assert_same_gradient(layer, published, x)


def test_rwkv4_stays_finite_where_its_exponentials_do_not() -> None:
    """Keys from -60 to 60, and at first from one to the other: e^120 is no float32, the average still is one."""
    layer, x = drawn("rwkv4", d_model=12), inputs(2, 40, 12)
    x[:, 0], x[:, 1] = 10 * x[:, 0], -10 * x[:, 0]
    with torch.no_grad():
        layer.mix.zero_()
        layer.k_proj.weight *= 60 / layer.k_proj(x).abs().max()
        want = layer(x, form="recurrent")
        for form, why_not in layer.system(x).forms().items():
            if why_not is None:
                assert_close(layer.float()(x.float(), form=form), want.float(), f"float32, {form}", 1e-4)
                layer.double()


# -- versions 5 and 6 ---------------------------------------------------------------------------------------------


def shifted(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1)


def normalised_heads(y: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y [B,H,T,p], each head to mean 0 and variance 1; [B,T,H*p]."""
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 64e-5)
    return join_heads(y) * weight + bias


def rwkv6_equations(layer: Any, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eagle and Finch as their paper has them, token by token: output [B,T,d] and final state [B,H,n,p]."""
    w, H = numbers(layer), layer.n_heads
    before = shifted(u)
    names = "rkv" + "g" * ("gate_proj.weight" in w) + "w" * (layer.decay == "token")
    at = {name: u + (before - u) * mu for name, mu in zip(names, w["mix"], strict=True)}
    decay = np.exp(-np.exp(w["w"]))[None, :, None] * np.ones((*u.shape[:2], 1, 1)).swapaxes(1, 2)
    if layer.decay == "token":
        x = u + (before - u) * w["mix_base"][0]
        for i, name in enumerate(at):
            lora = np.tanh(x @ w["mix_down"][i]) @ w["mix_up"][i]
            at[name] = u + (before - u) * (w["mix"][i] + lora)
        lora = np.tanh(at["w"] @ w["decay_map.0.weight"].T) @ w["decay_map.2.weight"].T
        decay = np.exp(-np.exp(split_heads(w["w"].reshape(-1) + lora, H)))
    r, k, v = (split_heads(at[name] @ w[f"{name}_proj.weight"].T, H) for name in "rkv")
    S, y = np.zeros((len(u), H, k.shape[-1], v.shape[-1])), np.zeros_like(v)
    for t in range(u.shape[1]):
        write = k[:, :, t, :, None] * v[:, :, t, None, :]
        y[:, :, t] = np.einsum("bhn,bhnp->bhp", r[:, :, t], S + w["bonus"][None, :, :, None] * write)
        S = decay[:, :, t, :, None] * S + write
    out = normalised_heads(y, w["norm.weight"], w["norm.bias"])
    if "gate_proj.weight" in w:
        out = out * silu(at["g"] @ w["gate_proj.weight"].T)
    return out @ w["out_proj.weight"].T, S


@pytest.mark.parametrize("options", [{}, {"decay": "channel"}, {"decay": "head", "gate": False}, {"gate": False}])
def test_rwkv5_and_6_are_the_papers_equations(options: dict[str, Any]) -> None:
    layer, x = drawn("rwkv6", d_model=12, n_heads=3, **options), inputs(2, 40, 12)
    y, final = rwkv6_equations(layer, x.numpy())
    assert_same_function(layer, x, y, lambda s: s["S"], final)


def test_rwkv6_starts_with_the_published_decays() -> None:
    """The first layer of the published models: w = -6 + 5 (i / (d - 1))^0.7, a bonus of 0, 0.1, -0.1, ..."""
    layer = sf.build("rwkv6", d_model=64, n_heads=2)
    want = [-6 + 5 * (i / 63) ** 0.7 for i in range(64)]
    assert_close(layer.w.flatten(), torch.tensor(want), "w", 1e-6)
    assert_close(layer.bonus.flatten()[:6], torch.tensor([0.0, 0.1, -0.1, 0.0, 0.1, -0.1]), "bonus", 1e-6)


# -- version 7 ----------------------------------------------------------------------------------------------------


def rwkv7_equations(layer: Any, u: np.ndarray, v_first: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Goose as its paper has it, with states of p rows and n columns: output, final state transposed, and its own v."""
    w, H = numbers(layer), layer.n_heads
    before = shifted(u)
    at_r, at_w, at_k, at_v, at_a, at_g = (u + (before - u) * mu for mu in w["mix"])

    def lora(name: str, x: np.ndarray, act: Any = lambda z: z) -> np.ndarray:
        return act(x @ w[f"{name}_map.0.weight"].T) @ w[f"{name}_map.2.weight"].T

    k, own = at_k @ w["k_proj.weight"].T, at_v @ w["v_proj.weight"].T
    v = own if v_first is None else own + (v_first - own) * sigmoid(w["residual"] + lora("residual", at_v))
    a = sigmoid(w["rate"] + lora("rate", at_a))
    # d = w0 + lora; log(-log decay) = -softplus(-d) - 1/2, as the original has it.
    decay = np.exp(-np.exp(-np.log1p(np.exp(-(w["w"] + lora("decay", at_w, np.tanh)))) - 0.5))
    kappa = split_heads(k * w["xi"], H)
    kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
    k = k * (1 + (a - 1) * w["alpha"])
    r, k, v, a, decay = (split_heads(x, H) for x in (at_r @ w["r_proj.weight"].T, k, v, a, decay))
    S, y = np.zeros((len(u), H, v.shape[-1], k.shape[-1])), np.zeros_like(v)
    for t in range(u.shape[1]):
        erased = np.einsum("bhpn,bhn->bhp", S, kappa[:, :, t])
        S = S * decay[:, :, t, None, :] - erased[..., None] * (a * kappa)[:, :, t, None, :]
        S = S + v[:, :, t, :, None] * k[:, :, t, None, :]
        y[:, :, t] = np.einsum("bhpn,bhn->bhp", S, r[:, :, t])
    out = normalised_heads(y, w["norm.weight"], w["norm.bias"])
    out = out + join_heads((r * k * w["rho"][None, :, None]).sum(-1, keepdims=True) * v)
    return (out * lora("gate", at_g, sigmoid)) @ w["out_proj.weight"].T, S.swapaxes(-1, -2), own


def test_rwkv7_is_the_papers_equations() -> None:
    layer, x = drawn("rwkv7", d_model=12, n_heads=3), inputs(2, 40, 12)
    y, final, _ = rwkv7_equations(layer, x.numpy())
    assert_same_function(layer, x, y, lambda s: s["S"], final)


def test_rwkv7_starts_with_the_published_decays() -> None:
    """The first layer of the published models, channel by channel."""
    d, n = 64, 32
    layer = sf.build("rwkv7", d_model=d, n_heads=d // n)
    w, rate, residual, xi = [], [], [], []
    for i in range(d):
        z = ((i % n) - (n - 1) / 2) / ((n - 1) / 2)
        linear, z = i / (d - 1) - 0.5, z * abs(z)
        w.append(-6 + 6 * i / (d - 1) + 0.5 + 2.5 * z)
        rate.append(-0.19 + 0.3 * z + 0.4 * linear)
        residual.append(0.73 - 0.4 * linear)
        xi.append(0.71 - 0.1 * linear)
    for name, want in {"w": w, "rate": rate, "residual": residual, "xi": xi}.items():
        assert_close(getattr(layer, name), torch.tensor(want), name, 1e-6)


# -- the values that the layers of a model hand on ----------------------------------------------------------------


@pytest.fixture
def stack() -> list[Any]:
    return [drawn("rwkv7", seed=i, d_model=12, n_heads=3) for i in range(3)]


def through(stack: list[Any], x: Tensor, states: list[sf.State] | None = None, **how: Any) -> tuple[Tensor, list[Any]]:
    """All layers one after the other, in one call of a model."""
    shared: dict[str, Tensor] = {}
    new = []
    for i, layer in enumerate(stack):
        start = None if states is None else states[i]
        x, state = layer(x, shared=shared, initial_state=start, return_state=True, **how)
        new.append(state)
    assert list(shared) == ["v_first"]
    return x, new


@torch.no_grad()
def test_layers_hand_on_the_first_values(stack: list[Any]) -> None:
    x = inputs(2, 30, 12)
    want, _, v_first = rwkv7_equations(stack[0], x.numpy())
    for layer in stack[1:]:
        want, _, _ = rwkv7_equations(layer, want, v_first)
    got, _ = through(stack, x)
    assert_close(got, want, "three layers")
    alone = x
    for layer in stack:
        alone = layer(alone)
    assert float((alone - got).abs().max()) > 0.1 * float(got.abs().max()), "v_first changes nothing"


@torch.no_grad()
def test_first_values_in_pieces_and_steps(stack: list[Any]) -> None:
    x = inputs(2, 30, 12)
    want, end = through(stack, x)
    for width in (1, 11):
        states, got = [layer.init_state(2) for layer in stack], []
        for piece in x.split(width, 1):
            y, states = through(stack, piece, states)
            got.append(y)
        assert_close(torch.cat(got, 1), want, f"pieces of {width}")
        for a, b in zip(states, end, strict=True):
            assert_close(a["S"], b["S"], f"state after pieces of {width}")


@torch.no_grad()
def test_first_values_packed_and_padded(stack: list[Any]) -> None:
    ends = [0, 7, 7, 20, 30]
    x = inputs(1, 30, 12)
    packed, states = through(stack, x, cu_seqlens=torch.tensor(ends))
    mask, rows = torch.zeros(4, 15), torch.full((4, 15, 12), math.nan, dtype=torch.float64)
    places = [slice(0, 7), slice(0, 0), slice(2, 15), slice(1, 11)]
    for i, place in enumerate(places):
        mask[i, place] = 1
        rows[i, place] = x[0, ends[i] : ends[i + 1]]
    padded, padded_states = through(stack, rows, attention_mask=mask)
    for i, place in enumerate(places):
        one = x[:, ends[i] : ends[i + 1]]
        if not one.shape[1]:
            continue
        want, end = through(stack, one)
        assert_close(packed[:, ends[i] : ends[i + 1]], want, f"packed sequence {i}")
        assert_close(padded[i : i + 1, place], want, f"padded sequence {i}")
        for mine, other, alone in zip(states, padded_states, end, strict=True):
            assert_close(mine.select([i])["S"], alone["S"], f"state of packed sequence {i}")
            assert_close(other.select([i])["S"], alone["S"], f"state of padded sequence {i}")
    assert bool((padded[mask == 0] == 0).all())


def test_first_values_carry_gradients(stack: list[Any]) -> None:
    """Against central differences along one direction of the first layer's map to v."""
    x, weight = inputs(1, 9, 12), stack[0].v_proj.weight
    direction = inputs(1, 12, 12, seed=3)[0]
    (gradient,) = torch.autograd.grad(through(stack, x)[0].square().sum(), weight)
    values = []
    with torch.no_grad():
        for h in (1e-6, -2e-6):
            weight += h * direction
            values.append(float(through(stack, x)[0].square().sum()))
    assert math.isclose((values[0] - values[1]) / 2e-6, float((gradient * direction).sum()), rel_tol=1e-6)


def test_values_of_other_tokens_are_refused(stack: list[Any]) -> None:
    shared: dict[str, Tensor] = {}
    stack[0](inputs(1, 9, 12), shared=shared)
    with pytest.raises(sf.StateformError, match=r"v_first has shape \[1, 9, 12\], v \[1, 5, 12\]; expected"):
        stack[1](inputs(1, 5, 12), shared=shared)


# -- recorded logits of small models ------------------------------------------------------------------------------


@dataclass
class Model:
    """A language model whose time mixing is Stateform's; the rest is here, in the dtype of its weights."""

    weights: dict[str, Tensor]
    layers: list[Any]
    states: list[sf.State] = field(default_factory=list)
    """Of the time mixing, and below of the channel mixing (the last input)."""
    before: list[Tensor] = field(default_factory=list)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def channel_mix(self, name: str, x: Tensor, before: Tensor) -> Tensor:
        """relu(W_k x)^2 behind a token shift, with a gate before version 7."""
        w = {key.removeprefix(name): z for key, z in self.weights.items() if key.startswith(name)}
        delta = torch.cat([before, x[:, :-1]], 1) - x
        share = w["x_k"].flatten() if "x_k" in w else 1 - w["time_mix_k"].flatten()
        y = F.relu((x + delta * share) @ w["key.weight"].T).square() @ w["value.weight"].T
        if "receptance.weight" in w:
            y = y * torch.sigmoid((x + delta * (1 - w["time_mix_r"].flatten())) @ w["receptance.weight"].T)
        return y

    def start(self) -> None:
        self.states = [layer.init_state(1) for layer in self.layers]
        self.before = [torch.zeros(1, 1, layer.d_model, dtype=layer.mix.dtype) for layer in self.layers]

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens [1,T] to logits [1,T,vocabulary]; goes on from where the last call ended."""
        x, shared = self.norm(self.weights["emb.weight"][tokens], "blocks.0.ln0"), {}
        for i, layer in enumerate(self.layers):
            u = self.norm(x, f"blocks.{i}.ln1")
            y, self.states[i] = layer(u, initial_state=self.states[i], return_state=True, shared=shared)
            x = x + y
            u = self.norm(x, f"blocks.{i}.ln2")
            x = x + self.channel_mix(f"blocks.{i}.ffn.", u, self.before[i])
            self.before[i] = u[:, -1:]
        return self.norm(x, "ln_out") @ self.weights["head.weight"].T


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Six integers, then parameters: axes, length of the name, type (0: float32), shape last axis first, name, data."""
    data, at, weights = path.read_bytes(), 24, {}
    while at < len(data):
        axes, length, kind = np.frombuffer(data, "<i4", 3, at).tolist()
        assert kind == 0
        shape = np.frombuffer(data, "<i4", axes, at + 12).tolist()
        at += 12 + 4 * axes
        name, size = data[at : at + length].decode(), math.prod(shape)
        values = np.frombuffer(data, "<f4", size, at + length).copy()
        weights[name] = torch.from_numpy(values.reshape(shape[::-1])).to(dtype)
        at += length + 4 * size
    return weights


def same_names(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps that all versions have."""
    names = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "out_proj": "output", "gate_proj": "gate"}
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
    names |= {"norm.weight": "ln_x.weight", "norm.bias": "ln_x.bias"}
    return {ours: w[theirs] for ours, theirs in names.items() if theirs in w}


def version4(w: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    mix = torch.stack([1 - w[f"time_mix_{x}"] for x in "rkv"])
    layer = sf.build("rwkv4", d_model=mix.shape[1])
    return layer, {"mix": mix, "log_w": (-w["time_decay"]).log(), "bonus": w["time_first"]}


def version5(w: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    gate = "time_mix_g" in w
    mix = torch.stack([1 - w[f"time_mix_{x}"] for x in ("rkvg" if gate else "rkv")])
    per_channel = "time_faaaa" in w
    decay, bonus = w["time_decay"].squeeze(-1), w["time_faaaa" if per_channel else "time_first"].squeeze(-1)
    layer = sf.build(
        "rwkv6", d_model=mix.shape[1], n_heads=len(decay), decay="channel" if per_channel else "head", gate=gate,
        norm_eps=1e-5,  # as recorded; later programs have 64e-5 here too
    )  # fmt: skip
    return layer, {"mix": mix, "w": (-decay.log()).log(), "bonus": bonus}


def version7(w: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    ranks = {name: len(w[f"{key}1"]) for name, key in {"decay": "w", "rate": "a", "gate": "g"}.items()}
    layer = sf.build(
        "rwkv7", d_model=w["w0"].numel(), n_heads=len(w["r_k"]), value_rank=ranks["rate"],
        **{f"{name}_rank": rank for name, rank in ranks.items()},
    )  # fmt: skip
    values = {"mix": w["x_rwkvag"].flatten(1), "w": w["w0"], "rate": w["a0"], "residual": w.get("v0", layer.residual)}
    values |= {"xi": w["k_k"], "alpha": w["k_a"]}
    values = {name: x if x.ndim == 2 else x.flatten() for name, x in values.items()}
    values["rho"] = w["r_k"].view_as(layer.rho)
    for name, key in {"decay": "w", "rate": "a", "residual": "v", "gate": "g"}.items():
        for part, number in ((0, 1), (2, 2)):
            ours = f"{name}_map.{part}.weight"
            values[ours] = w.get(f"{key}{number}", layer.get_parameter(ours))  # the first layer has no residual
    return layer, values


def read_model(path: Path, version: str, dtype: torch.dtype) -> Model:
    weights, layers = read_weights(path, dtype), []
    for i in range(1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks"))):
        prefix = f"blocks.{i}.att."
        w = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        layer, values = {"4": version4, "5": version5, "7": version7}[version[0]](w)
        layer.to(dtype).load_state_dict(values | same_names(w))
        layers.append(layer)
    return Model(weights, layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("version", ["4v0-660K", "5v1-730K", "5v2-730K", "7v0-834K"])
@torch.no_grad()
def test_recorded_logits(version: str, dtype: torch.dtype) -> None:
    """After the three bytes of `"in`, at once and one at a time, in the reference's float32."""
    place = recorded("rwkv-tiny")
    model = read_model(place / f"tiny-rwkv-{version}-FP32.bin", version, dtype)
    want = np.fromfile(place / f"expected-logits-{version}.bin", "<f4")
    tokens = torch.tensor([list(b'"in')])
    model.start()
    at_once = model.logits(tokens)[0, -1]
    model.start()
    steps = [model.logits(token)[0, -1] for token in tokens.split(1, 1)]
    assert_close(at_once, want, "logits", RECORDED)
    assert_close(steps[-1], at_once, "logits, one token at a time", EXACT if dtype == torch.float64 else RECORDED)


# -- a trained model ----------------------------------------------------------------------------------------------


class Reverser(Model):
    """Two layers of RWKV-7, trained to continue `digits,` with the digits reversed."""

    def __init__(self, path: Path) -> None:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        layers = []
        for i in (1, 2):
            prefix = f"rwkv{i}."
            w = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
            w |= {name: w[name].T for name in w if name[1:] in ("1", "2")}
            w["x_rwkvag"] = torch.cat([w[f"x_{x}"] for x in "rwkvag"])
            layer, values = version7(w)
            layer.load_state_dict(values | same_names(w))
            layers.append(layer)
        super().__init__(weights, layers)

    def logits(self, tokens: Tensor) -> Tensor:
        x, shared = self.weights["e.weight"][tokens], {}
        for i, layer in enumerate(self.layers):
            u = self.norm(x, f"ln{i + 1}a")
            y, self.states[i] = layer(u, initial_state=self.states[i], return_state=True, shared=shared)
            x = x + y + self.weights[f"rosa{i + 1}.o.bias"]  # all that is left of a branch that is off
            u = self.norm(x, f"ln{i + 1}b")
            x = x + self.channel_mix(f"ffn{i + 1}.", u, self.before[i])
            self.before[i] = u[:, -1:]
        return self.norm(x, "lno") @ self.weights["o.weight"].T + self.weights["o.bias"]

    def continued(self, prompt: str, length: int) -> str:
        """The likeliest next characters: the prompt at once, then one at a time."""
        alphabet = "0123456789,#"
        self.start()
        tokens, text = torch.tensor([[alphabet.index(c) for c in prompt]]), ""
        for _ in range(length):
            tokens = self.logits(tokens)[:, -1:].argmax(-1)
            text += alphabet[int(tokens)]
        return text


@torch.no_grad()
def test_a_trained_model_reverses_digits() -> None:
    """Up to 60 digits it makes no mistake: what it writes into its state is erased and found again."""
    (path,) = recorded("rwkv7-reverse").glob("*.pth")
    model, generator = Reverser(path), np.random.default_rng(0)
    for length in (1, 2, 5, 10, 20, 40, 60):
        for _ in range(3):
            digits = "".join(str(x) for x in generator.integers(0, 10, length))
            digits = digits if length == 1 else str(generator.integers(1, 10)) + digits[1:]
            assert model.continued(digits + ",", length + 1) == digits[::-1] + "#"
