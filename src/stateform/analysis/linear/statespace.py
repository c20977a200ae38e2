"""A system as the matrices of control: constant, real and written out, what control.py and balance.py look at.

    x_t = A x_{t-1} + B u_t,    y_t = C x_t + D u_t        (exclusive: y_t = C x_{t-1} + D u_t)

The exclusive read is the textbook's x[t+1] = A x[t] + B u[t], y[t] = C x[t] + D u[t], with x[t] = x_{t-1}. A complex
state read by its real part is the real state [Re h; Im h] of twice the size: the same function, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import StateformError, require
from ...system import System
from ...system.discretise import discretise
from ...system.precision import complex_dtype


@dataclass(frozen=True, eq=False)
class StateSpace:
    """Real matrices in float64, a system for each head: see the module."""

    A: Tensor
    """[H,N,N]"""
    B: Tensor
    """[H,N,i]"""
    C: Tensor
    """[H,o,N]"""
    D: Tensor
    """[H,o,i]"""
    exclusive: bool = True
    """C reads x_{t-1}."""

    @property
    def H(self) -> int:
        """Heads: systems side by side."""
        return len(self.A)

    @property
    def N(self) -> int:
        """States of a head, real numbers."""
        return self.A.shape[-1]

    def system(self, u: Tensor) -> System:
        """Make the System that runs on u [B,T,H,i]: its output has a head for each head and output, y [B,T,H * o,1].

        With one input it is time-invariant (u as its values v); with several, u is mapped to keys, k = B u.
        """
        H, i = self.H, self.B.shape[-1]
        require(isinstance(u, Tensor) and u.ndim == 4 and u.shape[2:] == (H, i),
                f"u is expected to be a tensor [B,T,{H},{i}], a value for each head and input")  # fmt: skip
        A, B, C, D = (x.to(u) for x in (self.A, self.B, self.C, self.D))
        q, direct = C.flatten(0, 1), bool(D.any())
        if i == 1:
            d = D.flatten() if direct else None
            return System(q, B[..., 0], u, transition=A, d=d, exclusive=self.exclusive)
        k, d = torch.einsum("hni,bthi->bthn", B, u), torch.einsum("hoi,bthi->btho", D, u).flatten(2)
        return System(q, k, None, transition=A, d=d if direct else None, w_in=B, exclusive=self.exclusive)

    def __str__(self) -> str:
        heads = f"{self.H} heads, " if self.H > 1 else ""
        read = "x_{t-1}" if self.exclusive else "x_t"
        return f"{heads}{self.N} states, {self.B.shape[-1]} inputs, {self.C.shape[-2]} outputs, read from {read}"


def statespace(A: Any, B: Any, C: Any, D: Any = None, dt: float | None = None) -> StateSpace:
    """Write the system as x[t+1] = A x[t] + B u[t], y[t] = C x[t] + D u[t] (with `dt`: the continuous one).

    With `dt`, A, B, C, D are those of x' = A x + B u, and become by the bilinear map s = (2/dt) (z - 1)/(z + 1)

        Abar = (1 + dt A/2)/(1 - dt A/2),  Bbar = dt/(1 - dt A/2) B,  Cbar = C/(1 - dt A/2),  Dbar = D + C Bbar/2

    which keeps the Hankel singular values and maps the frequency response, Gbar(exp(i theta)) = G(i omega) with
    omega = (2/dt) tan(theta/2).

    Args:
        A: array or tensor [N,N] or [H,N,N], real. B: [N,i] or [H,N,i]. C: [o,N] or [H,o,N].
        D: [o,i] or [H,o,i]; default 0.
        dt: the step, if the system is a continuous one.

    Raises:
        StateformError: shapes that do not fit, complex numbers, NaN or inf, or a step that is not above 0.
    """
    given = [torch.as_tensor(x) for x in (A, B, C)]
    a, b, c = given
    shapes = f"A, B, C have shapes {list(a.shape)}, {list(b.shape)}, {list(c.shape)}"
    fits = all(x.ndim in (2, 3) and x.ndim == a.ndim and x.shape[:-2] == a.shape[:-2] for x in given)
    fits = fits and a.shape[-2] == a.shape[-1] == b.shape[-2] == c.shape[-1] and min(b.shape[-1], c.shape[-2]) > 0
    require(fits and a.numel() > 0, f"{shapes}; expected [N,N], [N,i], [o,N], or these with an axis of heads in front")
    shape = (*a.shape[:-2], c.shape[-2], b.shape[-1])
    d = torch.zeros(shape) if D is None else torch.as_tensor(D)
    require(d.shape == shape, f"D has shape {list(d.shape)}; expected {list(shape)}")
    every = [*given, d]
    require(not any(x.is_complex() for x in every), "A, B, C, D are real here; give a complex system as a System")
    require(all(bool(x.isfinite().all()) for x in every), "A, B, C, D hold NaN or inf; expected finite numbers")
    a, b, c, d = (x.double() if x.ndim == 3 else x.double()[None] for x in every)
    if dt is not None:
        half = torch.linalg.solve(torch.eye(a.shape[-1], dtype=a.dtype) - dt / 2 * a, c, left=False)
        a, b = discretise(a, b, dt, "bilinear", dense=True)
        d, c = d + c @ b / 2, half
    return StateSpace(a, b, c, d)


@torch.no_grad()
def written(system: System | StateSpace) -> StateSpace:
    """Write the matrices of a time-invariant system, in float64.

    Heads that share a state are one system with the outputs of all of them; heads that `w_out` maps together are one
    system with the states of all of them. The input is v (one value a head: every column of a matrix state is a copy
    of this system), or with v = None the layer's input where `w_in` says how it enters, and else k itself. b is inside
    B, eta divides C and D. With v = None a direct term is added to y whatever the input is: it has no D.

    Raises:
        StateformError: no finite state, or a part that varies in time (it is named).
    """
    if isinstance(system, StateSpace):
        return system
    require(isinstance(system, System), f"a {type(system).__name__} was given; expected a System or a StateSpace")
    finite(system)
    names = varying(system)
    require(not names, f"varying in time: {', '.join(names)}; expected a time-invariant system. Of a varying one, "
            'gram(system, "c", horizon=...) gives the Gramians of a stretch')  # fmt: skip
    whole = system.q is None and system.w_out is None
    system = system.to(torch.float64)
    if system.v is not None:  # the input is left open, so one token says all
        one = replace(system, v=system.v.new_ones(1, 1, system.v.shape[2], 1))
    else:
        one = replace(system, k=system.k.new_zeros(1, 1, *system.k.shape[2:]), d=None)
    A, B, C = (x[0, 0] for x in dense(one))
    D = C.real.new_zeros(*C.shape[:2], B.shape[-1])
    if one.d is not None:
        direct = (one.gate("d") / divisor(one)).expand(1, 1, one.H)
        D += direct.repeat_interleave(C[..., 0].numel() // one.H).view(len(C), -1, 1)
    if system.w_out is not None:
        A, C = torch.block_diag(*A)[None], C.movedim(0, 1).flatten(1)[None]
        B = B.flatten(0, 1)[None] if system.w_in is not None else torch.block_diag(*B)[None]
        D = D.new_zeros(1, C.shape[-2], B.shape[-1])
    elif whole and A.is_complex():
        D = torch.cat([D, torch.zeros_like(D)], 1)
    return StateSpace(*real(A, B, C, whole), D, system.exclusive)


def varying(system: System) -> list[str]:
    """List the parts, other than the input, that keep a system from being time-invariant."""
    given = ("v",) if system.v is not None else ("k", "d")
    names = [x for x in system.tensors() if not system.is_constant(x) and x not in given]
    return names + (['eta = "sum"'] if system.eta == "sum" else [])


def finite(system: System) -> None:
    """Raise unless the system has a finite state, one step a token."""
    if system.readout.cached:
        raise StateformError('readout "exp" (softmax) has no finite state: its state is the cache, which grows; take a '
                             "truncation, e.g. convert.taylor, or analyse its coefficients")  # fmt: skip
    require(system.readout.linear, f"the readout is '{system.readout}'; expected a linear one")
    require(system.micro == 1, f"the system has {system.micro} steps a token; expected 1")


def divisor(system: System) -> Tensor:
    """Find what divides the outputs, a number per step and head [B|1,T|1,H|1]."""
    eta = system.gate("eta", 1.0)
    return eta if system.eta_floor is None else torch.maximum(eta.abs(), system.gate("eta_floor"))


def dense(system: System) -> tuple[Tensor, Tensor, Tensor]:
    """Write A, B, C [B,T,state heads,...] of one column of the state, complex if anything is, without the direct term.

    Of a vector state the input is that of `w_in`, or where there is none k itself (its real and imaginary part).
    """
    new: dict[str, Any] = {"d": None}
    if system.log_b is not None:
        new |= {"log_b": None, "b": system.log_b.exp()}
    if isinstance(system.eta, Tensor):
        eta = divisor(system)
        new |= {"eta": eta[0, 0] if len(eta) == eta.shape[1] == 1 else eta, "eta_floor": None}
    if system.v is not None:
        new["v"] = torch.ones_like(system.v[..., :1])
    elif system.w_in is None:
        eye = torch.eye(system.n, dtype=system.k.dtype, device=system.device)
        new["w_in"] = (torch.cat([eye, 1j * eye], 1) if system.k.is_complex() else eye)[None]
    if any(x.is_complex() for x in system.tensors().values()):
        if system.transition is not None:
            new["transition"] = system.transition.to(complex_dtype(system.transition.dtype))
        elif system.phase is None:
            new["phase"] = torch.zeros(1, dtype=system.dtype, device=system.device)
    found = replace(system, **new).matrices()
    shared = system.H // system.state_heads
    C = found.C.unflatten(2, (-1, shared)).flatten(3, 4)
    return found.Lambda[:, :, ::shared], found.B[:, :, ::shared], C


def real(A: Tensor, B: Tensor, C: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rewrite a system with the real state [Re h; Im h]; its output is the real part, or if `whole` both."""
    if not A.is_complex():
        return A, B, C
    A = torch.cat([torch.cat([A.real, -A.imag], -1), torch.cat([A.imag, A.real], -1)], -2)
    rows = torch.cat([C.real, -C.imag], -1)
    C = torch.cat([rows, torch.cat([C.imag, C.real], -1)], -2) if whole else rows
    return A, torch.cat([B.real, B.imag], -2), C
