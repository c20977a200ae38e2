"""Small parts that several layers share."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from ..errors import StateformError, require
from ..loops.norm import Gate, normed
from ..system.precision import HALF, without_autocast

N = TypeVar("N", int, float)


def heads(x: Tensor, n_heads: int) -> Tensor:
    """Split [B,T,H*n] into heads [B,T,H,n]."""
    return x.view(*x.shape[:-1], n_heads, x.shape[-1] // n_heads)


def unit(x: Tensor, length: float = 1.0) -> Tensor:
    """Scale x to `length` along the last axis; 1e-6 is added under the root, as in the published implementations."""
    found = normed(x, x.shape[-1], scale=length, eps=1e-6)
    if found is not None:
        return found
    y = precise(x)
    return (y * (length * torch.rsqrt(sum_of_squares(y) + 1e-6))).to(x.dtype)


def sum_of_squares(x: Tensor) -> Tensor:
    """Sum x^2 along the last axis, which stays with size 1. A product is one pass over x, also for the gradient."""
    with without_autocast(x.device):
        return torch.linalg.vecdot(x, x).unsqueeze(-1)


def precise(x: Tensor) -> Tensor:
    """Give x in float32 at least, as gates and decays are computed."""
    return x if x.dtype == torch.float64 else x.float()


def precise_linear(f: nn.Module, x: Tensor) -> Tensor:
    """Compute f(x) in float32 at least, also under autocast: for a state that never forgets its roundings."""
    with without_autocast(x.device):
        if isinstance(f, nn.Linear) and plain(f, nn.Linear):
            return F.linear(precise(x), precise(f.weight), None if f.bias is None else precise(f.bias))
        y: Tensor = widened(f)(precise(x))
        return y


def widened(module: nn.Module) -> Any:
    """Give the module float32 in place of half precision: a view for one call, its gradients go to the module's own."""
    first = next(module.parameters(), None)
    return _wide_copy(module) if first is not None and first.dtype in HALF else module


def _wide_copy(module: nn.Module) -> Any:
    new = object.__new__(type(module))  # copy.copy is refused by parametrised modules
    new.__dict__ |= {
        **module.__dict__,
        **{
            kind: {k: p.float() if p is not None and p.dtype in HALF else p for k, p in getattr(module, kind).items()}
            for kind in ("_parameters", "_buffers")
        },
        "_modules": {k: None if m is None else _wide_copy(m) for k, m in module._modules.items()},
    }
    return new


def plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """True if a call of the module is the forward of `cls` and nothing more, so that its weights may stand for it.

    An adapter, a parametrisation or a quantised map is of another class; pruning and the older norms of weights are
    hooks.
    """
    own = module.__dict__
    return not (
        type(module) is not cls
        or "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or _has_any_global_hook()
    )


def first_parameter(module: nn.Module) -> Tensor | None:
    """Find what next(module.parameters(), None) gives, without what it takes to find all."""
    for p in module._parameters.values():
        if p is not None:
            return p
    for m in module._modules.values():
        found = None if m is None else first_parameter(m)
        if found is not None:
            return found
    return None


def split_size(total: int, parts: int, what: str = "d_model", by: str = "n_heads") -> int:
    """Divide total by parts, or raise."""
    require(isinstance(parts, int) and parts >= 1, f"{by} is {parts!r}; expected a whole number, 1 or more")
    require(total % parts == 0, f"{what} = {total} is not divisible by {by} = {parts}; choose another {by}")
    return total // parts


def more_than_a_sign(size: int, what: str, given: str) -> int:
    """Raise if size is 1: of one number alone a norm leaves its sign, which jumps where the number passes 0."""
    require(size > 1, f"{given}, one {what} a head: expected 2 or more, since they are normalised per head")
    return size


def normalised_size(d_model: int, n_heads: int, d_state: int | None) -> tuple[int, int]:
    """Count values, d_model / n_heads, and keys (default as many) of heads that normalise both."""
    p = more_than_a_sign(split_size(d_model, n_heads), "value", f"n_heads is {n_heads}")
    return p, more_than_a_sign(d_state or p, "key", f"d_state is {d_state}")


def above_zero(name: str, value: N) -> N:
    """Give the value, or raise unless it is a number above 0."""
    if not 0 < value < math.inf:  # a message is not made where it is not needed: a graph may hold a symbol here
        raise StateformError(f"{name} is {value}; expected a number above 0")
    return value


