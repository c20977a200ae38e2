"""Rank collapse: do the tokens of a deep stack become all the same?

    mu(Y) = || Y - 1 gamma^T ||_F,  gamma = Y^T 1 / N          how far N tokens (the rows of Y) are from their mean
    Y^k = D( M Y C_V + lambda Y ),  Y = Y^{k-1}                a layer with a lambda-skip, D the norm of the rows

Source: lambda-skip connections (arXiv 2410.10609; its Theorem 4.1 is used as it is reported there: second-hand).

**Two tokens.** The simplest selective SSM has B_t = C_t = y_t and A_t = a: M = [[1, 0], [a c, 1]] with c = y_1^T y_2
for rows of norm one. Then y_1 goes to (1 + lambda) y_1 and y_2 to a c y_1 + (1 + lambda) y_2. With theta the angle
between the two, y_2 = (cos theta, sin theta) in the basis where y_1 = (1, 0), one layer gives

    tan theta -> (1 + lambda) / (1 + a + lambda) tan theta                      (up to the sign of y_1)

so tan theta -> 0 iff |1 + lambda| < |1 + a + lambda| iff (a > 0) lambda > -1 - a/2: for a = 1 the threshold is -3/2.
Below it the tokens become orthogonal. Above it they come to lie on one *line*: Y has rank one. They become the same
token, mu -> 0, only if lambda > -1 and c > 0 at the start; with c < 0 they become opposite, and for -3/2 < lambda < -1
y_1 turns round in every layer, so that mu alternates. `two_tokens` is this formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StateformError, require
from ...system import System
from .coefficients import has_weights
from .stream import Mix, frobenius, is_model, layers_of, mixed, stream

GRID = 33
"""Values of lambda that are tried before the bisection: it takes one crossing for granted, a grid shows others."""


def spread(Y: Tensor) -> Tensor:
    """Compute mu(Y) / ||Y||_F of tokens Y [...,T,d]: 0 if all are the same, 1 if their mean is 0."""
    size = frobenius(Y)
    return frobenius(Y - Y.mean(-2, keepdim=True)) / size.clamp_min(torch.finfo(size.dtype).tiny)


def two_tokens(theta: float, skip: float, depth: int, a: float = 1.0) -> float:
    """Compute the angle in [0, pi/2] between the lines of two tokens after `depth` layers (see the module)."""
    require(1 + skip != 0, "at lambda = -1 the first token becomes zero; take another lambda")
    if 1 + a + skip == 0:
        return math.pi / 2
    return math.atan(abs(((1 + skip) / (1 + a + skip)) ** depth * math.tan(theta)))


# -- through depth ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collapse:
    """mu(Y) / ||Y||_F through depth, from the input (0) to after the last layer."""

    with_skip: Tensor
    """[B,L+1], of the stack as it is."""
    without_skip: Tensor
    """[B,L+1], its layers without their skips."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers; means over the batch."""
        return {"with_skip": self.with_skip.mean(0).tolist(), "without_skip": self.without_skip.mean(0).tolist()}

    def __str__(self) -> str:
        def in_words(x: Tensor) -> str:
            return f"{float(x[:, 0].mean()):.3g} at the input, {float(x[:, -1].mean()):.3g} at the end"

        return (
            f"distance of the tokens from their mean, mu(Y)/||Y||, over {self.with_skip.shape[1] - 1} layers\n"
            f"  with skips    {in_words(self.with_skip)}\n  without skips {in_words(self.without_skip)}"
        )


@torch.no_grad()
def collapse(thing: nn.Module | Mix | Sequence[Mix], inputs: Tensor, *, skip: float = 1.0) -> Collapse:
    """Measure how far the tokens are from all being the same, through depth, with and without skip connections.

    Args:
        thing: a model (its residual stream as it is; without skips each block is mlp(norm(mixer(norm(x))))); or a layer
            or a sequence of layers, each Y -> norm(layer(Y) + skip Y) with rows of norm sqrt(d), skip = 0 beside it.
            A layer may be a function that gives a System, also one that is not causal.
        inputs: the tokens [B,T] of a model, Y [B,T,d] of layers.
        skip: lambda, for layers.

    Raises:
        StateformError: fewer than two tokens, a model in training with dropout, a stack whose shapes do not fit.
    """
    require(inputs.ndim >= 2 and inputs.shape[1] >= 2, "collapse compares tokens: give at least two, [B,T,...]")
    if not is_model(thing):
        layers = layers_of(thing)
        return Collapse(_spreads(lambda_skip(layers, inputs, skip)), _spreads(lambda_skip(layers, inputs, 0.0)))
    as_is = stream(thing, inputs)
    blocks: Any = thing.blocks  # type: ignore[union-attr]
    return Collapse(_spreads(as_is), _spreads(stream([_bare(block) for block in blocks], as_is[0])))


