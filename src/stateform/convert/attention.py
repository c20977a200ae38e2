"""SSD, the scalar decay of Mamba-2, is linear attention with a normaliser; and the other way round.

With eta_t = exp(-(g_1 + ... + g_t)), the inverse of all decays so far, S'_t = eta_t S_t forgets nothing:

    S_t = a_t S_{t-1} + b_t k_t v_t^T,   y_t = q_t^T S_t          a_t = exp(g_t) = eta_{t-1} / eta_t
    S'_t = S'_{t-1} + (eta_t b_t) k_t v_t^T,   y_t = q_t^T S'_t / eta_t

and feedback a_t + f_t w_t^T becomes I + (f_t / a_t) w_t^T: gated DeltaNet is DeltaNet with a normaliser. Source: the
Dynamical Systems Framework (arXiv 2405.15731, eq. 15, 17, section 4.2), where eta is generalised linear attention's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..system import System
from ..system.precision import complex_dtype, real_dtype, upcast, wide
from ..system.shapes import spread_heads
from .certificate import Conversion, certify, check_system


def ssd_to_linear_attention(system: System) -> Conversion:
    """Rewrite a scalar decay as a normaliser eta_t = exp(-(g_1 + ... + g_t)), with keys scaled by it (through b).

    Exact, and of limited length: eta grows as the decays shrink the state, and is refused beyond half the range of
    exponents of the dtype (exp(44) in float32, exp(354) in float64), so that keys and values keep the other half.

    Args:
        system: with a scalar log decay, linear readout, read after the write, one step a token.

    Raises:
        StateformError: another kind of system, or decays whose product leaves the range (a hard reset does).
    """
    check_system(system, "ssd_to_linear_attention")
    _check_kind(system, "scalar")
    g = _product(_numbers(system, "log_decay"), _numbers(system, "rate")).expand(-1, system.T, -1)
    g = torch.cat([torch.where(g[:, :1].isneginf(), 0.0, g[:, :1]), g[:, 1:]], 1)  # a reset of nothing is none
    exponent = -g.cumsum(1)
    dtype = real_dtype(upcast(system.k).dtype)
    most, flat = math.log(torch.finfo(dtype).max) / 2, exponent.detach().flatten()
    top = float(flat[flat.abs().argmax()]) if len(flat) else 0.0
    if not abs(top) <= most:
        fits = int((exponent.abs() <= most).all(2).all(0).int().cumprod(0).sum())
        wider = "" if dtype == torch.float64 else ", or more precise numbers, system.to(torch.float64)"
        raise StateformError(
            f"the decays of these {system.T} tokens multiply to exp({-top:.4g}), and eta is its inverse; "
            f"{str(dtype).removeprefix('torch.')} has room for exp({most:.0f}), which is {fits} tokens: take a shorter "
            f"stretch, system[start:stop]{wider}"
        )
    eta = exponent.exp()
    new = {
        "b": _product(_numbers(system, "b"), eta),
        "f": None if system.f is None else _scaled(system.f, (-g).exp()),
        "eta": None if system.eta == "sum" else _product(_numbers(system, "eta"), eta),
        "d": None if system.d is None else _product(_numbers(system, "d"), eta),
        "eta_floor": None if system.eta_floor is None else _product(_numbers(system, "eta_floor"), eta),
    }
    text = f"SSD to linear attention: decays that multiply to exp({-top:.3g})"
    return certify(_with_parts(system, dtype, new, log_decay=None), system, text)


def linear_attention_to_ssd(system: System) -> Conversion:
    """Rewrite a normaliser eta_t as a scalar decay eta_{t-1} / eta_t (1 at the first token), with writes divided by it
    (through b).

    Exact for any eta_t above 0 that is given: the framework's own form of generalised linear and normalized attention
    (eq. 15, 17, 22). A sum of weights is not given but found from the state, and refused.

    Args:
        system: without decay, with eta a tensor, linear readout, read after the write, one step a token.

    Raises:
        StateformError: another kind of system, or an eta that is not above 0.
    """
    check_system(system, "linear_attention_to_ssd")
    _check_kind(system, "identity")
    if not isinstance(system.eta, Tensor):
        raise StateformError(
            f"eta is {system.eta!r}; expected a tensor [B,T,H] or [H]: a sum of weights depends on the state"
            if system.eta is not None else "this system has no eta; it is an SSD with decays of 1 as it is"
        )  # fmt: skip
    eta = _numbers(system, "eta")
    if system.eta_floor is not None:
        eta, floor = (x.expand(-1, -1, system.H) if x.shape[2] == 1 else spread_heads(x, system.H)
                      for x in (eta, _numbers(system, "eta_floor")))  # fmt: skip
        eta = torch.maximum(eta.abs(), floor)
    require(bool((eta > 0).all()), f"eta is {float(eta.detach().min()):.3g} somewhere; expected numbers above 0")
    log = eta.expand(-1, system.T, -1).log()
    g = -torch.diff(log, dim=1, prepend=log[:, :1])
    new = {
        "b": _product(_numbers(system, "b"), 1 / eta),
        "f": None if system.f is None else _scaled(system.f, g.exp()),
        "d": None if system.d is None else _product(_numbers(system, "d"), 1 / eta),
        "log_decay": g,
    }
    dtype = real_dtype(upcast(system.k).dtype)
    low, high = (float(x.exp()) for x in g.detach().aminmax()) if g.numel() else (1.0, 1.0)
    text = f"linear attention to SSD: decays of {low:.3g} to {high:.3g}"
    return certify(_with_parts(system, dtype, new, eta=None, eta_floor=None), system, text)


def _numbers(system: System, name: str) -> Tensor:
    """Give a number per step and head, [B|1,T|1,heads] in float64; 1 where the part is not there."""
    x = system.eta_floor if name == "eta_floor" else system.tensors().get(name)
    x = torch.as_tensor(1.0 if x is None else x, dtype=torch.float64, device=system.device)
    x = x.reshape(1) if x.ndim == 0 else x.squeeze(-1) if x.ndim in (2, 4) else x
    return x if x.ndim == 3 else x[None, None]


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply x and y, both [B|1,T|1,heads]; where their numbers of heads differ, one divides the other."""
    heads = lcm(x.shape[2], y.shape[2])
    return spread_heads(x, heads) * spread_heads(y, heads)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply x [B,T,H,n] or [H,n] with a number per step and head."""
    x = wide(x if x.ndim == 4 else x[None, None])
    heads = lcm(x.shape[2], factor.shape[2])
    return spread_heads(x, heads) * spread_heads(factor, heads).unsqueeze(-1)


def _with_parts(system: System, dtype: torch.dtype, new: dict[str, Tensor | None], **rest: None) -> System:
    """Replace parts of a system, the others written out in batch and time, in the precision of its state."""

    def cast(x: Tensor) -> Tensor:
        x = x.expand(system.B, system.T, *x.shape[2:])
        return x.to(complex_dtype(dtype) if x.is_complex() else dtype)

    return replace(system, **rest, **{name: cast(x) for name, x in new.items() if x is not None})  # type: ignore[arg-type]


def _check_kind(system: System, decay: str) -> None:
    need = {"scalar": "a scalar decay (SSD, retention, gated DeltaNet)", "identity": "no decay (linear attention)"}[
        decay
    ]
    require(system.readout.linear, f'the readout is "{system.readout}"; expected "linear" and {need}')
    turned = system.phase is not None or system.sign is not None
    kind = "complex or signed" if turned else "no" if system.decay_kind == "identity" else f"a {system.decay_kind}"
    require(system.decay_kind == decay and not turned, f"this system has {kind} decay; expected {need}")
    require(not system.exclusive and system.micro == 1, "expected a read after the write and one step a token")
    require(system.log_b is None, "log_b is an exponential gate; expected b: stabilise the system first")
