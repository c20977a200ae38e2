"""A system with fewer states, and how far off it is: balanced truncation where the system is time-invariant.

The error is bounded before anything runs, ||y - y_r||_2 <= 2 sum_{k > r} sigma_k ||u||_2 for every input u, and then
measured: over frequencies, on an impulse, on noise, and on the system's own input. Source: analysis/linear/balance.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..analysis.linear.balance import Balanced, balred
from ..analysis.linear.control import Hankel, freqresp
from ..analysis.linear.gramian import poles
from ..analysis.linear.statespace import StateSpace, divisor, varying
from ..errors import require
from ..system import System
from ..system.precision import tolerance, wide
from ..system.shapes import spread_heads
from .certificate import Conversion, certify, check_system, outputs, reference


@dataclass(frozen=True)
class Reduction(Conversion):
    """A Conversion to fewer states, with the bound on its error and what was measured of it."""

    order: int
    """States kept in each head, real numbers."""
    hankel: Hankel
    bound: tuple[float, ...]
    """2 sum_{k > r} sigma_k of each head: no more of an input's energy (its root) comes out as error."""
    gain: tuple[float, ...]
    """The largest gain of the error over frequencies, for each head: the H-infinity norm from below."""
    rounding: tuple[float, ...]
    """What rounding may add to a gain: that of the peak gain, times 1 / (1 - |pole|), as a resonance enlarges it."""
    ran: dict[str, float]
    """||y - y_r|| / ||u|| over (bound + rounding), the worst head, on "an impulse" and on "noise": at most 1."""

    @property
    def ok(self) -> bool:
        """True if every measured error is within the bound, up to rounding."""
        within = all(g <= b + r for g, b, r in zip(self.gain, self.bound, self.rounding, strict=True))
        return within and bool(self.certificate) and all(x <= 1 for x in self.ran.values())

    def to_dict(self) -> dict[str, object]:
        """Give plain numbers."""
        return {
            "order": self.order, "states": self.hankel.values.shape[1], "bound": list(self.bound),
            "gain": list(self.gain), "ran": dict(self.ran), "error": self.error, "allowed": self.tolerance,
            "ok": self.ok,
        }  # fmt: skip

    def __str__(self) -> str:
        measured = ", ".join(f"{share:.2g} of it on {name}" for name, share in self.ran.items())
        return (
            f"{self.text}: gain of the error at most {max(self.bound):.3g} (Hankel bound), {max(self.gain):.3g} over "
            f"frequencies, {measured}\non its own input: relative error {self.error:.2g} (the bound allows "
            f"{self.tolerance:.2g})\n{self.system!r}"
        )


def reduce(system: System, tol: float) -> Conversion:
    """Find a system of fewer states with an error of `tol`.

    A time-invariant system is balanced and truncated to the fewest states (the same number in all heads) with
    2 sum_{k > r} sigma_k <= tol sigma_1; as the H-infinity norm is at least sigma_1, the error is at most `tol` of it,
    for all inputs. A complex state is first written as a real one of twice the size, so the result is real, with a
    dense transition. A system that varies in time is reduced on its own input, see `reduce_varying`.

    Args:
        system: a System.
        tol: the relative error allowed, above 0.

    Returns:
        A `Reduction` for time-invariant systems (fields `order`, `bound`, `gain`, `ran`).

    Raises:
        StateformError: poles on or outside the unit circle, or no finite state.
    """
    check_system(system, "reduce")
    require(0 < tol < float("inf"), f"tol is {tol}; expected a number above 0")
    if not system.readout.linear or system.micro > 1 or varying(system):
        from .reduce_varying import reduce_varying

        return reduce_varying(system, tol)
    return _balanced(system, tol)


