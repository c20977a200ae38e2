"""A time-varying system with fewer states, and how far off it can be: balanced truncation of one head on one input.

The operator Phi of a head is read from the last row to the first, its past of each t as H_t = Phi[t:, :t] = U_t R_t +
what was dropped, U_t with orthonormal columns. The row of one more token gives

    Z_t = [ Phi[t, :t] ; R_{t+1}[:, :t] ] = W_t W_t^T Z_t + dropped_t,      W_t = [ c_t ; A_t ],   R_t = W_t^T Z_t

so x_{t+1} = A_t x_t + b_t v_t with b_t = R_{t+1}[:, t], and y_t = c_t x_t + Phi_tt v_t, the diagonal as it was. What is
dropped at one t is orthogonal to what is kept, and to what is dropped at any other, hence

    ||Phi - Phi'||_F^2 = sum_t ||dropped_t||_F^2      exactly, and      ||y - y'|| <= ||Phi - Phi'||_F ||v||.

The new system is contractive: c_t^T c_t + A_t^T A_t = I. For a linear readout R_t = G_t C_t, with C_t = L_t E_t the
reachability of the old state and E_t orthonormal: only G_t L_t is ever needed, and memory is linear in T.
Source: Dewilde and van der Veen, Time-Varying Systems and Computations (1998), chapter 5 (realisation) and 10
(reduction); Chandrasekaran et al., sequentially semiseparable representations (2005).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..analysis.state.by_factors import as_real
from ..analysis.state.by_rows import left_factors
from ..analysis.state.state_need import state_need
from ..errors import require
from ..forms.stabilise import stabilise
from ..system import System
from ..system.precision import tolerance
from .certificate import Conversion, certify, check_system, reference


@dataclass(frozen=True)
class VaryingReduction(Conversion):
    """The reduced system, and the error that its construction guarantees."""

    orders: Tensor
    """States of each head, [B,H]; the system's n is the largest."""
    bound: Tensor
    """||Phi - Phi'||_F, [B,H]: each output channel is off by no more than this times ||v|| of that channel."""
    norm: Tensor
    """||Phi||_F, [B,H]."""

    @property
    def relative(self) -> Tensor:
        """||Phi - Phi'||_F / ||Phi||_F, [B,H]."""
        return self.bound / self.norm.clamp_min(torch.finfo(self.norm.dtype).tiny)


