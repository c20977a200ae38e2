"""Which architectures contain which: a general layer whose parameters are set so that it is the special one.

Each relation sets up the general layer (its own code, with projections and gates given) and is verified by numbers: on
an input, the outputs of the two systems, or their transitions A_t, are equal to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import REGISTRY, build
from ..contract.equivalence import Equivalence, equivalent, share_weights
from ..errors import StateformError, require
from ..layer.parts import inverse_softplus
from ..system import System
from ..system.discretise import log_decay_and_gain
from ..system.precision import tolerance
from .approximate import degree_needed
from .attention import ssd_to_linear_attention
from .certificate import outputs

Case = tuple[System, System]
"""The general layer's system at the setting, and the special layer's system, of one input."""


@dataclass(frozen=True)
class Relation:
    """A general architecture, a special one, and the setting at which they are equal."""

    general: str
    special: str
    setting: str
    compared: Literal["outputs", "transitions"]
    systems: Callable[[Any, Tensor], Case]
    """From the special layer and an input u [B,T,d_model]."""

    @torch.no_grad()
    def verify(self, layer: nn.Module, u: Tensor) -> Equivalence:
        """True if the general layer, set up with the weights of the special `layer`, is equal to it on u.

        Raises:
            StateformError: if the options of `layer` have no such setting.
        """
        with torch.random.fork_rng(devices=[]):  # layers are built, and draw; the user's draws stay as they are
            general, special = self.systems(layer, u)
        if self.compared == "transitions":
            got, want = (s.spectrum() for s in (general, special))
            got, want = torch.broadcast_tensors(got, want)
        else:
            got, want = (outputs(s).flatten(2) for s in (general, special))
        return equivalent(got, want, rtol=tolerance(general.dtype, u.shape[1]))

    def __str__(self) -> str:
        if self.compared == "transitions":
            return f"the transition of {self.special} is that of {self.general} with {self.setting}"
        return f"{self.special} is {self.general} with {self.setting}"


RELATIONS: list[Relation] = []
"""Every special case that is known, in the order of the file."""


def special_case(a: nn.Module, b: nn.Module, u: Tensor) -> str | None:
    """Say how one of two layers is a special case of the other, if that is known and true on u.

    Args:
        a: a layer. b: another one.
        u: input [B,T,d_model]; float64 shows it best.
    """
    names = {e.cls: e.name for e in REGISTRY.values()}
    layers = {names.get(type(x)): x for x in (a, b)}
    for relation in RELATIONS:
        if layers.keys() == {relation.general, relation.special}:
            try:
                found = relation.verify(layers[relation.special], u)
            except StateformError:  # its options have no such setting
                continue
            if found:
                what = "all A_t" if relation.compared == "transitions" else "the reads"
                return f"{relation}; verified on this text: {what} are {found.text}"
    return None


def relation(
    general: str, special: str, setting: str, compared: Literal["outputs", "transitions"] = "outputs"
) -> Callable[[Callable[[Any, Tensor], Case]], Callable[[Any, Tensor], Case]]:
    """Add a function from the special layer and u to the two systems to `RELATIONS`."""

    def add(systems: Callable[[Any, Tensor], Case]) -> Callable[[Any, Tensor], Case]:
        RELATIONS.append(Relation(general, special, setting, compared, systems))
        return systems

    return add


class Given(nn.Module):
    """In the place of a projection or a gate: what it gives."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, *_: Any) -> Tensor:
        return self.x


def general_of(name: str, layer: Any, *same: str, **options: Any) -> Any:
    """Make the general layer in the dtype of the special one, with its options of the names `same`, and its weights."""
    options |= {x: layer.config[x] for x in same}
    general = build(name, d_model=layer.d_model, **options).to(next(layer.parameters()).dtype)
    return share_weights(layer, general).b


def fill(*weights: tuple[nn.Parameter, Tensor | float]) -> None:
    """Write new values into weights."""
    for parameter, value in weights:
        parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))


def constant_gate(general: Any, log_decay: Tensor) -> None:
    """Set GLA's gate sigmoid(W_2 W_1 u + bias)^(1/temperature) to a constant decay [H]: W_2 = 0, the bias its logit."""
    g = (log_decay * general.gate_temperature).repeat_interleave(general.d_state)
    last = general.decay_proj[1]
    fill((last.weight, 0.0), (last.bias, logit(g)))


