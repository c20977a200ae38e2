"""From continuous to discrete time and back: h' = A h + B u, sampled every dt, is h_t = Abar h_{t-1} + Bbar u_t.

    zoh        Abar = exp(dt A)                         Bbar = (exp(dt A) - 1) / A B     u is held over the step
    bilinear   Abar = (1 + dt A/2) / (1 - dt A/2)       Bbar = dt / (1 - dt A/2) B       the trapezium rule
    euler      Abar = 1 + dt A                          Bbar = dt B                      a step along the slope

For a diagonal A these are numbers, one a mode; for a dense one 1/(.) is an inverse and exp the matrix exponential.
Source: LSSL (arXiv 2110.13985, eq. 3), S4 (arXiv 2111.00396, eq. 3), S4D (arXiv 2206.11893, section 2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import require
from .precision import complex_dtype
from .transition import eigenbasis

Method = Literal["zoh", "bilinear", "euler"]


def log_decay_and_gain(A: Tensor, dt: Tensor, method: Method = "zoh") -> tuple[Tensor, Tensor]:
    """Compute, for a diagonal A [..., n] and steps that broadcast with it, log Abar, and the gain with Bbar = gain B.

    The real part of log Abar is the log modulus of the decay, the imaginary part its angle.
    """
    z = dt * A
    if method == "zoh":
        zero = z == 0  # (e^z - 1) / z tends to 1 there
        return z, dt * torch.where(zero, torch.ones_like(z), torch.expm1(z) / torch.where(zero, 1, z))
    if method == "bilinear":
        return torch.log((1 + z / 2) / (1 - z / 2)), dt / (1 - z / 2)
    return torch.log(1 + z), dt * torch.ones_like(A)


def dense_steps(A: Tensor, B: Tensor, dt: Tensor, method: Method = "zoh") -> tuple[Tensor, Tensor]:
    """Compute, for a dense A [..., n, n], B [..., n, i] and steps [..., 1, 1], Abar and Bbar."""
    n, inputs = B.shape[-2:]
    eye = torch.eye(n, dtype=A.dtype, device=A.device)
    if method == "euler":
        return eye + dt * A, dt * B
    dtype = torch.promote_types(A.dtype, B.dtype)
    front = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2], dt.shape[:-2])
    slope = torch.cat([(dt * x).to(dtype).expand(*front, n, x.shape[-1]) for x in (A, B)], -1)
    if method == "bilinear":
        half = slope[..., :n] / 2
        both = torch.linalg.solve(eye - half, torch.cat([eye + half, slope[..., n:]], -1))
    else:  # the exponential of [[dt A, dt B], [0, 0]] holds Abar and Bbar, also where A has no inverse
        still = slope.new_zeros(*front, inputs, n + inputs)
        both = torch.matrix_exp(torch.cat([slope, still], -2))[..., :n, :]
    return both[..., :n], both[..., n:]


def discretise(
    A: Tensor, B: Tensor, dt: Tensor | float, method: Method = "zoh", *, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute Abar and Bbar of the rule `method`.

    Args:
        A: diagonal [..., n] (a number a mode), or with `dense` a matrix [..., n, n]; real or complex.
        B: [..., n] beside a diagonal A, [..., n, i] beside a dense one.
        dt: the step: a number, or a tensor of the axes before n.
        method: "zoh", "bilinear" or "euler".
        dense: A is a matrix.

    Returns:
        Abar and Bbar, of the shapes of A and B broadcast with dt.

    Raises:
        StateformError: an unknown method, a step that is not above 0, or shapes that do not fit.
    """
    step = _step(A, B, dt, method, dense)
    if dense:
        return dense_steps(A, B, step, method)
    if method == "euler":
        return 1 + step * A, step * B
    if method == "bilinear":
        return (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2) * B
    log, gain = log_decay_and_gain(A, step)
    return log.exp(), gain * B


