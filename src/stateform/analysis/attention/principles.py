"""The six principles of coefficient dynamics, each with what it says of a system and the quantity measured.

With alpha_ij = phi(q_i^T A_i ... A_{j+1} b_j k_j) / eta_i (arXiv 2510.09389):

    1 memory       only a linear phi has a recurrence with a finite state
    2 selectivity  where alpha can be 0 is the zero set of phi
    3 position     A_t = I sees no order: then positions must come from elsewhere
    4 geometry     the structure of A_t bounds what becomes of a key: a scalar scales, a diagonal scales each axis, a
                   reflection turns
    5 scale        b_j = O(1/sqrt n) keeps Var(q^T h) = O(1)
    6 stability    eta bounds the coefficients, which matters where A_t does not contract
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import require, require_seed
from ...forms import run
from ...forms.softmax import log_normaliser
from ...system import System
from ...system.core import fold
from ...system.readout import LINEAR
from ..structure import contraction
from .coefficients import has_weights, influence

SEEN = 256
"""Tokens of a system that are looked at pair by pair."""
SMALL = 1e-3
"""A coefficient below this share of its row's largest counts as 0."""
SOURCE = "arXiv 2510.09389"
PREMISES = {
    "memory": "exactly, and for all inputs",
    "selectivity": "of single heads; 0 is a thousandth of the row's largest",
    "position": "of the system alone, not of positions that q, k or v hold",
    "geometry": "in one step",
    "scale": "independent entries of q and k, of variance 1",
    "stability": "bounded values; weights of both signs may cancel in eta",
}
"""What each principle takes for granted."""
LINEARISED = "not met: the recurrence is not linear in its state; this is its linearisation along the text"


@dataclass(frozen=True)
class Principle:
    """One principle: whether the system has the property it speaks of, why, and what was measured."""

    name: str
    statement: str
    holds: bool | None
    """None: neither promised by the structure nor ruled out."""
    why: str
    measured: dict[str, float]
    premises: str = ""
    """What the principle takes for granted, or which of its premises does not hold here."""

    @property
    def number(self) -> int:
        """The number of the principle in the paper, 1 to 6."""
        return 1 + list(PREMISES).index(self.name)

    @property
    def source(self) -> str:
        """The paper and the principle in it."""
        return f"{SOURCE}, principle {self.number}"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {"statement": self.statement, "holds": self.holds, "why": self.why, "measured": dict(self.measured),
                "source": self.source, "premises": self.premises}  # fmt: skip


@dataclass(frozen=True)
class Principles:
    """The six principles on one system and input."""

    items: tuple[Principle, ...]
    tokens: int

    def __getitem__(self, name: str) -> Principle:
        return next(x for x in self.items if x.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "tokens": self.tokens,
            **{x.name: x.to_dict() for x in self.items},
        }

    def __str__(self) -> str:
        words = {True: "yes", False: "no", None: "open"}
        rows = []
        for x in self.items:
            numbers = ", ".join(f"{k} {v:.3g}" for k, v in x.measured.items())
            rows.append(f"{x.name:<12} {words[x.holds]:<5} {x.why} ({numbers}) [{x.source}]")
        return "\n".join(rows)


@torch.no_grad()
def principles(system: System, *, nonlinear: bool = False, seed: int = 0) -> Principles:
    """Judge a system by the six principles, measured on its first tokens (at most 256).

    Args:
        system: any causal system. What makes its parts (short convolutions, position embeddings) is not seen: a
            verdict on position is about the system alone.
        nonlinear: the parts of the system depend on the state: it is a linearisation along its input, for which alone
            the principles then hold.
        seed: of the permutation of tokens.

    Raises:
        StateformError: a system that is not causal, of fewer than 3 tokens, or with values that are read through an
            output axis (no coefficients are defined).
    """
    require(system.causal, "coefficient dynamics needs a causal system")
    require(system.T >= 3, f"the system has {system.T} tokens; expected 3 or more")
    require_seed(seed)
    s = system[:SEEN]
    alpha = influence(s)
    size = alpha.abs().double()
    found = (_memory(system), _selectivity(s, alpha, size), _position(s, seed), _geometry(s), _scale(s, alpha),
             _stability(s, size))  # fmt: skip
    given = {x.name: LINEARISED if nonlinear else PREMISES[x.name] for x in found}
    return Principles(tuple(replace(x, premises=given[x.name]) for x in found), s.T)