def logit(log_sigmoid: Tensor) -> Tensor:
    """Find the x with log sigmoid(x) = log_sigmoid."""
    return log_sigmoid - torch.log(-torch.expm1(log_sigmoid))


# -- attention ----------------------------------------------------------------------------------------------------


@relation("sliding_window", "softmax", "a window of at least T tokens")
def _window(layer: Any, u: Tensor) -> Case:
    same = ("n_heads", "n_kv_heads", "d_state", "positions")
    general = general_of("sliding_window", layer, *same, window=u.shape[1])
    general.rope_base = layer.rope_base
    return general.system(u), layer.system(u)


@relation("hopfield", "softmax", "updates = 1 and beta = 1/sqrt(n) (softmax without positions)")
def _hopfield(layer: Any, u: Tensor) -> Case:
    require(layer.n_kv_heads == layer.n_heads, "a Hopfield layer has as many heads of keys as of queries")
    general, plain = general_of("hopfield", layer, "n_heads", "d_state", updates=1), copy.deepcopy(layer)
    plain.positions = "none"
    return general.system(u), plain.system(u)


@relation("lolcats", "softmax", "a window of at least T tokens")
def _lolcats(layer: Any, u: Tensor) -> Case:
    same = ("n_heads", "n_kv_heads", "d_state", "positions")
    general = general_of("lolcats", layer, *same, window=u.shape[1])
    general.rope_base = layer.rope_base
    return general.system(u), layer.system(u)


@relation("moba", "softmax", "as many blocks seen as there are")
def _moba(layer: Any, u: Tensor) -> Case:
    same = ("n_heads", "n_kv_heads", "d_state", "positions")
    general = general_of("moba", layer, *same, block=4, n_blocks=u.shape[1])
    general.rope_base = layer.rope_base
    return general.system(u), layer.system(u)


@relation("fox", "softmax", "gates that are open, f = 1")
def _fox(layer: Any, u: Tensor) -> Case:
    general = general_of("fox", layer, "n_heads", "n_kv_heads", "d_state", "positions")
    general.rope_base = layer.rope_base
    fill((general.f_proj.weight, 0.0), (general.f_proj.bias, torch.inf))
    return general.system(u), layer.system(u)


@relation("path", "softmax", "beta = 0 and no forget gate (softmax without positions)")
def _path(layer: Any, u: Tensor) -> Case:
    require(layer.n_kv_heads == layer.n_heads, "PaTH has as many heads of keys as of queries")
    general, plain = general_of("path", layer, "n_heads", "d_state"), copy.deepcopy(layer)
    plain.positions = "none"
    fill((general.b_proj.weight, 0.0), (general.b_proj.bias, -torch.inf))
    return general.system(u), plain.system(u)


@relation("taylor", "softmax", "degree -> infinity (softmax without positions; verified where the series has "
          "converged, for the first two keys of a head)")  # fmt: skip
def _taylor(layer: Any, u: Tensor) -> Case:
    require(layer.n_kv_heads == layer.n_heads, "this layer has as many heads of keys as of queries")
    plain = copy.deepcopy(layer)
    plain.positions = "none"
    s = plain.system(u)
    s = replace(s, q=s.q[..., :2], k=s.k[..., :2])
    degree = degree_needed(s, tolerance(torch.float64, u.shape[1]) / 4)
    general = general_of("taylor", layer, "n_heads", d_state=2, degree=degree)
    # the layer divides q and k by the fourth root of the number of keys
    general.q_proj, general.k_proj = (Given((x * 2**0.25).flatten(2)) for x in (s.q, s.k))
    general.v_proj = layer.v_proj
    return general.system(u), s


# -- linear attention that forgets --------------------------------------------------------------------------------


@relation("gla", "retention", "a constant gate, gamma_h for all keys of a head (retention without its rotation)")
def _retention(layer: Any, u: Tensor) -> Case:
    s = layer.system(u)
    general = general_of("gla", layer, "n_heads", d_state=layer.d_state)
    general.v_proj = layer.v_proj
    constant_gate(general, s.log_decay)
    return general.system(u), replace(s, phase=None)


