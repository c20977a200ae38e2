"""Core: the normal form of a System in which every form computes.

One decay-plus-feedback recurrence, nothing else: no normaliser, write strength, direct term or micro-steps (System
folds them in before and finishes after). Every tensor has the axes [batch, time, G, R, ...]: G x R are the heads, and
a part that is constant, or shared by heads, has the size 1 on that axis, so that broadcasting replaces copies.

    S_t = A_t S_{t-1} + k_t v_t^T,      A_t = unit_t exp(log_t) + f_t w_t^T      (or A_t = matrix_t + f_t w_t^T)
    y_t = q_t^T S_t                     (exclusive: q_t^T S_{t-1})
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .precision import cis, complex_dtype
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
        """Keys of the state."""
        return self.k.shape[-1]

    @property
    def p(self) -> int:
        """Columns of the state."""
        return self.v.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the state."""
        dtype = self.k.dtype
        for x in (self.v, self.f, self.w, self.matrix):
            if x is not None and x.dtype != dtype:
                dtype = torch.promote_types(dtype, x.dtype)
        return complex_dtype(dtype) if self.phase is not None else dtype

    def needed(self, read: Tensor) -> Tensor:
        """The part of a read, or of the map from real values to reads, that is wanted."""
        return read.real if self.real and read.is_complex() else read

    def rewritten(self, **parts: Tensor | None) -> Core:
        """A core with other parts."""
        return replace(self, **parts)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}

    def slice(self, start: int, stop: int) -> Core:
        """The steps start <= t < stop; constant parts stay as they are."""
        if stop - start == self.length:
            return self
        cut = {name: x[:, start:stop] for name, x in self.tensors().items() if name != "rate" and x.shape[1] != 1}
        # A varying part of a sequence of one step has size 1 too; it needs no cut.
        return replace(self, **cut, length=stop - start)  # type: ignore[arg-type]

    def decay_log(self) -> Tensor | None:
        """The log decay written out, [B,T,G,R,1|n]."""
        return self.log if self.log is None or self.rate is None else self.log * self.rate

    def unit(self) -> Tensor | None:
        """sign * exp(i phase) of every step, or None."""
        if self.phase is None:
            return self.sign
        turn = cis(self.phase).to(self.dtype)
        return turn if self.sign is None else turn * self.sign

    def transition(self) -> Transition:
        """A_t for every step held here, batch axes [B,T,G,R]."""
        log, unit = self.decay_log(), self.unit()
        if self.matrix is not None:
            base: Transition = Dense(self.matrix)
        elif log is None and unit is None:
            base = Identity(self.k[..., :1])
        else:
            base = Diagonal(log, unit)
        return base if self.f is None or self.w is None else Feedback(base, self.f, self.w)

    def zero_state(self) -> Tensor:
        """S = 0, [B,G,R,n,p]."""
        return self.k.new_zeros(self.batch, *self.state_heads, self.n, self.p, dtype=self.dtype)


def contract(equation: str, *xs: Tensor) -> Tensor:
    """einsum over operands of mixed real and complex dtype (real times complex costs two real products, not four)."""
    a, b = xs
    if a.is_complex() and not b.is_complex():
        return torch.complex(torch.einsum(equation, a.real, b), torch.einsum(equation, a.imag, b))
    if b.is_complex() and not a.is_complex():
        return torch.complex(torch.einsum(equation, a, b.real), torch.einsum(equation, a, b.imag))
    return torch.einsum(equation, a, b)