def lambda_skip(layers: Sequence[Mix], Y: Tensor, skip: float) -> list[Tensor]:
    """Compute Y^0, ..., Y^K with Y^k = D(layer(Y) + lambda Y) of Y = Y^{k-1}, D the division of rows by their root mean
    square (a LayerNorm without shift and scale, arXiv 2410.10609).
    """
    Ys = [_rows(Y)]
    for layer in layers:
        Ys.append(_rows(mixed(layer, Ys[-1]) + skip * Ys[-1]))
    return Ys


def _rows(Y: Tensor) -> Tensor:
    size = Y.abs().square().mean(-1, keepdim=True).sqrt()
    return Y / size.clamp_min(torch.finfo(size.dtype).tiny)


def _bare(block: Any) -> Mix:
    """Take a block without its skips."""

    def layer(x: Tensor) -> Tensor:
        y = mixed(block.mixer, block.mixer_norm(x))
        mlp: Tensor = y if block.mlp is None else block.mlp(block.mlp_norm(y))
        return mlp

    return layer


def _spreads(Ys: list[Tensor]) -> Tensor:
    return torch.stack([spread(Y) for Y in Ys], 1)


# -- the lambda that is enough ---------------------------------------------------------------------------------------


def sufficient_skip(a: float, S: float, C_M: float, start: float = 0.0) -> float:
    """Compute the |lambda| above which lambda^2 - a (S C_M + |lambda|)^2 > 2 |lambda| start S C_M, for 0 < a < 1.

    Without a start it is (a + sqrt a) / (1 - a) S C_M, of the first condition; with start = N d / (a^K mu(Y^0)^2)
    it is where the second one, mu(Y^0)^2 >= least, holds too.
    """
    require(0 < a < 1, f"a is {a}; expected a number between 0 and 1: the share of mu^2 that a layer keeps")
    return (a + start + math.sqrt((a + start) ** 2 + a * (1 - a))) / (1 - a) * S * C_M


@dataclass(frozen=True)
class SkipBound:
    """The lambda-skip condition for one stack and input, and what was measured beside it.

    Theorem 4.1 of arXiv 2410.10609: with |lambda| > `needed` and mu(Y^0)^2 >= `least`, mu(Y^K)^2 >= a^K mu(Y^0)^2. The
    bound is known to be very conservative; `measured` says how much, here.
    """

    a: float
    C_M: float
    """Largest ||M||_F of a layer on this input (heads together, root of the sum of squares)."""
    S: float
    """What was given for ||C_V||_F, else the largest measured ||layer(Y)||_F / (C_M ||Y||_F): on this input."""
    needed: float
    """The |lambda| that is enough."""
    skip: float
    """The lambda of the stack at hand."""
    least: float
    """What mu(Y^0)^2 must be at least for the theorem to say something of `skip`; inf if |skip| <= needed."""
    start: float
    """mu(Y^0)^2, the least of the batch."""
    measured: float
    """The least lambda >= 0 from which on mu(Y^K)^2 >= a^K mu(Y^0)^2 was seen to hold; NaN if at none up to the top."""
    tested: tuple[float, float]
    """Range of lambda that was tried, and how exactly `measured` is known."""
    enough: float
    """The |lambda| beyond which both conditions hold for this start: what the theorem really asks for."""

    @property
    def holds(self) -> bool:
        """True if the theorem promises that the stack at hand does not collapse."""
        return abs(self.skip) > self.needed and self.start >= self.least

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        names = ("a", "C_M", "S", "needed", "enough", "skip", "least", "start", "measured", "holds")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        promise = "is promised not to collapse" if self.holds else "has no promise"
        seen = f"{self.measured:.4g}" if math.isfinite(self.measured) else f"none up to {self.tested[0]:.3g}"
        return (
            f"enough, by the theorem: |lambda| > {self.needed:.4g}, and for this start > {self.enough:.4g}  "
            f"(a = {self.a:.4g}, C_M = {self.C_M:.3g}, S = {self.S:.3g}); the stack, at lambda = {self.skip:g}, "
            f"{promise}\n"
            f"enough, measured on this input: lambda >= {seen} (the bound is known to be very conservative)"
        )