@relation("gla", "lightning", "a constant gate, exp(-s_h) for all keys of a head, and silu behind the projections")
def _lightning(layer: Any, u: Tensor) -> Case:
    s = layer.system(u)
    general = general_of("gla", layer, "n_heads", d_state=layer.d_state)
    general.q_proj, general.k_proj, general.v_proj = (Given(x.flatten(2)) for x in (s.q * layer.d_state**0.5, s.k, s.v))
    constant_gate(general, s.log_decay)
    return general.system(u), s


@relation("gla", "hgrn2", "keys tied to the gate, k_t = 1 - a_t, a gate of full rank and temperature 1")
def _hgrn2(layer: Any, u: Tensor) -> Case:
    s, keys = layer.system(u), layer.n_heads * layer.d_state
    general = general_of("gla", layer, "n_heads", d_state=layer.d_state, gate_rank=keys, gate_temperature=1.0)
    first, last = general.decay_proj
    fill((first.weight, layer.f_proj.weight), (last.weight, torch.eye(keys)), (last.bias, 0.0))
    g = general.system(u)
    return replace(g, q=s.q, k=-torch.expm1(g.log_decay), v=s.v), s


@relation("gateloop", "gla", "phase 0 and the modulus of gla's gate")
def _gla(layer: Any, u: Tensor) -> Case:
    s = layer.system(u)
    general = general_of("gateloop", layer, "n_heads", d_state=layer.d_state)
    general.q_proj, general.modulus_proj = Given(s.q.flatten(2)), Given(logit(s.log_decay).flatten(2))
    fill((general.phase_proj.weight, 0.0), (general.phase_proj.bias, 0.0))
    return general.system(u), s


# -- the delta rule -----------------------------------------------------------------------------------------------

DELTA = ("n_heads", "d_state", "d_conv")


@relation("kda", "gated_deltanet", "equal decays for all keys of a head")
def _gated_deltanet(layer: Any, u: Tensor) -> Case:
    general = general_of("kda", layer, *DELTA, "allow_negative_eigenvalues", gate_rank=layer.n_heads)
    first, last = general.a_proj
    spread = torch.eye(layer.n_heads).repeat_interleave(layer.d_state, 0)
    fill(
        (first.weight, layer.a_proj.weight),
        (last.weight, spread),
        (general.dt_bias, layer.dt_bias.repeat_interleave(layer.d_state)),
    )
    return general.system(u), layer.system(u)


