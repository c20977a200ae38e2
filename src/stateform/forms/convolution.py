"""A time-invariant system as a convolution with its impulse response, by FFT: T log T work.

K_t = q^T A^t k,    y = K * v + (q^T A^{t+1} S_0),    S_T = A^T S_0 + sum_j A^{T-1-j} k v_j^T
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..graph import any_length
from ..system import System
from ..system.core import Core, contract
from ..system.precision import cis, wrap
from ..system.transition import Diagonal, Identity
from .form import register_form
from .opaque import opaque


class Convolution:
    """T log T work, memory linear in T (times n, for the powers of A).

    An FFT rounds relative to the largest value in the sequence: beside a much larger one, small outputs lose digits
    that the other forms keep. It is never chosen by `auto`.
    """

    name, letter, order = "convolution", "v", 50
    forward, of_systems = False, True

    def refuses(self, system: System) -> str | None:
        if not system.readout.linear:
            return "a convolution needs a linear readout"
        if not system.time_invariant:
            inputs = ("v", "d") if system.v is not None else ("k", "d")
            varying = [x for x in system.tensors() if not system.is_constant(x) and x not in inputs]
            what = (
                ", ".join(varying)
                if varying
                else 'eta = "sum"'
                if system.eta == "sum"
                else "micro-steps"
                if system.micro > 1
                else "k"
            )
            return f"a convolution needs a time-invariant system; varying here: {what}"
        return None

    def compute(self, core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
        if any_length(core.length):
            return opaque(self.name, core, S)
        T = core.length
        if core.k.shape[1] != 1:  # n = 1 and v = None: the key is the input
            core = replace(core, v=core.k * core.v, k=torch.ones_like(core.k[:1, :1]))
        powers = _powers(core)
        if powers is not None:
            later = powers[:, :T] if core.exclusive else powers[:, 1:]
            responses = powers[:, :T] * core.k
            held = core.q * later.unsqueeze(-2)
            last = powers[:, T].unsqueeze(-1) * S
        else:
            A = core.transition().dense(core.n)
            responses = _orbit(A, core.k.unsqueeze(-1), T).squeeze(-1)
            first = core.q.mT if core.exclusive else contract("...mn,...mo->...no", A, core.q.mT)
            held = _orbit(A.mT, first, T).mT
            last = contract("...mn,...np->...mp", torch.linalg.matrix_power(A.squeeze(1), T), S)
        reads = contract("bsgron,btgrn->btgro", core.q, responses)
        if core.exclusive:
            reads = torch.cat([torch.zeros_like(reads[:, :1]), reads[:, :-1]], 1)
        v = core.v.expand(-1, T, -1, -1, -1)
        kernel = core.needed(reads) if not v.is_complex() else reads
        y = convolve(kernel.unsqueeze(-1), v.unsqueeze(-2)) + core.needed(contract("btgron,bgrnp->btgrop", held, S))
        return y, contract("btgrn,btgrp->bgrnp", responses.flip(1), v) + last


def _orbit(A: Tensor, x: Tensor, T: int) -> Tensor:
    """Compute A^0 x, ..., A^{T-1} x for A [b,1,G,R,n,n] and x [b,1,G,R,n,c], as [b,T,G,R,n,c], by doubling."""
    front = torch.broadcast_shapes(A.shape[:-2], x.shape[:-2])  # heads may share either
    out = x.to(torch.promote_types(A.dtype, x.dtype)).expand(*front, *x.shape[-2:])
    while out.shape[1] < T:
        out = torch.cat([out, contract("bsgrmn,btgrnc->btgrmc", A, out)], 1)
        A = A @ A
    return out[:, :T]


def _powers(core: Core) -> Tensor | None:
    """Compute A^0, ..., A^T of a diagonal decay, [b,T+1,G,R,n|1]; None for a dense one."""
    A, T = core.transition(), core.length
    t = torch.arange(T + 1, device=core.k.device).view(1, -1, 1, 1, 1)
    if isinstance(A, Identity):
        return torch.ones_like(t, dtype=core.dtype)
    if isinstance(A, Diagonal):
        log = core.decay_log()
        # t = 0 gives 1 also for a decay of exactly zero (0 * -inf is not a number).
        powers = None if log is None else torch.exp(torch.where(t == 0, 0.0, t * torch.where(t == 0, 0.0, log)))
        if core.phase is not None:
            turn = cis(wrap(core.phase) * t).to(core.dtype)
            powers = turn if powers is None else powers * turn
        if core.sign is not None:
            signs = torch.where(t % 2 == 0, torch.ones_like(core.sign), core.sign)
            powers = signs if powers is None else powers * signs
        assert powers is not None
        return powers
    return None


def convolve(kernel: Tensor, v: Tensor) -> Tensor:
    """Compute causal convolution along axis 1."""
    T = v.shape[1]
    if kernel.is_complex() or v.is_complex():
        spectrum = torch.fft.fft(kernel, 2 * T, dim=1) * torch.fft.fft(v, 2 * T, dim=1)
        return torch.fft.ifft(spectrum, dim=1)[:, :T]
    return torch.fft.irfft(torch.fft.rfft(kernel, 2 * T, dim=1) * torch.fft.rfft(v, 2 * T, dim=1), 2 * T, dim=1)[:, :T]


register_form(Convolution())
