"""Gradient paths: how much of dy_i/du_j is left after i - j tokens.

Attention reads every token directly, so its gradients need not fade with distance; stable linear dynamics attenuate
them as ||A_i ... A_{j+1}|| (arXiv 2512.15115). Two laws are fitted, by least squares on the logarithms:

    exponential     g(d) = c exp(-d / tau)          power     g(d) = c d^(-p)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require
from ...system import System
from ...system.shapes import indices
from ..attention.coefficients import influence, tokens_back
from ..attention.stream import is_model, stream
from ..state.memory import horizon


@dataclass(frozen=True)
class Fit:
    """One law through the gradients: `value` is tau (tokens) or p."""

    value: float
    error: float
    """Standard error of the rate (1 / tau, or p) in the fit: what the law leaves unexplained, not what text would."""
    r2: float
    """Share of the variance of log g that the law explains: 1 is a perfect line."""


@dataclass(frozen=True)
class GradientPaths:
    """||dy_i/du_j|| against distance."""

    norms: Tensor
    """Operator norm (layers, models) or influence |alpha_ij| (a System), [B,H,queries,T]; H = 1 for layers."""
    queries: list[int]
    name: str = ""

    @property
    def by_distance(self) -> Tensor:
        """Geometric mean over batch, heads and queries at each distance [largest query + 1]; 0 where all are."""
        T = max(self.queries) + 1
        total, count = torch.zeros(T, dtype=torch.float64), torch.zeros(T, dtype=torch.float64)
        for row, i in enumerate(self.queries):
            g = self.norms[..., row, : i + 1].flip(-1).flatten(0, 1).double().cpu()
            felt = g > 0
            total[: i + 1] += torch.where(felt, g, 1.0).log().sum(0)
            count[: i + 1] += felt.sum(0)
        return torch.where(count > 0, (total / count.clamp_min(1)).exp(), 0.0)

    def _fit(self, power: bool) -> Fit:
        g = self.by_distance
        d = torch.arange(len(g), dtype=torch.float64)
        # What is below rounding of the largest says nothing about a law.
        used = (d > 0) & (g > g.max() * 64 * torch.finfo(self.norms.dtype).eps)
        if int(used.sum()) < 3:
            return Fit(math.nan, math.nan, math.nan)
        x, y = (d[used].log() if power else d[used]), g[used].log()
        dx, dy = x - x.mean(), y - y.mean()
        rate = -float((dx * dy).sum() / dx.square().sum())
        left = float((dy + rate * dx).square().sum())
        error = math.sqrt(left / (len(x) - 2) / float(dx.square().sum()))
        whole = float(dy.square().sum())
        flat = whole <= len(x) * 1e-24  # nothing varies: the law with rate 0 is exact
        r2 = 1.0 if flat else 1 - left / whole
        return Fit(rate if power else math.inf if rate == 0 else 1 / rate, error, r2)

    @property
    def exponential(self) -> Fit:
        """tau of c exp(-d / tau); negative where gradients grow with distance."""
        return self._fit(power=False)

    @property
    def power(self) -> Fit:
        """p of c d^(-p)."""
        return self._fit(power=True)

    @property
    def law(self) -> str:
        """The one of the two laws that explains more."""
        e, p = self.exponential.r2, self.power.r2
        return "too few distances" if math.isnan(e) else "exponential" if e >= p else "power"

    def receptive_field(self, share: float = 0.95) -> float:
        """Count the tokens back that hold `share` of sum_j ||dy_i/du_j||: median over batch, heads and queries."""
        require(0 < share <= 1, f"share is {share}; expected a number above 0, at most 1")
        return float(tokens_back(self.norms.double(), self.queries, share).double().median())

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        e, p = self.exponential, self.power
        return {
            "by_distance": self.by_distance.tolist(), "law": self.law, "tau": e.value, "tau_r2": e.r2, "p": p.value,
            "p_r2": p.r2, "receptive_field": self.receptive_field(),
        }  # fmt: skip

    def __str__(self) -> str:
        g, e, p = self.by_distance, self.exponential, self.power
        far = float(g[-1] / g[0]) if float(g[0]) > 0 else math.nan
        return (
            f"{self.name or 'gradients'}: after {len(g) - 1} tokens {far:.3g} of the gradient at distance 0 is left; "
            f"{self.law} fits better\n"
            f"exp(-d/tau): tau = {e.value:.4g} tokens (R2 {e.r2:.3f}); d^-p: p = {p.value:.3g} +- {p.error:.1g} "
            f"(R2 {p.r2:.3f}); 95% within {self.receptive_field():.0f} tokens"
        )


def gradient_paths(
    thing: System | nn.Module,
    u: Tensor | None = None,
    *,
    queries: Sequence[int] | None = None,
    limit: float = 1e9,
    name: str = "",
) -> GradientPaths:
    """Compute ||dy_i/du_j|| of a System, a layer, or a model's residual stream.

    Of a System it is the influence of its values, |alpha_ij| (with everything else held: exact and linear). Of a layer
    it is the operator norm of the whole Jacobian block, gates, keys and convolutions included, by reverse
    differentiation: d_model passes over the layer for each query. Of a model, y is the last layer's residual stream and
    u the embeddings.

    Args:
        thing: see above.
        u: the input [B,T,d_model] of a layer, the tokens [B,T] of a model.
        queries: the tokens i (default: up to 4 spread over the second half).
        limit: bytes allowed for the Jacobian blocks.
        name: of the curve.

    Raises:
        StateformError: an input that is missing, a result too large, a query that is not there, a System that is not
            causal.
    """
    if isinstance(thing, System):
        require(u is None, "a System holds its input already; leave out u")
        require(thing.causal, "distances into the past need a causal system; see influence(system)")
        index = _queries(queries, thing.T)
        with torch.no_grad():
            return GradientPaths(influence(thing, queries=index).abs(), index, name)
    require(isinstance(u, Tensor), "give the input: u [B,T,d_model] of a layer, or the tokens [B,T] of a model")
    assert isinstance(u, Tensor)
    B, T = u.shape[:2]
    index = _queries(queries, T)
    one = stream(thing, u[:1, :1])[0] if is_model(thing) else u  # a token tells the width
    d = one.shape[-1]
    size = B * len(index) * T * d * d * one.element_size()
    require(size <= limit, f"the Jacobian blocks [{B},{len(index)},{T},{d},{d}] would take {size / 1e9:.2g} GB; the "
            f"limit is {limit / 1e9:.2g} GB: choose fewer queries=, a shorter input, or limit=")  # fmt: skip
    nudge = torch.zeros(B, T, d, dtype=one.dtype, device=one.device).requires_grad_()
    y = stream(thing, u, nudge)[-1] if is_model(thing) else thing(u.detach() + nudge)
    y = y[0] if isinstance(y, tuple) else y
    norms = []
    for i in index:
        rows = [torch.autograd.grad(y[:, i, o].sum(), nudge, retain_graph=True)[0] for o in range(d)]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows, -2), ord=2))  # [B,T,d,d] to [B,T]
    return GradientPaths(torch.stack(norms, 1).unsqueeze(1).detach(), index, name)


def _queries(given: Sequence[int] | None, T: int) -> list[int]:
    require(T > 0, "an empty sequence has no gradients")
    return (
        indices(given, T, "queries")
        if given is not None
        else sorted({int(t) for t in torch.linspace(T // 2, T - 1, 4)})
    )


@dataclass(frozen=True)
class MeasuredReach:
    """How far back a layer looks: measured by its Jacobian, and predicted by the horizon of its System."""

    measured: float
    """Tokens that hold `share` of the Jacobian's norms, short convolutions and gates included."""
    predicted: float
    """Median horizon of its heads, of the coefficients alone."""
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"measured": self.measured, "predicted": self.predicted, "share": self.share}

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} within {self.measured:.0f} tokens by the Jacobian, {self.predicted:.0f} by the horizon "
            "of the System"
        )


def receptive_fields(
    layer: Any, u: Tensor, *, share: float = 0.95, queries: Sequence[int] | None = None
) -> MeasuredReach:
    """Measure the receptive field of a layer on u [B,T,d_model] by the Jacobian, and predict it by `horizon`."""
    paths = gradient_paths(layer, u, queries=queries)
    with torch.no_grad():
        predicted = horizon(layer.system(u), share=share, queries=paths.queries).quantile(0.5)
    return MeasuredReach(paths.receptive_field(share), predicted, share)
