"""Eigenvalues and norms of the transitions on real input, and the products of decays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import require, require_seed
from ...system import System
from ...system.core import fold
from ...system.shapes import indices


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of A_t at some tokens."""

    eigenvalues: Tensor
    """Complex, [B|1, steps, H, n]."""
    norm: float
    """Largest operator norm ||A_t||_2 seen: at most 1 means that no state grows in a step."""

    @property
    def radius(self) -> float:
        """Largest modulus."""
        return float(self.eigenvalues.abs().max())

    @property
    def smallest(self) -> float:
        """Least modulus."""
        return float(self.eigenvalues.abs().min())

    @property
    def is_complex(self) -> bool:
        """True if an eigenvalue lies off the real line."""
        e = self.eigenvalues
        return bool((e.imag.abs() > 1e-6 * e.abs().clamp_min(1e-12)).any())

    def real_range(self) -> tuple[float, float]:
        """Find the least and the largest real part."""
        return float(self.eigenvalues.real.min()), float(self.eigenvalues.real.max())

    def half_life(self) -> Tensor:
        """Count the tokens (micro-steps) after which an eigenvalue alone has halved what is kept, ln 2 / -ln |lambda|,
        in the shape of `eigenvalues`: 0 for an eigenvalue of 0, inf for a modulus of 1 or more.
        """
        rate = -self.eigenvalues.abs().log()
        return torch.where(rate > 0, math.log(2) / rate, torch.inf)

    def half_life_per_head(self) -> list[float]:
        """Take the median over batch, steps and keys of each head, [H]."""
        return [
            float(x) for x in self.half_life().double().movedim(2, 0).flatten(1).quantile(0.5, 1, interpolation="lower")
        ]

    def distribution(self, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> dict[float, list[float]]:
        """Compute quantiles of the modulus over batch, steps and keys, for each head."""
        moduli = self.eigenvalues.abs().double().movedim(2, 0).flatten(1)
        return {q: [float(x) for x in moduli.quantile(q, 1)] for q in quantiles}

    def __str__(self) -> str:
        low, high = self.real_range()
        where = "complex" if self.is_complex else f"real, {low:.4g} to {high:.4g}"
        lives = ", ".join(f"{x:.3g}" for x in self.half_life_per_head()[:16])
        return (
            f"{self.eigenvalues.numel()} eigenvalues, {where}, modulus {self.smallest:.4g} to {self.radius:.4g}; "
            f"largest norm of a transition {self.norm:.4g}\nmedian half-life per head, in steps: {lives}"
        )

    def sample(self, size: int, seed: int = 0) -> Tensor:
        """Draw at most `size` eigenvalues, without replacement."""
        require_seed(seed)
        flat = self.eigenvalues.flatten()
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:size]
        return flat[order.to(flat.device)]

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        low, high = self.real_range()
        return {
            "abs_min": self.smallest, "abs_max": self.radius, "real_min": low, "real_max": high,
            "complex": self.is_complex,
        }  # fmt: skip


@torch.no_grad()
def spectrum(system: System, tokens: Sequence[int] | None = None) -> Spectrum:
    """Compute the eigenvalues of A_t at the tokens given (default: up to 32 spread evenly).

    With readout "exp" A_t = I; what is given there is eta_{t-1}/eta_t, the eigenvalue in the DSF's coordinates
    (arXiv 2405.15731 eq. 15, 2510.09379), from the first tokens up to the last one asked for.

    Args:
        system: any system.
        tokens: indices into time.
    """
    T = system.T
    require(T > 0, "an empty sequence has no transitions")
    index = list(tokens) if tokens is not None else sorted({int(t) for t in torch.linspace(0, T - 1, 32)})
    require(all(0 <= t < T for t in index), f"tokens {index} are not all among the {T} of the system")
    if system.readout.cached:
        ratio = system[: max(index) + 1].spectrum(normalised=True)[:, index]
        return Spectrum(ratio, 1.0)
    at = torch.tensor(index, device=system.device)
    chosen = system.gather(lambda x, r: x.unflatten(1, (-1, r))[:, at].flatten(1, 2))
    values = chosen.spectrum()
    return Spectrum(values, _norm(chosen, values))


