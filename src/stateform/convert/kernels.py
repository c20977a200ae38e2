"""A time-invariant system as its convolution kernel, and as the recurrence of its constants.

    K_t = q^T A^t b k / eta  (+ d at t = 0),    y = K * v

For a diagonal A this is a Vandermonde product, K_t = sum_i q_i k_i lambda_i^t. Source: S4 (arXiv 2111.00396, eq. 5),
S4D (arXiv 2206.11893, section 3); the way back from a kernel's numbers is Ho and Kalman's (1966).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..contract.equivalence import equivalent
from ..errors import StateformError, require
from ..forms.convolution import convolve
from ..system import System
from ..system.discretise import Method, discretise, log_decay_and_gain
from ..system.precision import complex_dtype, real_dtype, tolerance, wide
from ..system.shapes import spread_heads
from .certificate import Conversion, check_system, outputs, per_head


@torch.no_grad()
def kernel(system: System, length: int | None = None) -> Tensor:
    """Compute the response of a time-invariant system to a unit value at t = 0: K [H,length], with an output axis
    [H,length,o].

    Args:
        system: decay, feedback, q, k, b, eta and d all constant, values v as the input.
        length: steps (default: those of the system).

    Raises:
        StateformError: a part that varies in time (it is named), or a system without v.
    """
    check_system(system, "kernel")
    require(system.v is not None, "kernel takes a system with values v, one input a head; this one has v = None")
    steps = system.T if length is None else length
    require(isinstance(steps, int) and steps >= 1, f"length is {length!r}; expected 1 or more steps")
    varying = [x for x in system.tensors() if x != "v" and not system.is_constant(x)]
    reason = f"varying in time: {', '.join(varying)}" if varying else system.forms()["convolution"]
    if reason:
        raise StateformError(f"only a time-invariant system has a kernel; {reason}")
    unit = torch.zeros(1, steps, 1, 1, dtype=real_dtype(system.k.dtype), device=system.device)
    unit[:, 0] = 1
    y = outputs(replace(system, v=unit))
    return y[0, ..., 0].movedim(0, 1)


@torch.no_grad()
def recurrence(
    A: Tensor, B: Tensor, C: Tensor, dt: Tensor | float, v: Tensor, *, method: Method = "zoh", d: Tensor | None = None
) -> Conversion:
    """Run a diagonal continuous system on v as a recurrence, certified against the convolution with its kernel.

    h' = A h + B v, y = Re(C h) + d v, sampled every dt; the kernel K_t = Re( sum_i C_i Bbar_i Abar_i^t ) is built by
    itself, as a Vandermonde product of the numbers given.

    Args:
        A: modes [H,n], complex or real. B: [H,n]. C: [H,n] (twice that of one mode of each conjugate pair).
        dt: the step, a number or [H].
        v: inputs [B,T,H,p].
        method: "zoh", "bilinear" or "euler".
        d: direct term [H].

    Raises:
        StateformError: shapes that do not fit.
    """
    shapes = f"{list(A.shape)}, {list(B.shape)} and {list(C.shape)}"
    require(A.ndim == 2 and A.shape == B.shape == C.shape, f"A, B, C have shapes {shapes}; expected one shape [H,n]")
    require(isinstance(v, Tensor) and v.ndim == 4, "v is expected to be a tensor [B,T,H,p]")
    Abar, Bbar = discretise(A, B, dt, method)
    step = torch.as_tensor(dt, dtype=A.real.dtype, device=A.device).reshape(-1, 1)
    log, gain = log_decay_and_gain(A + 0j, step, method)
    whole = any(x.is_complex() for x in (A, B, C)) or bool((log.imag != 0).any())
    dtype = complex_dtype(v.dtype) if whole else v.dtype
    k, q = (x.to(dtype) for x in ((gain if whole else gain.real) * B, C))
    system = System(q, k, v, log_decay=log.real, phase=log.imag if whole else None, d=d)
    K = (wide(C * Bbar).unsqueeze(-1) * torch.linalg.vander(wide(Abar), N=v.shape[1])).sum(1).real
    text = f"recurrence of {A.shape[1]} modes a head ({method}), against the convolution with its kernel"
    return _against_kernel(system, K, text)


@torch.no_grad()
def realise(K: Tensor, v: Tensor, *, order: int | None = None, rtol: float | None = None) -> Conversion:
    """Find a recurrence with the numbers of a kernel: K_t = q^T A^t k for all t, where K is a sum of exponentials.

    The Hankel matrix K_{i+j} = (q^T A^i)(A^j k) factors, by its singular values, into what is read and what is written,
    and shifted by a step it holds A in between. Exact if its rank is found within the numbers given.

    Args:
        K: kernel [H,L].
        v: inputs [B,T,H,p], T <= L: what the certificate is measured on.
        order: n (default: the numerical rank of the Hankel matrices).
        rtol: the error allowed, where the order given is known to be too small: an approximation.

    Raises:
        StateformError: shapes that do not fit, or an order that L numbers cannot show.
    """
    fits = (
        K.ndim == 2 and isinstance(v, Tensor) and v.ndim == 4 and v.shape[1] <= K.shape[1] and len(K) % v.shape[2] == 0
    )
    require(fits and not K.is_complex(), f"K has shape {list(K.shape)}, v {list(v.shape)}; expected real K [H,L] and v "
            "[B,T,H,p] with T <= L")  # fmt: skip
    most = K.shape[1] // 2
    require(most >= 1, "one number shows no recurrence; give a kernel of 2 or more")
    hankel = K.double().unfold(1, most, 1)  # [H, L - most + 1, most]
    U, s, Vh = torch.linalg.svd(hankel[:, :-1], full_matrices=False)
    seen = s > s[:, :1] * most * torch.finfo(K.dtype).eps
    n = int(seen.sum(1).max()) if order is None else order
    require(isinstance(n, int) and 1 <= n <= min(most, U.shape[1]),
            f"order is {n}; a kernel of {K.shape[1]} numbers shows 1 to {min(most, U.shape[1])}")  # fmt: skip
    root = torch.where(seen, s, 0.0)[:, :n].sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    U, V = U[..., :n], Vh[:, :n].mT
    A = inverse.unsqueeze(-1) * (U.mT @ hankel[:, 1:] @ V) * inverse.unsqueeze(-2)
    q, k = U[:, 0] * root, V[:, 0] * root
    system = System(q.to(v.dtype), k.to(v.dtype), v, transition=A.to(v.dtype))
    return _against_kernel(system, K.double(), f"kernel to a recurrence of order {n}", rtol)


def _against_kernel(system: System, K: Tensor, text: str, rtol: float | None = None) -> Conversion:
    """Certify a recurrence: its outputs against K * v + d v in float64."""
    assert system.v is not None
    v = wide(spread_heads(system.v, len(K)))
    want = convolve(K[:, : system.T].T[None, ..., None], v)
    if system.d is not None:
        want = want + wide(system.gate("d")).unsqueeze(-1) * v
    got = outputs(system)
    allowed = tolerance(system.dtype, system.T) if rtol is None else rtol
    return Conversion(system, K, rtol is None, equivalent(got, want, rtol=allowed), per_head(got, want), text)
