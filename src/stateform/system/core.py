"""Core: the normal form of a System in which every form computes.

One decay-plus-feedback recurrence, nothing else: no normaliser, write strength, direct term or micro-steps (`fold` puts
them in before, `unfold` finishes after). Every tensor has the axes [batch, time, G, R, ...]: G x R are the heads, and
a part that is constant, or shared by heads, has the size 1 on that axis, so that broadcasting replaces copies.

    S_t = A_t S_{t-1} + k_t v_t^T,      A_t = unit_t exp(log_t) + f_t w_t^T      (or A_t = matrix_t + f_t w_t^T)
    y_t = q_t^T S_t                     (exclusive: q_t^T S_{t-1})
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .precision import DOUBLE, cis, complex_dtype, real_dtype, upcast, wide
from .shapes import split_heads, spread_heads
from .system import System
from .transition import Dense, Diagonal, Feedback, Identity, Transition


@dataclass(frozen=True)
class Core:
    """See the module. A size of 1 on batch, time, G or R means constant or shared there."""

    q: Tensor
    """[B,T,G,R,o,n], o output axes."""
    k: Tensor
    """[B,T,G,R,n]"""
    v: Tensor
    """[B,T,G,R,p]"""
    log: Tensor | None = None
    """Log decay [B,T,G,R,1] (scalar) or [..., n]; times `rate` where that is given."""
    rate: Tensor | None = None
    """[1,1,G,R,n]: the constant factor of a product decay, expanded only inside a tile."""
    phase: Tensor | None = None
    sign: Tensor | None = None
    matrix: Tensor | None = None
    """[B,T,G,R,n,n]"""
    f: Tensor | None = None
    w: Tensor | None = None
    exclusive: bool = False
    real: bool = False
    """Only the real part of the reads is wanted."""
    whole: bool = False
    """The whole state is read: q is the identity."""
    length: int = 0
    """T"""
    heads: tuple[int, int] = (1, 1)
    """(G, R)"""
    state_heads: tuple[int, int] = (1, 1)
    """(G, R) of the state: 1 where the heads share it."""
    batch: int = 1

    @property
    def n(self) -> int:
        """Count the keys of the state."""
        return self.k.shape[-1]

    @property
    def p(self) -> int:
        """Count the columns of the state."""
        return self.v.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the state."""
        dtype = self.k.dtype
        for x in (self.v, self.f, self.w, self.matrix):
            if x is not None and x.dtype != dtype:
                dtype = torch.promote_types(dtype, x.dtype)
        return complex_dtype(dtype) if self.phase is not None else dtype

    def needed(self, read: Tensor) -> Tensor:
        """Take the part of a read, or of the map from real values to reads, that is wanted."""
        return read.real if self.real and read.is_complex() else read

    def rewritten(self, **parts: Tensor | None) -> Core:
        """Make a core with other parts."""
        return replace(self, **parts)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """List the tensors that are there, by name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}

    def slice(self, start: int, stop: int) -> Core:
        """Take the steps start <= t < stop; constant parts stay as they are."""
        if stop - start == self.length:
            return self
        cut = {name: x[:, start:stop] for name, x in self.tensors().items() if name != "rate" and x.shape[1] != 1}
        # A varying part of a sequence of one step has size 1 too; it needs no cut.
        return replace(self, **cut, length=stop - start)  # type: ignore[arg-type]

    def decay_log(self) -> Tensor | None:
        """Write out the log decay, [B,T,G,R,1|n]."""
        return self.log if self.log is None or self.rate is None else self.log * self.rate

    def unit(self) -> Tensor | None:
        """Compute sign * exp(i phase) of every step, or None."""
        if self.phase is None:
            return self.sign
        turn = cis(self.phase).to(self.dtype)
        return turn if self.sign is None else turn * self.sign

    def turn(self) -> Tensor | None:
        """Compute a constant exp(log) sign exp(i phase) of many steps, rounded once: its error is that of each step,
        and adds up. None where nothing turns, or not always by the same.
        """
        if self.phase is None or self.length == 1:  # of one step all parts look constant
            return None
        factors = (self.log, self.rate, self.sign, self.phase)
        if any(x is not None and x.shape[1] != 1 for x in factors):
            return None
        log, rate, sign, phase = (None if x is None else wide(x) for x in factors)
        assert phase is not None
        turn = cis(phase) if sign is None else cis(phase) * sign
        log = log if log is None or rate is None else log * rate
        return (turn if log is None else turn * log.exp()).to(self.dtype)

    def transition(self, turn: Tensor | None = None) -> Transition:
        """Compute A_t for every step held here, batch axes [B,T,G,R]; `turn` if its diagonal is known."""
        log, unit = (None, turn) if turn is not None else (self.decay_log(), self.unit())
        if self.matrix is not None:
            base: Transition = Dense(self.matrix)
        elif log is None and unit is None:
            base = Identity(self.k[..., :1])
        else:
            base = Diagonal(log, unit)
        return base if self.f is None or self.w is None else Feedback(base, self.f, self.w)

    def zero_state(self) -> Tensor:
        """Make S = 0, [B,G,R,n,p]."""
        return self.k.new_zeros(self.batch, *self.state_heads, self.n, self.p, dtype=self.dtype)


def contract(equation: str, *xs: Tensor) -> Tensor:
    """Compute an einsum of operands real and complex (real times complex costs two real products, not four)."""
    a, b = xs
    if a.is_complex() and not b.is_complex():
        return torch.complex(torch.einsum(equation, a.real, b), torch.einsum(equation, a.imag, b))
    if b.is_complex() and not a.is_complex():
        return torch.complex(torch.einsum(equation, a, b.real), torch.einsum(equation, a, b.imag))
    return torch.einsum(equation, a, b)


def fold(system: System) -> Core:
    """Bring a system to the normal form in which the forms compute.

    b, the normaliser's column and micro-steps are folded in; the precision is that of the state (float32 at least).
    """
    r, H, hs = system.micro, system.H, system.state_heads
    G = hs if 1 < hs < H else max([x for x in system.head_counts.values() if 1 < x < H] or [H])
    left_out = ("w_in", "w_out", "d", "eta", "eta_floor", *system.readout.parts)
    real = torch.float64 if system.k.dtype in DOUBLE else torch.float32
    axes = {x: split_heads(x, _precise(x, t, real), G, H // G) for x, t in system.parts.items() if x not in left_out}

    if system.f is system.k:  # as the delta rule has it: the loops look for that
        axes["f"] = axes["k"]
    k, v = axes["k"], axes.get("v")
    if v is None:
        v = torch.ones_like(k[:1, :1, :1, :1, :1].real)
    if system.eta == "sum":
        v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    if system.readout.gram:
        front = torch.broadcast_shapes(v.shape[:-1], k.shape[:-1])
        v = torch.cat([v.expand(*front, -1), k.expand(*front, -1)], -1)
    if "b" in axes or "log_b" in axes:
        v = v * (axes["b"] if "b" in axes else axes["log_b"].exp())
    q = axes.get("q")
    if q is None:
        q = torch.eye(system.n, dtype=real_dtype(k.dtype), device=k.device)[None, None, None, None]
    elif r > 1:
        # The read of a token happens at one of its micro-steps; elsewhere q is zero.
        at = 0 if system.exclusive else r - 1
        q = q.expand(q.shape[0], system.T, *q.shape[2:])
        steps = [q if i == at else torch.zeros_like(q) for i in range(r)]
        q = torch.stack(steps, 2).flatten(1, 2)
    shared = (1, 1) if hs == 1 else (G, 1) if hs == G < H else (G, H // G)
    names = {"log_decay": "log", "transition": "matrix"}
    rest = {names.get(x, x): axes.get(x) for x in ("log_decay", "rate", "phase", "sign", "transition", "f", "w")}
    return Core(
        q, k, v, **rest, exclusive=system.exclusive, real=system.q is not None, whole=system.q is None,
        length=system.T * r, batch=system.B, heads=(G, H // G), state_heads=shared,
    )  # fmt: skip


def unfold(system: System, raw: Tensor) -> Tensor:
    """Turn the Core's reads [B,T*micro,H,o,p'] into y: direct term, real part, division, output map, dtype."""
    r = system.micro
    at = slice(0, None, r) if system.exclusive else slice(r - 1, None, r)
    y = raw if r == 1 else raw[:, at]
    if system.readout.gram:
        y = y[..., : system.p]
    if y.is_complex() and system.q is not None:
        y = y.real
    eta: Tensor | None = None
    if system.eta == "sum":
        y, eta = y[..., :-1], y[..., -1:]
    if system.d is not None:
        v = y.new_ones(1, 1, 1, 1) if system.v is None else upcast(system.v)
        v, d = (
            spread_heads(v if r == 1 or system.v is None else v[:, at], system.H).unsqueeze(-2),
            system.gate("d")[..., None, None],
        )
        if y.dtype == v.dtype == d.dtype and not y.is_complex():
            y = torch.addcmul(y, d, v)  # one pass
        else:
            y = y + (d * v if system.q is None else (d * v).real)
        eta = eta if eta is None else eta + d.real
    if eta is None and system.eta is not None:
        eta = system.gate("eta")[..., None, None]
    if eta is not None:
        if system.eta_floor is not None:
            eta = torch.maximum(eta.abs(), system.gate("eta_floor")[..., None, None])
        y = y / eta
    if system.v is None:
        y = y.squeeze(-1)
    elif system.q is not None and system.q.ndim in (2, 4):
        y = y.squeeze(-2)
    if system.w_out is not None:
        y = torch.einsum("bthn,ohn->bto", y, upcast(system.w_out).to(y.dtype)).unsqueeze(2)
        y = y.real if y.is_complex() else y
    dtype = complex_dtype(system.dtype) if y.is_complex() else system.dtype
    return y if y.dtype == dtype else y.to(dtype)


def _precise(name: str, x: Tensor, real: torch.dtype) -> Tensor:
    """Cast a part to the precision of the state; a phase in its own."""
    x = upcast(x)
    return x if name == "phase" or x.dtype == real or x.is_complex() else x.to(real)