def _memory(system: System) -> Principle:
    finite = not system.readout.cached or system.window is not None
    if not system.readout.cached:
        why = "phi is linear: the sum over the past is a state" + (
            ", S and the Gram matrix G" if system.readout.gram else ""
        )
    else:
        why = "phi = exp: the past is kept token by token" + ("" if not finite else f", the last {system.window} of it")
    growing = system.readout.cached
    size = system.state_size * (system.window or 1) if growing else system.state_size
    label = "numbers a token" if growing and not finite else "numbers of state"
    return Principle("memory", "only a linear phi has a finite state", finite, why, {label: float(size)})


def _selectivity(system: System, alpha: Tensor, size: Tensor) -> Principle:
    T = system.T
    past = torch.ones(T, T, dtype=torch.bool, device=alpha.device).tril(0 if not system.exclusive else -1)
    past[0] = False
    small = (size <= SMALL * size.amax(-1, keepdim=True))[..., past].double().mean()
    measured = {f"share of |alpha| below {SMALL:g} of its row's largest": float(small)}
    if system.readout.cached:
        return Principle("selectivity", "where alpha can be 0 is the zero set of phi", True,
                         "exp has no zero but a half line where it is as good as 0: a token can be left out by a score",
                         measured)  # fmt: skip
    if has_weights(system):
        negative = (alpha.real < 0)[..., past].double().mean()
        measured["share of negative alpha"] = float(negative)
    why = "phi is linear: alpha is 0 on a hyperplane alone, or where the decay has made it small"
    return Principle("selectivity", "where alpha can be 0 is the zero set of phi", False, why, measured)


def _position(system: System, seed: int) -> Principle:
    """Compute the last token's output with all tokens before it in another order."""
    T = system.T
    order = torch.randperm(T - 1, generator=torch.Generator().manual_seed(seed)).to(system.device)
    order = torch.cat([order, torch.tensor([T - 1], device=system.device)])
    mixed = system.gather(lambda x, r: x.unflatten(1, (T, r))[:, order].flatten(1, 2))
    y, other = (run(x) for x in (system, mixed))
    last = y[:, -1]
    change = float((last - other[:, -1]).norm() / last.norm().clamp_min(torch.finfo(y.dtype).tiny))
    still = all(getattr(system, x) is None for x in ("log_decay", "phase", "sign", "transition", "f"))
    sees = not still or system.window is not None or "forget" in system.parts
    why = "A_t is not I: an earlier token counts otherwise than a later one" if sees else (
        "A_t = I: any order of the past gives the same output; positions must come with the input")  # fmt: skip
    return Principle("position", "A_t = I sees no order", sees, why, {"change of y when the past is reordered": change})


def _geometry(system: System) -> Principle:
    """Compute cos(A_{t+1} k_t, k_t): 1 where the key keeps its direction; a complex axis is two real ones."""
    kind, statement = system.decay_kind, "the structure of A_t bounds what becomes of a key"
    core = fold(system)
    k = core.k.expand(core.batch, core.length, *core.k.shape[2:]).to(core.dtype)
    moved = core.transition().apply(k.roll(1, 1).unsqueeze(-1)).squeeze(-1)[:, 1:]
    before = k[:, :-1].expand_as(moved)
    size = moved.abs().square().sum(-1).sqrt() * before.abs().square().sum(-1).sqrt()
    inner = (moved * before.conj()).sum(-1)
    cosine = ((inner.real if inner.is_complex() else inner).abs() / size.clamp_min(1e-30))[size > 1e-30].double()
    measured = {"least |cos(A k, k)|": float(cosine.min()) if cosine.numel() else 1.0}
    if system.f is not None:
        return Principle("geometry", statement, True, "rank-1 feedback turns or reflects keys along f", measured)
    if kind == "dense":
        return Principle("geometry", statement, True, "a dense A_t can do anything to a key", measured)
    if system.phase is not None:
        return Principle("geometry", statement, True, "phases turn keys, each pair of axes in its plane", measured)
    if kind == "diagonal":
        return Principle(
            "geometry", statement, False, "a diagonal A_t scales each axis: it turns none into another", measured
        )
    what = "A_t = I leaves keys as they are" if kind == "identity" else "a scalar A_t scales keys"
    return Principle("geometry", statement, False, what, measured)


def arguments(system: System) -> Tensor:
    """Compute q_i^T A_i ... A_{j+1} b_j k_j, what phi is applied to, [B,H,T,T*micro] (0 above the diagonal).

    With a softmax readout `forget` acts outside phi and is left out; phases act inside.
    """
    require(has_weights(system), "the arguments of phi are scalar weights; vector states have none")
    inside = replace(system, readout=LINEAR) if system.readout.cached else system
    return replace(inside, eta=None, eta_floor=None, d=None).coefficients()