def _norm(system: System, values: Tensor) -> float:
    if system.f is None and system.transition is None:
        return float(values.abs().max())  # a diagonal matrix
    core = fold(system)
    return float(torch.linalg.matrix_norm(core.transition().dense(system.n), ord=2).max())


@dataclass(frozen=True)
class Retention:
    """What the open-loop decay leaves of a write after d tokens, |a_i ... a_{i-d+1}|."""

    products: Tensor
    """[B|1,queries,lags,H|1,n|1] for the lags d = 1, 2, ...; 0 where there are fewer tokens before the query."""
    queries: list[int]

    def half_life(self) -> Tensor:
        """Find the first lag at which half or less is left, [B|1,queries,H|1,n|1]; inf where it never is in reach."""
        lags, reach = self.products.shape[2], torch.tensor(self.queries, device=self.products.device)
        d = torch.arange(1, lags + 1, device=reach.device)[:, None, None]
        known = d <= reach[:, None, None, None] + 1
        halved = (self.products <= 0.5) & known
        return torch.where(halved, d.double(), torch.inf).amin(2)

    def per_head(self) -> list[float]:
        """Take the median half-life over batch, queries and keys of each head."""
        return [float(x) for x in self.half_life().movedim(2, 0).flatten(1).quantile(0.5, 1, interpolation="lower")]

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers; a half-life out of reach is None."""
        median = self.products.double().transpose(2, 3).flatten(0, 1).movedim(1, 0).movedim(2, 1)  # [H,lags,..]
        curve = median.flatten(2).quantile(0.5, 2)
        return {
            "half_life": [None if math.isinf(x) else x for x in self.per_head()],
            "left": curve.tolist(), "t": list(self.queries),
        }  # fmt: skip

    def __str__(self) -> str:
        lives = ", ".join("more" if math.isinf(x) else f"{x:.0f}" for x in self.per_head()[:16])
        lags = self.products.shape[2]
        return f"half of a write is left after (tokens, median per head; looked at up to {lags}): {lives}"


@torch.no_grad()
def retention(system: System, *, lags: int = 256, queries: Sequence[int] | None = None) -> Retention:
    """Compute the products of the decays over the last d tokens, d = 1..lags: exp(g_i + ... + g_{i-d+1}) for each key.

    Of the decay alone: what feedback erases as well is in `impulse_response`. Every exponent is the sum over the steps
    between, never a difference of cumulative sums. Memory queries x lags.

    Args:
        system: with a linear readout and no dense transition. Micro-steps of one token are taken together.
        lags: tokens later.
        queries: tokens i (default: up to 32 spread over the second half).

    Raises:
        StateformError: a softmax (nothing decays in its cache) or a dense transition.
    """
    require(not system.readout.cached and system.transition is None,
            "retention is the product of open-loop decays: a cache has none, and dense transitions have no decay for "
            "each key; use impulse_response(system, token)")  # fmt: skip
    require(isinstance(lags, int) and lags >= 1, f"lags is {lags!r}; expected a number of tokens, 1 or more")
    T = system.T
    require(T > 0, "an empty sequence has no decays")
    chosen = (
        sorted({int(t) for t in torch.linspace(T // 2, T - 1, 32)})
        if queries is None
        else indices(queries, T, "queries")
    )
    core, lags = fold(system), min(lags, T)
    log = core.decay_log()
    if log is None:
        log = torch.zeros_like(core.k[:1, :1, :1, :1, :1].real)
    g = log.expand(log.shape[0], core.length, *log.shape[2:]).flatten(2, 3)  # [B|1,T*micro,H|1,n|1]
    g = g.unflatten(1, (T, system.micro)).sum(2)
    back = torch.tensor(chosen, device=g.device)[:, None] - torch.arange(lags, device=g.device)
    steps = g[:, back.clamp_min(0)]  # [B,queries,lags,H,n]
    left = steps.cumsum(2).exp()
    return Retention(torch.where(back[None, :, :, None, None] >= 0, left, 0.0), chosen)
