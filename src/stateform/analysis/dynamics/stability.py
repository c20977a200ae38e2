"""Stability: norm bounds of the transitions and of the state, growth of a perturbation, token dynamics from parameters.

Of transitions A_t with norms rho_t = ||A_t||_2 the state of a System obeys

    ||S_t||_F <= rho_t ||S_{t-1}||_F + |b_t| ||k_t|| ||v_t||

so that products of norms bound what a difference can grow by, and a scalar system, this one, bounds the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require, require_seed
from ...forms import run
from ...system import System
from ...system.core import fold
from ...system.precision import real_dtype, upcast
from ...system.transition import associative_scan
from ..attention.stream import Mix, stream
from ..structure import constant_transition, token_transitions

TILE = 2**24
"""Numbers of written-out transitions at a time."""


# -- certificates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stability:
    """How far a System can amplify, by the norms of its transitions."""

    log_norms: Tensor
    """log ||A_t||_2 of every step, [B|1, T micro|1, H]: exact norms; -inf is a hard reset."""
    growth: float
    """Most that any stretch of this input can amplify a state: the largest product of norms over it (1: none does)."""
    gain: float
    """||S_t||_F <= gain max_t ||v_t|| at every t, from a zero state (vector states: <= gain)."""
    scope: str
    """Whether `norm` bounds the transitions of "every input", or was seen on "this input"."""
    why: str
    rounding: float
    """What a norm may be above 1 by rounding alone, in the precision of the System."""
    quadratic: tuple[float, float] | None = None
    """Of a constant A with all eigenvalues inside the unit circle: (r, c) with ||A^t|| <= c r^t for all t, from the
    quadratic Lyapunov function V(S) = S^* P S, A^* P A - P = -I; the worst of the heads."""

    @property
    def norm(self) -> float:
        """The largest ||A_t||_2."""
        return math.exp(float(self.log_norms.max()))

    @property
    def contractive(self) -> bool:
        """True if no step amplifies (to rounding)."""
        return self.norm <= 1 + self.rounding

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "norm": self.norm, "growth": self.growth, "gain": self.gain, "scope": self.scope, "why": self.why,
            "quadratic": None if self.quadratic is None else list(self.quadratic),
        }  # fmt: skip

    def __str__(self) -> str:
        verdict = "no step amplifies" if self.contractive else f"a step can amplify {self.norm:.4g} times"
        lines = [
            f"{verdict} (largest ||A_t|| {self.norm:.6g}, for {self.scope}: {self.why})",
            f"on this input a stretch amplifies at most {self.growth:.4g} times; ||S_t|| <= {self.gain:.4g} max ||v||",
        ]
        if self.quadratic is not None:
            r, c = self.quadratic
            lines.append(f"for every input ||A^t|| <= {c:.4g} * {r:.6g}^t, by a quadratic Lyapunov function")
        return "\n".join(lines)


@torch.no_grad()
def stability(system: System, *, promised: bool = False) -> Stability:
    """Norm bounds: for every input where the structure gives them (A = I, constant A, a promised decay), else on this.

    Args:
        system: any causal system with a finite state.
        promised: the layer says that no decay exceeds 1, for any input (`layer.contractive`).

    Raises:
        StateformError: an exp readout, an empty sequence.
    """
    require(not system.readout.cached,
            'readout "exp" has no finite state; its weights are positive, and with eta = "sum" they sum to one: '
            "outputs stay within the values")  # fmt: skip
    require(system.B * system.T > 0, "an empty sequence has no transitions")
    rounding = 64 * torch.finfo(real_dtype(upcast(system.k).dtype)).eps
    system = system.to(torch.float64)
    norms = _log_norms(system)
    core = fold(system)
    # Longest log product that ends at t, as a max-plus recurrence: m_t = max(m_{t-1}, 0) + log rho_t.
    steps = norms.expand(norms.shape[0], core.length, -1)
    best = associative_scan(lambda x, y: (x[0] + y[0], torch.maximum(x[1] + y[0], y[1])), (steps, steps))[1]
    growth = math.exp(min(700.0, max(0.0, float(best.max()))))
    scope, why = _scope(system, promised, rounding)
    quadratic = _quadratic(system) if constant_transition(system) and not _diagonal(system) else None
    return Stability(norms, growth, _gain(system, steps), scope, why, rounding, quadratic)


def _diagonal(system: System) -> bool:
    return system.f is None and system.transition is None


def _scope(system: System, promised: bool, rounding: float) -> tuple[str, str]:
    if system.decay_kind == "identity" and system.f is None:
        return "every input", "A = I"
    if constant_transition(system):
        return "every input", "A is constant"
    if promised and _diagonal(system):
        return "every input", "the layer promises that no decay exceeds 1: at most 1, whatever the input"
    parts = system.tensors()
    if _diagonal(system) and "rate" in parts and bool((parts["rate"] <= 0).all()):
        if bool((parts["log_decay"] >= 0).all()):
            return "every input", "decays are exp(dt A) with A <= 0: at most 1 for every input with dt >= 0"
    if system.f is not None and system.transition is None:
        found = _householder(system, rounding)
        if found is not None:
            return "this input", found
    return "this input", "transitions depend on the input, and nothing in their structure bounds them"


def _householder(system: System, rounding: float) -> str | None:
    """Say what holds for every input if f_t is a multiple of decay_t w_t, or of w_t itself; None if it is neither."""
    core = fold(system)
    assert core.f is not None and core.w is not None
    f, w = core.f, core.w.conj()
    log, unit = core.decay_log(), core.unit()
    D: Tensor | float = 1.0 if log is None else log.exp()
    D = D if unit is None else D * unit
    for direction, form, bound in (
        (D * w, "decay (I - c w w^T)", "2"),
        (w, "decay - c w w^T", "1 + the least decay of a step, and decays above 0"),
    ):
        c = -(f * direction.conj()).sum(-1) / direction.abs().square().sum(-1).clamp_min(1e-300)
        if float((f + c.unsqueeze(-1) * direction).abs().amax()) <= rounding * float(f.abs().amax()):
            size = (c * w.abs().square().sum(-1)).real
            return (
                f"A = {form} with c |w|^2 from {float(size.min()):.3g} to {float(size.max()):.3g} here; no step "
                f"amplifies for any input that keeps it between 0 and {bound}, with |decay| <= 1"
            )
    return None


def _log_norms(system: System) -> Tensor:
    """Compute log ||A_t||_2 of every micro-step, [B|1, T micro|1, H]."""
    core = fold(system)
    n, heads = core.n, core.heads

    def together(x: Tensor) -> Tensor:
        return x.expand(*x.shape[:2], *heads).flatten(2)

    if _diagonal(system):
        log = core.decay_log()
        return together(torch.zeros_like(core.k[:1, :1, ..., 0].real) if log is None else log.amax(-1))
    if core.f is not None and core.matrix is None and (core.decay_log() is None or system.decay_kind == "scalar"):
        return together(_rank_one(core.transition().base.spectrum(1)[..., 0], core.f, core.w, n))  # type: ignore[attr-defined]
    found = []
    length = 1 if constant_transition(system) else core.length
    tile = max(1, TILE // (core.batch * heads[0] * heads[1] * n * n))
    for start in range(0, length, tile):
        part = core if length == 1 else core.slice(start, min(length, start + tile))
        found.append(together(torch.linalg.matrix_norm(part.transition().dense(n), ord=2)))
    return torch.cat(found, 1).log()


def _rank_one(a: Tensor, f: Tensor, w: Any, n: int) -> Tensor:
    """Compute log ||a I + f w^T||_2: a on the complement of the plane of w* and f, a matrix of 2 x 2 on it."""
    W = w.abs().square().sum(-1).sqrt()
    along = (w * f).sum(-1) / W.clamp_min(1e-300)  # f = along w*/|w| + across e
    across = (f.abs().square().sum(-1) - along.abs().square()).clamp_min(0).sqrt()
    x, y = (a + along * W).abs(), across * W
    if n == 1:
        return x.log()
    z = a.abs()  # [[x, 0], [y, z]]: sigma_max^2 = (s + sqrt(s^2 - 4 x^2 z^2)) / 2, s = x^2 + y^2 + z^2
    root = ((x - z).square() + y.square()).sqrt() * ((x + z).square() + y.square()).sqrt()
    return ((x.square() + y.square() + z.square() + root) / 2).sqrt().log()


def _gain(system: System, log_norms: Tensor) -> float:
    """Make the scalar system that bounds ||S_t|| for ||v|| <= 1."""
    core = fold(system)
    k = core.k.abs().square().sum(-1).sqrt()
    k = k.expand(core.batch, core.length, *core.heads).flatten(2)
    b = system.gate("b", 1.0) if system.log_b is None else system.gate("log_b").exp()
    k = k * b.abs().expand(core.batch, core.length, -1)
    bound = System(None, k.unsqueeze(-1), None, log_decay=log_norms.expand_as(k).contiguous())
    y = run(bound)
    return float(y.max())


def _quadratic(system: System) -> tuple[float, float] | None:
    """Find r and c of ||A^t|| <= c r^t for all heads: A^* P A - P = -I gives V <- V - |S|^2 <= (1 - 1/||P||) V."""
    from scipy.linalg import solve_discrete_lyapunov

    A = token_transitions(system)[0, 0]
    if float(torch.linalg.eigvals(A).abs().max()) >= 1:
        return None
    worst = (0.0, 1.0)
    for head in A:
        P = torch.as_tensor(
            solve_discrete_lyapunov(head.mH.resolve_conj().cpu().numpy(), torch.eye(len(head)).double().numpy())
        )
        values = torch.linalg.eigvalsh((P + P.mH) / 2)
        low, high = float(values[0]), float(values[-1])
        worst = max(worst[0], math.sqrt(max(0.0, 1 - 1 / high))), max(worst[1], math.sqrt(high / low))
    return worst


# -- a perturbation, measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Perturbation:
    """What becomes of a small change of one token's embedding, through depth and time."""

    sizes: Tensor
    """||change of x_l at token t|| / eps, [L+1, T - at], mean over the batch; layer 0 is the embeddings."""
    at: int
    eps: float
    nonlinearity: float
    """Largest relative difference between the sizes for eps and for eps / 2, where they are not rounding: the error of
    reading them as derivatives."""

    @property
    def per_layer(self) -> float:
        """Mean growth of the logarithm a layer, of the change in all tokens together."""
        total = self.sizes.square().sum(1).sqrt()
        return float((total[-1] / total[0]).log()) / max(1, len(total) - 1)

    @property
    def per_token(self) -> float:
        """Slope of the logarithm of the change of the last layer against tokens after it (least squares; NaN if no
        token but the changed one feels it).
        """
        later = self.sizes[-1, 1:]
        felt = later > 0
        if int(felt.sum()) < 2:
            return math.nan
        t = torch.arange(1, len(later) + 1, dtype=later.dtype)[felt]
        y = later[felt].log()
        return float(((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum())

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "sizes": self.sizes.tolist(), "at": self.at, "eps": self.eps, "per_layer": self.per_layer,
            "per_token": self.per_token, "nonlinearity": self.nonlinearity,
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"a change of size {self.eps:g} at token {self.at}: at the end {float(self.sizes[-1, 0]):.4g} times as "
            f"large in its own token, {float(self.sizes[-1, -1]):.3g} in the last\n"
            f"log growth {self.per_layer:.4g} a layer, {self.per_token:.4g} a token; half the change differs by "
            f"{self.nonlinearity:.1g}"
        )


@torch.no_grad()
def perturbation(
    thing: nn.Module | Mix, inputs: Tensor, at: int = 0, eps: float = 1e-3, *, seed: int = 0
) -> Perturbation:
    """Change one token's embedding by eps in a random direction, and measure the change of every layer and token.

    Args:
        thing: a model (inputs: tokens [B,T]), or a layer or sequence of layers (inputs: x [B,T,d]).
        inputs: see above.
        at: the token changed.
        eps: the size of the change.
        seed: of its direction.

    Raises:
        StateformError: a token that is not there, an eps that is not positive.
    """
    T = inputs.shape[1]
    require(-T <= at < T, f"at is {at}; the input has the tokens 0..{T - 1}")
    require(eps > 0 and math.isfinite(eps), f"eps is {eps}; expected a number above 0")
    require_seed(seed)
    at %= T
    base = stream(thing, inputs)
    direction = torch.randn(base[0].shape[-1], generator=torch.Generator().manual_seed(seed)).to(base[0])
    nudge = torch.zeros(1, T, len(direction)).to(base[0])
    nudge[0, at] = direction / direction.norm()

    def measured(size: float) -> Tensor:
        moved = stream(thing, inputs, size * nudge)
        return torch.stack([(y - x)[:, at:].norm(dim=-1).mean(0) for x, y in zip(base, moved)]) / size

    sizes, half = measured(eps), measured(eps / 2)
    rounding = 64 * torch.finfo(sizes.dtype).eps * max(1.0, *(float(x.abs().max()) for x in base)) / eps
    clear = sizes > rounding
    off = ((sizes - half).abs() / sizes.clamp_min(1e-300))[clear]
    return Perturbation(sizes, at, eps, float(off.max()) if len(off) else 0.0)


# -- token dynamics of a selective SSM -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenDynamics:
    """Where the tokens of a deep stack of one selective SSM go, from S_C^T S_B alone."""

    eigenvalues: Tensor
    """Of S_C^T S_B, complex [d]: at most n of them are not zero."""

    @property
    def verdict(self) -> str:
        """converge | diverge | undecided (all eigenvalues zero or off the real line)."""
        size = float(self.eigenvalues.abs().max())
        real = self.eigenvalues[self.eigenvalues.imag.abs() <= 1e-9 * size].real
        if bool((real > 1e-9 * size).any()):
            return "diverge"
        return "converge" if bool((self.eigenvalues.real < -1e-9 * size).any()) else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        e = self.eigenvalues
        return {"real": e.real.tolist(), "imag": e.imag.tolist(), "verdict": self.verdict}

    def __str__(self) -> str:
        e = self.eigenvalues.real
        return (
            f"eigenvalues of S_C^T S_B from {float(e.min()):.3g} to {float(e.max()):.3g}, "
            f"{int((e > 1e-9 * e.abs().max()).sum())} above 0: tokens {self.verdict}\n"
            "premises: depth as continuous time, one selective SSM in all layers and nothing else (no convolution, "
            "gate, norm or direct term); proved for width 1, seen in simulations for more (arXiv 2410.03292)"
        )


@torch.no_grad()
def token_dynamics(S_B: Tensor | nn.Module, S_C: Tensor | None = None) -> TokenDynamics:
    """Tell if tokens converge to 0 or diverge with depth, by the eigenvalues of S_C^T S_B (arXiv 2410.03292).

    With B_j = S_B x_j and C_i = S_C x_i the weight of x_j in y_i holds x_i^T S_C^T S_B x_j. In width 1, mu = S_C^T S_B
    < 0 draws all tokens to 0 (as 1/sqrt(t)) and mu > 0 drives all to infinity. In more dimensions: any positive
    eigenvalue, they diverge; all negative, they converge. As S_C^T S_B has the rank of the state at most, the rest of
    its eigenvalues is 0 where the width is larger, and nothing moves along those.

    Args:
        S_B: the map to B, [n,d]; or a layer that keeps it as Mamba does, in x_proj (the inner width is d).
        S_C: the map to C, [n,d].
    """
    if not isinstance(S_B, Tensor):
        names = ("x_proj", "dt_rank", "d_state")
        require(all(hasattr(S_B, x) for x in names), f"a {type(S_B).__name__} has no x_proj to delta, B and C as Mamba "
                "has; give S_B and S_C [n,d]")  # fmt: skip
        layer: Any = S_B
        width = getattr(layer, "d_inner", None) or layer.x_proj.in_features
        unit = torch.cat([torch.zeros(1, width), torch.eye(width)]).to(next(layer.parameters()))
        none, *columns = layer.x_proj(unit)  # what the map does, whatever was put on it
        _, S_B, S_C = (torch.stack(columns, -1) - none.unsqueeze(-1)).split(
            [layer.dt_rank, layer.d_state, layer.d_state]
        )
    shapes = [list(x.shape) if isinstance(x, Tensor) else None for x in (S_B, S_C)]
    fits = shapes[0] is not None and len(shapes[0]) == 2 and shapes[0] == shapes[1]
    require(fits, f"S_B is {shapes[0]}, S_C {shapes[1]}; expected two matrices [n,d]")
    assert isinstance(S_B, Tensor) and isinstance(S_C, Tensor)
    require(not (S_B.is_complex() or S_C.is_complex()), "S_B or S_C is complex; the token dynamics are known for real "
            "maps alone: write the state as its real and imaginary part")  # fmt: skip
    return TokenDynamics(torch.linalg.eigvals(S_C.double().T @ S_B.double()))