def _variance(system: System, alpha: Tensor | None = None) -> float:
    """Compute the variance of the arguments at a token's own write (the one before it, if the read is exclusive), where
    no decay acts yet.

    Args:
        system: with scalar weights.
        alpha: its coefficients, if known: where phi is linear and nothing divides or is added, these are the arguments.
    """
    plain = system.readout.linear and system.eta is None and system.d is None and system.micro == 1
    x = arguments(system) if alpha is None or not plain else alpha
    r = system.micro
    own = torch.arange(1, system.T, device=x.device)
    column = own * r - 1 if system.exclusive else (own + 1) * r - 1
    x = x[..., own, column]
    return float(x.to(torch.complex128 if x.is_complex() else torch.float64).var())  # complex: of both parts together


def _scale(system: System, alpha: Tensor) -> Principle:
    statement = "b_j = O(1/sqrt n) keeps Var(q^T h) = O(1)"
    if not has_weights(system):
        return Principle("scale", statement, None, "a vector state has no scalar weights", {})
    now = _variance(system, alpha)
    why = f"Var(q^T b k) is {'at most' if now <= 10 else 'above'} 10 at this n"
    why += "" if now <= 10 else ", where phi saturates or sums grow"
    return Principle("scale", statement, now <= 10, why,
                     {"Var(q^T b k)": now, "n": float(system.n)})  # fmt: skip


def _stability(system: System, alpha: Tensor) -> Principle:
    """Compute the gain sum_j |alpha_ij|, the most that |y_i| can be for values of at most 1, with and without eta."""
    gain = alpha.sum(-1)
    if system.eta is None:
        bare = gain
    elif system.readout.cached:
        bare = log_normaliser(system).exp().transpose(1, 2)
    else:
        bare = influence(replace(system, eta=None, eta_floor=None)).abs().double().sum(-1)
    contracts, why = contraction(system)
    linear_growth = contracts != "no" and not (system.decay_kind == "identity" and system.f is None)
    bounded = (system.readout.cached and system.eta == "sum") or None
    if bounded:
        text = "the weights are positive and sum to 1"
    elif system.eta is None:
        text = "no eta: bounded only as far as A_t contracts; " + why
    else:
        text = "eta divides" + (", and A_t contracts" if linear_growth else ", as A_t alone does not contract")
    measured = {"largest gain": float(gain.max()), "without eta": float(bare.max()), "growth": _growth(gain),
                "growth without eta": _growth(bare)}  # fmt: skip
    return Principle("stability", "eta bounds the coefficients", bounded, text, measured)


def _growth(gain: Tensor) -> float:
    """Fit the exponent g of gain_i ~ i^g to the second half of the tokens, of the mean over heads and batch."""
    mean = gain.flatten(0, 1).mean(0)
    T = len(mean)
    i = torch.arange(T // 2, T, dtype=torch.float64, device=mean.device) + 1
    return _slope(i, mean[T // 2 :].clamp_min(1e-300))


def _slope(x: Tensor, y: Tensor) -> float:
    """Fit the slope of log y against log x, by least squares."""
    x, y = x.double().log(), y.double().log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum().clamp_min(1e-300))


@dataclass(frozen=True)
class VarianceExponent:
    """Var(q^T b k) against n: a power law n^e. 0 is what b = O(1/sqrt n) gives for independent keys and queries."""

    sizes: tuple[int, ...]
    variances: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """e, by least squares of the logarithms."""
        return _slope(torch.tensor(self.sizes), torch.tensor(self.variances))

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"n": list(self.sizes), "variance": list(self.variances), "exponent": self.exponent}

    def __str__(self) -> str:
        pairs = ", ".join(f"{v:.3g} at n = {n}" for n, v in zip(self.sizes, self.variances, strict=True))
        return f"Var(q^T b k) ~ n^{self.exponent:.2f}: {pairs}"


@torch.no_grad()
def variance_exponent(make: Callable[[int], System], sizes: Sequence[int] = (8, 16, 32, 64)) -> VarianceExponent:
    """Measure how the variance of phi's argument goes with the keys n of the state (principle 5).

    Args:
        make: from n to a system with a state of n keys, e.g. `lambda n: layer_of(n).system(x)`.
        sizes: the n that are tried, two or more.
    """
    require(len(sizes) >= 2, f"sizes is {list(sizes)}; expected two or more numbers of keys")
    systems = [make(n) for n in sizes]
    return VarianceExponent(tuple(s.n for s in systems), tuple(_variance(s[:SEEN]) for s in systems))