@relation("gated_deltanet2", "kda", "both gates equal to beta")
def _kda(layer: Any, u: Tensor) -> Case:
    plain = layer.beta_scale == 1 and layer.least_log_decay is None
    require(plain, "gated_deltanet2 has gates in (0,1) and decays without a bound")
    general = general_of("gated_deltanet2", layer, *DELTA, "gate_rank")
    for gate in (general.e_proj, general.s_proj):
        gate.weight.copy_(layer.beta_proj.weight.repeat_interleave(len(gate.weight) // layer.n_heads, 0))
    return general.system(u), layer.system(u)


@relation("gated_deltanet", "deltanet", "decay a_t = 1 (A_log -> -inf)")
def _deltanet(layer: Any, u: Tensor) -> Case:
    general = general_of("gated_deltanet", layer, *DELTA, "allow_negative_eigenvalues")
    fill((general.A_log, -torch.inf))
    return general.system(u), layer.system(u)


@relation("deltaproduct", "deltanet", "n_h = 1 step a token")
def _deltaproduct(layer: Any, u: Tensor) -> Case:
    return general_of("deltaproduct", layer, *DELTA, "allow_negative_eigenvalues", n_h=1).system(u), layer.system(u)


@relation(
    "deltanet", "linear", "no feedback (f = 0) and the features as q and k (linear attention before its division)"
)
def _linear(layer: Any, u: Tensor) -> Case:
    s = layer.system(u)
    g = general_of("deltanet", layer, "n_heads", "d_state").system(u)
    return replace(g, q=s.q, k=s.k, v=s.v, b=None, f=0 * g.f), replace(s, eta=None)


# -- state-space models and recurrent networks --------------------------------------------------------------------


@relation("mamba", "mamba2", "A = a I and one Delta for all channels of a head")
def _mamba2(layer: Any, u: Tensor) -> Case:
    require(layer.n_groups == 1, "mamba has one B and one C")
    s, H, p = layer.system(u), layer.n_heads, layer.d_inner // layer.n_heads
    general = general_of("mamba", layer, "expand", "d_conv", "d_state", "allow_negative_eigenvalues", dt_rank=H)
    B, C = s.k.squeeze(2), s.q.squeeze(2)
    general.conv, general.x_proj = Given(s.v.flatten(2)), Given(torch.cat([layer.dt_proj(u), B, C], -1))
    spread = torch.eye(H).repeat_interleave(p, 0)
    fill(
        (general.dt_proj.weight, spread),
        (general.dt_proj.bias, layer.dt_bias.repeat_interleave(p)),
        (general.A_log, layer.A_log.repeat_interleave(p).unsqueeze(1)),
        (general.D, layer.D.repeat_interleave(p)),
    )
    return general.system(u), s


@relation("normalized", "mamba2", "eta_t = exp(a sum of all Delta so far) and keys times eta_t Delta_t")
def _ssd(layer: Any, u: Tensor) -> Case:
    require(not layer.allow_negative_eigenvalues, "decays of either sign are no ratio of normalisers")
    s = layer.system(u)
    found = ssd_to_linear_attention(s).system
    parts = {name: getattr(found, name) for name in ("q", "k", "v", "b", "eta", "d")}
    return replace(general_of("normalized", layer, n_heads=1).system(u), **parts), s


def _mamba_of(layer: Any, u: Tensor, before_softplus: Tensor, A: Tensor) -> System:
    """Make Mamba's system with Delta_t = softplus of what is given [B,T,channels], and -A [channels] for all states."""
    channels = len(A)
    general = general_of("mamba", layer, "expand", dt_rank=channels)
    rest = before_softplus.new_zeros(*before_softplus.shape[:2], 2 * general.d_state)
    general.x_proj = Given(torch.cat([before_softplus, rest], -1))
    fill(
        (general.dt_proj.weight, torch.eye(channels)),
        (general.dt_proj.bias, 0.0),
        (general.A_log, A.log().unsqueeze(1)),
    )
    return general.system(u)


@relation("mamba", "qlstm", "A = a I and Delta_t = softplus(W_f u_t), reversed=True (what they write differs)",
          "transitions")  # fmt: skip
def _qlstm(layer: Any, u: Tensor) -> Case:
    require(layer.log_a is not None, "only the reversed sigmoid has Mamba's transition")
    return _mamba_of(layer, u, layer.f_proj(u), layer.log_a.exp()), layer.system(u)


@relation("mamba", "rg_lru", "A = c softplus(Lambda) I and Delta_t = r_t (what they write differs)", "transitions")
def _rg_lru(layer: Any, u: Tensor) -> Case:
    r = torch.sigmoid(layer.r_gate(layer.conv(layer.x_proj(u), None)))
    return _mamba_of(layer, u, inverse_softplus(r), layer.c * F.softplus(layer.Lambda)), layer.system(u)


@relation("qlstm", "min_gru", "gates tied, f_t = 1 - i_t (W_f = -W_i), and no output gate")
def _min_gru(layer: Any, u: Tensor) -> Case:
    general = general_of("qlstm", layer, "expand")
    z, h = layer.z_proj, layer.h_proj
    for mine, theirs, sign in ((general.f_proj, z, -1), (general.i_proj, z, 1), (general.u_proj, h, 1)):
        fill((mine.weight, sign * theirs.weight), (mine.bias, sign * theirs.bias))
    return general.system(u), layer.system(u)


@relation("lru", "s5", "lambda = exp(dt Lambda), gamma B = (lambda - 1)/Lambda B and 2 C (S5 without its gate)")
def _s5(layer: Any, u: Tensor) -> Case:
    Lambda = torch.complex(-layer.log_decay_rate.exp(), layer.frequency)
    log, gain = log_decay_and_gain(Lambda, layer.log_dt.exp())
    general = general_of("lru", layer, d_state=len(Lambda))
    B = torch.view_as_real(torch.view_as_complex(layer.B) * gain.unsqueeze(-1))
    fill(
        (general.nu_log, (-log.real).log()),
        (general.theta_log, log.imag.remainder(2 * torch.pi).log()),
        (general.gamma_log, 0.0),
        (general.B, B),
        (general.C, 2 * layer.C),
    )
    return general.system(u), layer.system(u)