@torch.no_grad()
def reduce_varying(
    system: System, tol: float = 1e-2, *, order: int | None = None, limit: float = 1e9
) -> VaryingReduction:  # fmt: skip
    """Find a System with as few states as an error allows, for the operator of each head on this input.

    The states are found by truncation to one order at all t, the least that keeps the error; the least that any
    method could do with is `analysis.state_need(system, tol, relative="operator")`.

    Args:
        system: causal, with scalar weights of real values (readout "exp" included), from a zero state.
        tol: ||Phi - Phi'||_F over ||Phi||_F allowed, in each row and head.
        order: this many states at most instead, with whatever error that has.
        limit: bytes allowed for the operator (readout "exp") or for the matrices of all tokens.

    Returns:
        The system with a dense transition [B,T,H,n',n'], exclusive read and exact diagonal d. The certificate measures
        its outputs against those of `system`, and allows them what the bound does (and rounding).

    Raises:
        StateformError: a system that this construction does not cover, or too much memory.
    """
    check_system(system, "reduce_varying")
    require(system.causal, "a state carries the past to the future; this system is not causal")
    scalar = system.q is not None and system.q.ndim in (2, 4)
    given = (
        "vector states (v = None)" if system.v is None
        else f"{system.micro} writes a token" if scalar
        else "reads of the whole state" if system.q is None
        else "reads with an output axis"
    )  # fmt: skip
    require(
        system.v is not None and scalar and system.micro == 1,
        f"a system that varies in time is reduced by its weights of values; expected a value v, one write and one read "
        f"a token, this one has {given}",
    )
    assert system.v is not None
    require(not system.v.is_complex(), "the values are complex; give their real and imaginary parts side by side")
    require(isinstance(tol, float | int) and 0 < tol < 1, f"tol is {tol!r}; expected a number between 0 and 1")
    require(order is None or (isinstance(order, int) and order >= 1), f"order is {order!r}; expected 1 or more")
    require(system.B * system.T > 0, "an empty sequence has nothing to reduce")
    double = system.to(torch.float64)
    steps = _Weights(double, limit) if system.readout.cached else _States(double, limit)
    if order is not None:
        orders = torch.full((system.B, system.H), min(order, steps.most), device=system.device)
    else:
        least = state_need(double, max(tol, 1e-10), relative="operator", splits=16, limit=limit)
        orders = _least(steps, least.ranks()[0].amax(-1) if least.splits else torch.ones_like(least.need), tol)
    q, A, k, dropped = _sweep(steps, orders)
    new = System(q, k, double.v, transition=A, d=steps.diagonal, exclusive=True)
    new = replace(new.to(system.dtype), v=system.v)
    bound, norm = dropped.sqrt(), steps.squares.sqrt()
    rounding = tolerance(system.dtype, system.T)
    channels = double.v.expand(system.B, -1, -1, -1).square().sum(1).amax(-1).sqrt()  # type: ignore[union-attr]
    channels = channels.repeat_interleave(system.H // channels.shape[1], 1)
    largest = float(reference(double).abs().amax().clamp_min(torch.finfo(torch.float64).tiny))
    text = f"{int(orders.max())} states for {steps.most if not system.readout.cached else f'a cache of {system.T}'}"
    text += f", operator off by at most {float((bound / norm.clamp_min(1e-300)).max()):.2g} of its Frobenius norm"
    found = certify(new, system, text, rtol=float((bound * channels).max()) / largest + rounding)
    return VaryingReduction(new, system, False, found.certificate, found.errors, text, orders, bound, norm)


def _least(steps: _Weights | _States, guess: Tensor, tol: float) -> Tensor:
    """Find the least orders [B,H] whose error is within tol, by doubling and halving from a guess."""
    allowed = tol**2 * steps.squares
    orders = guess.clamp(1, steps.most)
    fails, works = torch.zeros_like(orders), torch.full_like(orders, steps.most)
    while True:
        # All of the states, or as many as the longest split has tokens, leave nothing out but rounding.
        enough = (_sweep(steps, orders)[3] <= allowed) | (orders >= steps.most)
        works = torch.where(enough, torch.minimum(works, orders), works)
        fails = torch.where(enough, fails, torch.maximum(fails, orders))
        if bool((works - fails <= 1).all()):
            return works
        known = (works < steps.most) | enough
        orders = torch.where(known, (works + fails + 1) // 2, (2 * orders).clamp_max(steps.most))
        orders = torch.where(works - fails <= 1, works, torch.minimum(orders, works))


def _sweep(steps: _Weights | _States, orders: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute c, A, b [B,T,H,...] of at most `orders` states [B,H], and the squares left out [B,H]."""
    B, H, T = *orders.shape, steps.T
    m = int(orders.max())
    G, dropped = steps.nothing(m), torch.zeros_like(steps.squares)
    kept = torch.arange(m, device=orders.device) < orders.unsqueeze(-1)  # [B,H,m]
    c, A, b = (G.new_zeros(T, B, H, *shape) for shape in ((m,), (m, m), (m,)))
    for t in range(T - 1, -1, -1):
        b[t] = steps.write(G, t)
        if t == 0:
            break
        Z = torch.cat([steps.row(t), steps.back(G, t)], -2)
        W, sigma = left_factors(steps.sized(Z, t))
        width = m - min(m, sigma.shape[-1])
        W = F.pad(W[..., :m], (0, width)) * kept.unsqueeze(-2)
        rest = F.pad(sigma.square(), (0, width)) * ~F.pad(kept, (0, sigma.shape[-1] + width - m))
        dropped = dropped + rest.sum(-1)
        c[t], A[t] = W[..., 0, :], W[..., 1:, :]
        G = W.mT @ Z
    return c.transpose(0, 1), A.transpose(0, 1), b.transpose(0, 1), dropped


class _Weights:
    """An operator that is there as its weights: the past at t is its t tokens."""

    def __init__(self, system: System, limit: float) -> None:
        size = 8.0 * system.B * system.H * system.T**2
        require(size <= limit, f"the operator [{system.B},{system.H},{system.T},{system.T}] of a cache would take "
                f"{size / 1e9:.2g} GB; the limit is {limit / 1e9:.2g} GB: reduce a shorter stretch system[start:stop], "
                "some heads, system.select_heads([...]), or give reduce_varying a limit=")  # fmt: skip
        self.alpha = system.coefficients(limit=limit)
        self.T, self.most = system.T, max(1, system.T // 2)
        self.squares = self.alpha.square().sum((-2, -1))
        self.diagonal = self.alpha.diagonal(dim1=-2, dim2=-1).transpose(1, 2)

    def nothing(self, m: int) -> Tensor:
        return self.alpha.new_zeros(*self.alpha.shape[:2], m, self.T)

    def row(self, t: int) -> Tensor:
        return self.alpha[:, :, t : t + 1, :t]

    def back(self, G: Tensor, t: int) -> Tensor:
        return G[..., :t]

    def write(self, G: Tensor, t: int) -> Tensor:
        return G[..., t]

    def sized(self, Z: Tensor, t: int) -> Tensor:
        return Z


class _States:
    """An operator with a state: the past at t is x_t = L_t (something orthonormal)."""

    def __init__(self, system: System, limit: float) -> None:
        assert system.v is not None
        self.T = system.T
        system = replace(system, v=system.v[..., :1])  # the values do not matter, only their weights
        if system.log_b is not None:
            exponential = system.eta == "sum"
            system = stabilise(system)[0] if exponential else replace(system, b=system.log_b.exp(), log_b=None)
        x = system.matrices(limit=limit)
        A, b, c, D = x.Lambda, x.B, x.C, x.D
        if not x.exclusive:  # y_t = c (A x + b v) + D v, read before the write
            c, D = c @ A, c @ b + D
        if any(y.is_complex() for y in (A, b, c)):
            D = D.real if D.is_complex() else D
            c, b, A = as_real(c, b, A)
        self.A, self.b, self.c = (y.movedim(1, 0) for y in (A, b, c))
        self.diagonal, self.most = D.squeeze((-2, -1)), A.shape[-1]
        L = [b.new_zeros(*self.A.shape[1:])]
        for t in range(self.T - 1):
            L.append(torch.linalg.qr(torch.cat([self.A[t] @ L[-1], self.b[t]], -1).mT, mode="r").R.mT)
        self.L = L
        past = (self.c @ torch.stack(L)).square().sum((0, -2, -1))
        self.squares = past + self.diagonal.square().sum(1)

    def nothing(self, m: int) -> Tensor:
        return self.A.new_zeros(*self.A.shape[1:3], m, self.most)

    def row(self, t: int) -> Tensor:
        return self.c[t]

    def back(self, G: Tensor, t: int) -> Tensor:
        return G @ self.A[t]

    def write(self, G: Tensor, t: int) -> Tensor:
        return (G @ self.b[t]).squeeze(-1)

    def sized(self, Z: Tensor, t: int) -> Tensor:
        return Z @ self.L[t]