@torch.no_grad()
def skip_bound(
    thing: nn.Module | Mix | Sequence[Mix],
    inputs: Tensor,
    *,
    a: float = 0.25,
    skip: float = 1.0,
    S: float | None = None,
    top: float = 64.0,
    tolerance: float = 1e-3,
) -> SkipBound:
    """Evaluate the sufficient condition against rank collapse, and measure the least lambda that is enough.

    Of a model the stack is that of its mixers, without its norms, gates of the blocks and MLPs: the theorem knows none.

    Args:
        thing: a model, a layer or a sequence of layers (functions that give a System too).
        inputs: tokens [B,T] of a model, or Y^0 [B,T,d].
        a: the share of mu^2 that each layer is to keep, between 0 and 1.
        skip: lambda of the stack at hand.
        S: ||C_V||_F, if known (SSMs: C_V = I; attention: the value map). Without it, the measured gain is taken, which
            is not a bound for other inputs.
        top: the largest lambda tried.
        tolerance: of the bisection.

    Raises:
        StateformError: as `collapse`; layers without scalar coefficients if S is given.
    """
    require(inputs.ndim >= 2 and inputs.shape[1] >= 2, "collapse compares tokens: give at least two, [B,T,...]")
    require(top > 0 and tolerance > 0, f"top and tolerance are {top} and {tolerance}; expected numbers above 0")
    sufficient_skip(a, 0.0, 0.0)
    if is_model(thing):
        blocks: Any = thing.blocks  # type: ignore[union-attr]
        layers, Y = [block.mixer for block in blocks], stream(thing, inputs)[0]
    else:
        layers, Y = layers_of(thing), inputs

    def keeps_apart(value: float) -> bool:
        Ys = lambda_skip(layers, Y, value)
        before, after = (frobenius(x - x.mean(-2, keepdim=True)).square() for x in (Ys[0], Ys[-1]))
        return bool((after >= a ** len(layers) * before).all())

    Ys = lambda_skip(layers, Y, skip)
    C_M = max(float(_size_of_M(layer, x).max()) for layer, x in zip(layers, Ys))
    gain = max(float((frobenius(mixed(layer, x)) / frobenius(x)).max()) for layer, x in zip(layers, Ys))
    S = gain / C_M if S is None else S
    N, d = Y.shape[-2:]
    start = float(frobenius(Ys[0] - Ys[0].mean(-2, keepdim=True)).square().min())
    margin = skip**2 - a * (S * C_M + abs(skip)) ** 2
    least = 2 * abs(skip) * N * d * S * C_M / margin / a ** len(layers) if margin > 0 else math.inf
    enough = sufficient_skip(a, S, C_M, N * d / (a ** len(layers) * start)) if start > 0 else math.inf
    measured = _least_skip(keeps_apart, top, tolerance)
    return SkipBound(a, C_M, S, sufficient_skip(a, S, C_M), skip, least, start, measured, (top, tolerance), enough)


def _size_of_M(layer: Mix, Y: Tensor) -> Tensor:
    """Compute ||M||_F of one layer on Y [B]: of all heads together."""
    found = layer(Y) if not hasattr(layer, "system") else layer.system(Y)
    if not isinstance(found, System) or not has_weights(found):
        raise StateformError(
            "a layer has no scalar coefficients M (y_i = sum_j M_ij v_j): ||M||_F is not defined; give layers whose "
            "System has values v and a plain q"
        )
    return frobenius(found.coefficients()).square().sum(1).sqrt()


def _least_skip(keeps_apart: Any, top: float, tolerance: float) -> float:
    """Find the least lambda in [0, top] from which on `keeps_apart` holds, by grid and bisection; NaN if not at top."""
    grid = [0.0, *(top * 2.0 ** (-(GRID - 2 - i) / 3) for i in range(GRID - 1))]
    if not keeps_apart(top):
        return math.nan
    low = next((x for x in reversed(grid[:-1]) if not keeps_apart(x)), None)
    if low is None:
        return 0.0
    high = grid[grid.index(low) + 1]
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if keeps_apart(middle) else (middle, high)
    return high