def signed(g: Tensor, negative: bool = True) -> tuple[Tensor, Tensor | None]:
    """Turn log decays of a in (0,1) into those of 2 a - 1 in (-1,1), with their signs; as they are unless `negative`.

    Their size is at least 1e-4, since 0 has no gradient. Source: arXiv 2411.12537.
    """
    if not negative:
        return g, None
    a = g.exp() + torch.expm1(g)
    return a.abs().clamp_min(1e-4).log(), torch.where(a < 0, -1.0, 1.0).to(a.dtype)


def forget_gate(z: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Compute log f and 1 - f of the gate f = least + (1 - least) sigmoid(z), both without cancellation."""
    let_go = (1 - least) * torch.sigmoid(-z)
    return (F.logsigmoid(z) if least == 0 else torch.log1p(-let_go)), let_go


def inverse_softplus(x: Tensor) -> Tensor:
    """Find z with softplus(z) = x."""
    return x + torch.log(-torch.expm1(-x))


def log_uniform(size: int, low: float, high: float) -> Tensor:
    """Draw `size` steps whose logarithms are uniform between those of low and high."""
    require(0 < low <= high < math.inf, f"dt_min and dt_max are {low} and {high}; expected 0 < dt_min <= dt_max")
    return torch.exp(torch.rand(size) * (math.log(high) - math.log(low)) + math.log(low))


def rope_angles(n: int, base: float, device: torch.device | None = None) -> Tensor:
    """Make rotary positions: angles per token base^(-2i/n), i = 0 .. n/2 - 1, as phases [1,n/2] (arXiv 2104.09864).

    Made on the device: a copy to an accelerator would wait for it.
    """
    require(n % 2 == 0, f"d_state is {n}; rotary positions pair the keys up: expected an even number")
    return above_zero("rope_base", base) ** (-torch.arange(0, n, 2, dtype=torch.float64, device=device) / n)[None]


def pair_up(x: Tensor, *, conjugate: bool = False) -> Tensor:
    """Pair [..., n] up to [..., n/2] complex: the first half are the real parts, the second the imaginary ones."""
    a, b = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
    return torch.complex(a, -b if conjugate else b)


def rotated(x: Tensor, place: Tensor, base: float) -> Tensor:
    """Turn x [B,T,H,n] by its place [B|1,T], as `rope_angles` has it."""
    angle = place[..., None, None] * rope_angles(x.shape[-1], base, place.device)
    z = pair_up(x)
    z = z * torch.polar(torch.ones_like(angle), angle).to(z.dtype)
    return torch.cat([z.real, z.imag], -1).to(x.dtype)


class HeadNorm(nn.Module):
    """RMS normalisation of each head's values, [B,T,H,p], with one weight per value shared by the heads.

    With `groups`, the p values are normalised in so many parts, each by itself.
    """

    def __init__(self, p: int, *, eps: float = 1e-6, affine: bool = True, groups: int = 1) -> None:
        super().__init__()
        self.eps, self.groups = eps, groups
        self.weight = nn.Parameter(torch.ones(p)) if affine else None

    def forward(
        self, y: Tensor, gate: Tensor | None = None, activation: Gate = "silu", *, first: bool = False
    ) -> Tensor:
        """Normalise y; with a gate [B,T,H*p] also multiply with its activation, after or `first`: [B,T,H*p]."""
        p = y.shape[-1] // self.groups
        x = normed(
            y, p, share=1 / p, eps=self.eps, weight=self.weight, gate=gate, activation=activation, first=first
        )  # fmt: skip
        if x is not None:
            return x if gate is None else x.flatten(2)
        if gate is not None and first:
            return self(gated(y, gate, activation))
        x = precise(y)
        if self.groups > 1:
            x = x.unflatten(-1, (self.groups, -1))
        x = x * torch.rsqrt(sum_of_squares(x) / x.shape[-1] + self.eps)
        x = (x.flatten(-2) if self.groups > 1 else x).to(y.dtype)
        x = x if self.weight is None else x * self.weight
        return x if gate is None else gated(x, gate, activation)


def gated(y: Tensor, gate: Tensor, activation: Gate = "silu") -> Tensor:
    """Multiply y [B,T,...], heads side by side, with the activation of the gate [B,T,c]: [B,T,c]."""
    x = normed(y, gate=gate, activation=activation)
    if x is None:
        x = y.flatten(2) * (F.silu(gate) if activation == "silu" else torch.sigmoid(gate))
    return x.flatten(2)
