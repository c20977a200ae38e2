"""Architectures of later papers, each against its equations as a plain loop over tokens, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stateform.architectures.attention.alibi import slopes

from .helpers import assert_close, assert_same_function, drawn, inputs

B, T, D, H = 2, 11, 16, 4


def split(x: Tensor, n_heads: int = H) -> Tensor:
    return x.unflatten(-1, (n_heads, -1))


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def convolved(conv: Any, x: Tensor) -> Tensor:
    """silu of a causal convolution of each channel."""
    padded = F.pad(x, (0, 0, conv.weight.shape[-1] - 1, 0))
    y = sum(padded[:, i : i + x.shape[1]] * conv.weight[:, 0, i] for i in range(conv.weight.shape[-1]))
    return F.silu(y if conv.bias is None else y + conv.bias)


def softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Causal attention [B,T,H,p] of q, k [B,T,H,n] with what is added to the logits [B,H,T,T]."""
    logits = torch.einsum("bihn,bjhn->bhij", q, k) / math.sqrt(q.shape[-1]) + bias
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhp->bihp", logits.masked_fill(later, -math.inf).softmax(-1), v)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "gate": True}], ids=["plain", "pro"])
def test_fox_is_attention_whose_weights_fade_by_gates(options: dict[str, bool]) -> None:
    layer, u = drawn("fox", d_model=D, n_heads=H, **options), inputs(B, T, D)
    q, k, v = (split(f(u)) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    if options:
        q, k = rms(q) * layer.q_norm.weight, rms(k) * layer.k_norm.weight
    log_f = F.logsigmoid(layer.f_proj(u)).movedim(1, 2)  # [B,H,T]
    total = log_f.cumsum(-1)
    y = softmax(q, k, v, total.unsqueeze(-1) - total.unsqueeze(-2))
    if options:
        y = rms(y) * layer.norm.weight * split(torch.sigmoid(layer.gate_proj(u)))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@pytest.mark.parametrize("n_heads", [1, 4, 6, 8, 12])
def test_alibi_has_the_slopes_and_the_bias_of_bloom(n_heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    layer, u = drawn("alibi", d_model=24, n_heads=n_heads), inputs(B, T, 24)
    alibi = bloom.build_alibi_tensor(torch.ones(B, T), n_heads, torch.float64).view(B, n_heads, 1, T)
    assert_close(alibi[0, :, 0, 1], slopes(n_heads), "the slopes", 1e-6)  # which are float32 there
    alibi = slopes(n_heads)[:, None, None] * torch.arange(T)
    with torch.no_grad():
        q, k, v = (split(f(u), n_heads) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
        assert_same_function(layer, u, layer.out_proj(softmax(q, k, v, alibi).flatten(2)))


@torch.no_grad()
def test_differential_attention_is_a_difference_of_two() -> None:
    layer, u = drawn("differential", d_model=D, n_heads=2, lambda_init=0.6, rope_base=100.0), inputs(B, T, D)
    q, k, v = split(layer.q_proj(u), 4), split(layer.k_proj(u), 4), split(layer.v_proj(u), 2)
    n = q.shape[-1]
    angle = torch.arange(T)[:, None] * 100.0 ** (-2 * torch.arange(n // 2, dtype=torch.float64) / n)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q, k = turned(q), turned(k)
    l_q1, l_k1, l_q2, l_k2 = layer.lambdas
    weight = torch.exp(l_q1 @ l_k1) - torch.exp(l_q2 @ l_k2) + 0.6
    y = softmax(q[:, :, 0::2], k[:, :, 0::2], v) - weight * softmax(q[:, :, 1::2], k[:, :, 1::2], v)
    y = rms(y, 1e-5) * layer.norm.weight * 0.4
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
def test_hedgehog_sums_products_of_softmaxes() -> None:
    layer, u = drawn("hedgehog", d_model=D, n_heads=H), inputs(B, T, D)

    def phi(x: Tensor, W: Tensor) -> Tensor:
        z = torch.einsum("bthn,hmn->bthm", split(x), W)
        return torch.cat([z.softmax(-1), (-z).softmax(-1)], -1)

    q, k = phi(layer.q_proj(u), layer.q_map), phi(layer.k_proj(u), layer.k_map)
    weights = torch.einsum("bihn,bjhn->bhij", q, k).tril()
    y = torch.einsum("bhij,bjhp->bihp", weights / weights.sum(-1, keepdim=True), split(layer.v_proj(u)))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


def delta_inputs(layer: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (split(convolved(c, f(u))) for c, f in (
        (layer.q_conv, layer.q_proj), (layer.k_conv, layer.k_proj), (layer.v_conv, layer.v_proj)))  # fmt: skip
    return unit(q) / math.sqrt(q.shape[-1]), unit(k), v


@torch.no_grad()
def test_comba_erases_at_a_key_of_its_own() -> None:
    layer, u = drawn("comba", d_model=D, n_heads=H), inputs(B, T, D)
    q, k, v = delta_inputs(layer, u)
    beta, a = torch.sigmoid(layer.beta_proj(u)), torch.exp(
        -layer.A_log.exp() * F.softplus(layer.a_proj(u) + layer.dt_bias))  # fmt: skip
    S, y = torch.zeros(B, H, 4, 4, dtype=torch.float64), []
    for t in range(T):
        p = torch.sigmoid(layer.decay)[:, None] * k[:, t]
        seen = torch.einsum("bhn,bhnp->bhp", p, S)
        S = a[:, t, :, None, None] * S + beta[:, t, :, None, None] * k[:, t, :, :, None] * (v[:, t] - seen)[:, :, None]
        read = q[:, t] - layer.D[:, None] * p / 2  # over sqrt(n), as q is
        y.append(torch.einsum("bhn,bhnp->bhp", read, S))
    y = rms(torch.stack(y, 1)) * layer.norm.weight * split(F.silu(layer.gate_proj(u)))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
def test_gated_deltanet2_erases_by_key_and_writes_by_value() -> None:
    layer, u = drawn("gated_deltanet2", d_model=D, n_heads=H), inputs(B, T, D)
    q, k, v = delta_inputs(layer, u)
    erase, write = (torch.sigmoid(split(f(u))) for f in (layer.e_proj, layer.s_proj))
    dt = F.softplus(layer.a_proj(u) + layer.dt_bias)
    a = torch.exp(-layer.A_log.exp()[:, None] * split(dt))
    S, y = torch.zeros(B, H, 4, 4, dtype=torch.float64), []
    for t in range(T):
        S = a[:, t, :, :, None] * S
        seen = torch.einsum("bhn,bhnp->bhp", erase[:, t] * k[:, t], S)
        S = S + k[:, t, :, :, None] * (write[:, t] * v[:, t] - seen)[:, :, None]
        y.append(torch.einsum("bhn,bhnp->bhp", q[:, t], S))
    y = rms(torch.stack(y, 1)) * layer.norm.weight * split(torch.sigmoid(layer.gate_proj(u)))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
def test_rodimus_forgets_and_writes_by_one_gate() -> None:
    layer, u = drawn("rodimus", d_model=D, n_heads=H), inputs(B, T, D)
    x = convolved(layer.conv, u)
    q, k, v = split(layer.q_proj(x)) / 2, unit(split(layer.k_proj(x))), split(layer.v_proj(x))
    g, tau = F.softplus(split(layer.g_proj(x))), torch.sigmoid(split(layer.tau_proj(x)))
    S, y = torch.zeros(B, H, 4, 4, dtype=torch.float64), []
    for t in range(T):
        alpha, beta = torch.exp(-g[:, t] * tau[:, t]), g[:, t] ** tau[:, t]
        S = alpha.unsqueeze(-1) * S + (beta * k[:, t]).unsqueeze(-1) * v[:, t].unsqueeze(-2)
        y.append(torch.einsum("bhn,bhnp->bhp", q[:, t], S))
    y = rms(torch.stack(y, 1)) * layer.norm.weight * split(F.silu(layer.gate_proj(u)))
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
def test_aaren_is_attention_by_its_own_query() -> None:
    layer, u = drawn("aaren", d_model=D, n_heads=H), inputs(B, T, D)
    k, v = split(layer.k_proj(u)), split(layer.v_proj(u))
    y = softmax(layer.q.expand(B, T, -1, -1), k, v)
    assert_same_function(layer, u, layer.out_proj(y.flatten(2)))


@torch.no_grad()
def test_rope_ssd_turns_pairs_of_keys() -> None:
    layer, u = drawn("rope_ssd", d_model=D, d_state=4, d_head=8, rope_base=50.0), inputs(B, T, D)
    x, b, c = convolved(layer.conv, layer.in_proj(u)).split([32, 4, 4], -1)
    x, dt = split(x), F.softplus(layer.dt_proj(u) + layer.dt_bias)
    angle = torch.arange(T)[:, None] * 50.0 ** (-2 * torch.arange(2, dtype=torch.float64) / 4)

    def turned(z: Tensor, t: int) -> Tensor:
        one, two = z.chunk(2, -1)
        cos, sin = angle[t].cos(), angle[t].sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    S, y = torch.zeros(B, 4, 4, 8, dtype=torch.float64), []
    for t in range(T):
        a = torch.exp(-layer.A_log.exp() * dt[:, t])[..., None, None]
        S = a * S + dt[:, t, :, None, None] * turned(b[:, t], t)[:, None, :, None] * x[:, t, :, None]
        y.append(torch.einsum("bn,bhnp->bhp", turned(c[:, t], t), S) + layer.D[:, None] * x[:, t])
    y = rms(torch.stack(y, 1).flatten(2) * F.silu(layer.gate_proj(u)), 1e-5) * layer.norm.weight
    assert_same_function(layer, u, layer.out_proj(y))


@torch.no_grad()
def test_longhorn_is_the_regression_of_each_step() -> None:
    layer, u = drawn("longhorn", d_model=D, d_state=5), inputs(B, T, D)
    x = convolved(layer.conv, layer.in_proj(u))
    beta, k, q = layer.x_proj(x).split([layer.rank, 5, 5], -1)
    beta = torch.sigmoid(layer.beta_proj(beta))
    S, y = torch.zeros(B, 32, 5, dtype=torch.float64), []
    for t in range(T):
        key, b = k[:, t, None], beta[:, t, :, None]
        step = b / (1 + b * key.square().sum(-1, keepdim=True))
        S = (1 - step * key.square()) * S + step * x[:, t, :, None] * key
        y.append((S * q[:, t, None]).sum(-1) + layer.D * x[:, t])
    assert_same_function(layer, u, layer.out_proj(torch.stack(y, 1) * F.silu(layer.gate_proj(u))))


@torch.no_grad()
def test_mamba3_is_the_trapezoidal_rule_with_rotations() -> None:
    layer, u = drawn("mamba3", d_model=D, d_state=6, d_head=8), inputs(B, T, D)
    b = rms(layer.B_proj(u)) * layer.B_norm.weight
    c = rms(layer.C_proj(u)) * layer.C_norm.weight
    b, c = b.unsqueeze(2) + layer.B_bias, c.unsqueeze(2) + layer.C_bias  # [B,T,H,n]
    x, dt = split(layer.x_proj(u)), F.softplus(layer.dt_proj(u))
    a = torch.exp(-F.softplus(layer.A_proj(u)).clamp_min(1e-4) * dt)
    share, theta = torch.sigmoid(layer.trap_proj(u)), math.pi * torch.tanh(layer.theta_proj(u))

    def turned(z: Tensor, angle: Tensor) -> Tensor:
        one, two = z.chunk(2, -1)
        return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)

    S, angle, y = torch.zeros(B, 4, 6, 8, dtype=torch.float64), torch.zeros(B, 4, 3, dtype=torch.float64), []
    last_b, last_x = layer.B_bias.expand(B, -1, -1) * 0, torch.zeros(B, 4, 8, dtype=torch.float64)
    for t in range(T):
        d, lam = dt[:, t, :, None, None], share[:, t, :, None, None]
        alpha, before = a[:, t, :, None, None], last_b
        angle = angle + dt[:, t, :, None] * theta[:, t, None]
        last_b = turned(b[:, t], angle)  # in coordinates that turn with the state
        S = alpha * S + (1 - lam) * d * alpha * before.unsqueeze(-1) * last_x.unsqueeze(-2)
        S = S + lam * d * last_b.unsqueeze(-1) * x[:, t].unsqueeze(-2)
        last_x = x[:, t]
        y.append(torch.einsum("bhn,bhnp->bhp", turned(c[:, t], angle), S) + layer.D[:, None] * x[:, t])
    assert_same_function(layer, u, layer.out_proj(torch.stack(y, 1).flatten(2) * F.silu(layer.gate_proj(u))))


@torch.no_grad()
def test_elman_is_torchs_recurrent_network() -> None:
    layer, u = drawn("elman", d_model=D), inputs(B, T, D)
    rnn = torch.nn.RNN(D, D, batch_first=True).double()
    rnn.weight_ih_l0.copy_(layer.x_proj.weight)
    rnn.bias_ih_l0.copy_(layer.x_proj.bias)
    rnn.weight_hh_l0.copy_(layer.h_proj.weight)
    rnn.bias_hh_l0.zero_()
    assert_close(layer(u), layer.out_proj(rnn(u)[0]), "the output")


@torch.no_grad()
def test_al_rnn_rectifies_its_last_units() -> None:
    layer, u = drawn("al_rnn", d_model=D, rectified=3), inputs(B, T, D)
    z, y = torch.zeros(B, D, dtype=torch.float64), []
    for t in range(T):
        phi = torch.cat([z[:, :-3], z[:, -3:].relu()], -1)
        z = layer.A * z + phi @ layer.h_proj.weight.T + layer.x_proj(u[:, t])
        y.append(z)
    assert_close(layer(u), layer.out_proj(torch.stack(y, 1)), "the output")


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "mamba2", "gla", "mlstm"])
def test_negative_eigenvalues_are_twice_the_decay_less_one(name: str) -> None:
    signed, u = drawn(name, d_model=D, allow_negative_eigenvalues=True), inputs(B, T, D)
    plain = drawn(name, d_model=D)
    plain.load_state_dict(signed.state_dict())
    with torch.no_grad():
        for p in (signed, plain):  # decays on both sides of a half
            for weight, x in p.named_parameters():
                x.mul_(0.0 if weight == "f_proj.bias" else 3.0)
    got, a = signed.system(u), plain.system(u)
    log = a.log_decay if isinstance(a.log_decay, Tensor) else a.log_decay[0].unsqueeze(-1) * a.log_decay[1]
    want = 2 * log.exp() - 1
    value = got.sign * got.log_decay.exp()
    large = want.abs() > 1e-3
    assert bool((want[large] < 0).any()) and bool((want[large] > 0).any())
    assert_close(value[large], want[large], "the decay")


@torch.no_grad()
def test_kda_has_the_bounded_gate_of_glm() -> None:
    layer, u = drawn("kda", d_model=D, n_heads=H, least_log_decay=-5.0), inputs(B, T, D)
    g = -5 * torch.sigmoid(layer.A_log.exp()[:, None] * split(layer.a_proj(u) + layer.dt_bias))
    assert_close(layer.system(u).log_decay, g, "the log decay")