def continuous(
    Abar: Tensor, Bbar: Tensor, dt: Tensor | float, method: Method = "zoh", *, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute A and B whose discretisation is Abar and Bbar: the inverse of `discretise`.

    With "zoh" a mode is taken to turn by less than half a turn a step: one that turns further comes back slower.

    Args:
        Abar: diagonal [..., n], or with `dense` a matrix [..., n, n].
        Bbar: [..., n] beside a diagonal Abar, [..., n, i] beside a dense one.
        dt: as for `discretise`.
        method: as for `discretise`.
        dense: Abar is a matrix.

    Raises:
        StateformError: where there is no such A: "zoh" with an eigenvalue 0, with a negative one of real numbers, or
            without a basis of eigenvectors; "bilinear" with an eigenvalue -1. Shapes that do not fit.
    """
    step = _step(Abar, Bbar, dt, method, dense)
    one = torch.eye(Abar.shape[-1], dtype=Abar.dtype, device=Abar.device) if dense else torch.ones_like(Abar)
    if method == "euler":
        return (Abar - one) / step, Bbar / step
    values, V, real = Abar, None, not Abar.is_complex()
    if dense:
        values, V, condition = eigenbasis(Abar)
        worst = float(condition.max())
        require(method == "bilinear" or worst < 1e7,
                f"the eigenvectors of Abar have the condition {worst:.2g}: it is (nearly) defective, and its logarithm "
                'is not found from them; use method="bilinear" or "euler"')  # fmt: skip
    # of a matrix, eigenvalues are known up to rounding relative to the largest
    small = 64 * torch.finfo(Abar.dtype).eps * values.abs().amax() if dense else values.abs().new_zeros(())
    if method == "bilinear":
        require(
            bool(((values + 1).abs() > small).all()), "Abar has the eigenvalue -1; no A has it by the bilinear rule"
        )

        def shrunk(x: Tensor) -> Tensor:  # 1 + Abar = 2 (1 - dt A/2)^{-1}, and A commutes with it
            return 2 / step * (torch.linalg.solve(one + Abar, x) if dense else x / (one + Abar))

        return shrunk(Abar - one), shrunk(Bbar)
    require(bool((values.abs() > small).all()), "Abar has the eigenvalue 0; no A has the exponential 0")
    negative = (values.real < 0) & (values.imag.abs() <= small) if values.is_complex() else values < 0
    require(not (real and bool(negative.any())),
            "Abar is real and has a negative eigenvalue, the exponential of no real A; give it as complex numbers, "
            'or use method="bilinear" or "euler"')  # fmt: skip
    if V is None:
        A = torch.log(values) / step
        return A, Bbar / log_decay_and_gain(A, step)[1]
    step = step.squeeze(-1)
    modes = torch.log(values) / step
    gain = log_decay_and_gain(modes, step.to(modes.dtype))[1]
    A = torch.linalg.solve(V, V * modes.unsqueeze(-2), left=False)
    B = torch.linalg.solve(V, V / gain.unsqueeze(-2), left=False) @ Bbar.to(V.dtype)
    if real:
        A, B = A.real, B if Bbar.is_complex() else B.real
    return A.to(Abar.dtype), B.to(complex_dtype(Abar.dtype) if B.is_complex() else Abar.dtype)


def _step(A: Tensor, B: Tensor, dt: Tensor | float, method: str, dense: bool) -> Tensor:
    """Check what was given, and return dt with the axes of A."""
    require(method in ("zoh", "bilinear", "euler"), f"method is {method!r}; expected 'zoh', 'bilinear' or 'euler'")
    numbers = all(isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x in (A, B))
    require(numbers, "A and B are expected to be tensors of a floating dtype")
    axes = 2 if dense else 1
    given = f"A has shape {list(A.shape)} and B {list(B.shape)}"
    expected = "A [..., n, n] and B [..., n, i]" if dense else "A and B [..., n] (give dense=True for matrices)"
    fits = min(A.ndim, B.ndim) >= axes and A.shape[-axes] == A.shape[-1] == B.shape[-axes]
    require(fits, f"{given}; expected {expected}")
    step: Tensor = torch.as_tensor(dt, dtype=A.real.dtype, device=A.device)
    good = bool(((step > 0) & (step < torch.inf)).all())
    require(good, f"dt is {dt if step.numel() == 1 else step.tolist()}; expected steps above 0")
    step = step.reshape(*step.shape, *[1] * axes)
    try:
        torch.broadcast_shapes(*(x.shape[:-axes] for x in (A, B, step)))
    except RuntimeError:
        require(False, f"{given}, dt {list(step.shape[:-axes])}; expected axes before n that broadcast")
    return step