@torch.no_grad()
def _balanced(system: System, tol: float) -> Reduction:
    found = balred(system, tol=tol)
    new, bound, s = _with_states(system, found), found.bound, found.original
    text = f"balanced truncation, {s.N} states to {found.order}"
    text += "" if found.order < s.N else ": at this tolerance none can be left out"
    damping = 1 - poles(s).abs().amax(-1)
    rounding = tolerance(torch.float64, s.N) * freqresp(s).peak.to(damping) / damping
    # ||e||_max <= ||e||_2 <= bound ||u||_2, whatever the input
    top = float(reference(system).abs().max())
    allowed = float((bound * _energy(system, s)).max()) / top if top else 0.0
    base = certify(new, system, text, rtol=allowed + tolerance(new.dtype, system.T))
    return Reduction(
        new, system, False, base.certificate, base.errors, text, order=found.order, hankel=found.hankel,
        bound=tuple(bound.tolist()), gain=tuple(found.error().tolist()), rounding=tuple(rounding.tolist()),
        ran=_worst_error(found, max(256, system.T), rounding),
    )  # fmt: skip


def _with_states(system: System, found: Balanced) -> System:
    """Put the reduced system on the same input, with outputs of the same shape."""
    whole = system.q is None and system.w_out is None
    require(not (whole and system.is_complex), "a complex state that is read as it is has no real read to keep; give "
            "the system a q")  # fmt: skip
    r = found.reduced
    A, B, C, D = (x.to(device=system.device, dtype=system.dtype) for x in (r.A, r.B, r.C, r.D))
    one_output = system.q is not None and system.q.ndim == 2
    q = C.reshape(-1, r.N) if one_output else C.reshape(system.H, -1, r.N) if system.w_out is None else None
    if system.v is not None:
        d = None if system.d is None else D.reshape(system.H, -1)[:, 0]  # the same for all outputs of a head
        return System(q, B[..., 0], system.v, transition=A, d=d, exclusive=system.exclusive)
    k = torch.einsum("hrn,bthn->bthr", found.left, _written(system, found.original)).to(system.dtype)
    w_in = B if system.w_in is not None else None
    w_out = C.movedim(0, 1) if system.w_out is not None else None
    # with v = None d is what is added to the output, and constant parts alone divide it
    d = None if system.d is None else (system.gate("d") / divisor(system)).to(system.dtype)
    return System(q, k, None, transition=A, d=d, w_in=w_in, w_out=w_out, exclusive=system.exclusive)


def _written(system: System, s: StateSpace) -> Tensor:
    """Compute what a token of a vector state adds to the state x, b_t k_t as real numbers [B,T,heads,N]."""
    heads = system.state_heads
    k = spread_heads(wide(system.k), heads).expand(-1, -1, heads, -1)
    b = system.b if system.log_b is None else system.log_b.exp()
    if b is not None:
        k = k * spread_heads(wide(b)[None, None], heads).unsqueeze(-1)
    if system.w_out is not None:
        k = k.flatten(2).unsqueeze(2)
    if k.is_complex():
        return torch.cat([k.real, k.imag], -1)
    return torch.nn.functional.pad(k, (0, s.N - k.shape[-1]))  # a real key of a complex state


def _energy(system: System, s: StateSpace) -> Tensor:
    """Compute ||u||_2 over time, [H] of `s`: the largest of all rows and columns."""
    if system.v is not None:
        u = spread_heads(wide(system.v), s.H).movedim(2, 0)  # [H,B,T,p]
        return u.norm(dim=2).flatten(1).amax(1).expand(s.H)
    u = torch.einsum("hin,bthn->bthi", torch.linalg.pinv(s.B), _written(system, s))
    return u.movedim(2, 0).flatten(2).norm(dim=2).amax(1)


def _worst_error(found: Balanced, steps: int, rounding: Tensor) -> dict[str, float]:
    """Compute ||y - y_r|| / ||u|| over the bound, for the worst head, from outputs in float64."""
    s = found.original
    i = s.B.shape[-1]
    impulse = torch.zeros(i, steps, s.H, i, dtype=torch.float64, device=s.A.device)
    impulse[:, 0] = torch.eye(i, dtype=torch.float64, device=s.A.device)[:, None]
    noise = torch.randn(1, steps, s.H, i, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = {}
    for name, u in (("an impulse", impulse), ("noise", noise.to(s.A.device))):
        error = outputs(s.system(u)) - outputs(found.reduced.system(u))
        energy = error.unflatten(2, (s.H, -1)).movedim(2, 0).flatten(2).norm(dim=2)
        ratio = energy / u.movedim(2, 0).flatten(2).norm(dim=2)
        shares[name] = float((ratio.amax(1) / (found.bound + rounding)).max())
    return shares
