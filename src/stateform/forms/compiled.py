"""The recurrence by the compiled loops (see stateform.loops): which Cores they take, and a Core in their terms.

Two rewritings make nearly every Core one of two loops over real numbers. Phases and signs go into the keys and reads
(with U_t the product of the units up to t, S_t = U_t S'_t), and a complex state of n keys is a real one of 2n. Where no
head mixes keys (n = 1, or p = 1 with the same q and k for all) heads lie side by side as channels, else each is a
matrix state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..loops.backend import allowed, transformed
from ..loops.channel import channel
from ..loops.matrix import matrix
from ..loops.modes import modes
from ..loops.ops import call
from ..system import System
from ..system.core import Core
from ..system.precision import DOUBLE, angles, cis


def refused(x: Core | System) -> str | None:
    """Say why the compiled loops do not exist for a core or a system, or None."""
    parts = x.tensors()
    state = [parts[name] for name in ("k", "v", "f", "w") if name in parts]
    turned = "phase" in parts or any(t.is_complex() for t in state)
    reads = x.q.shape[-2] if x.q is not None and x.q.ndim in (3, 5, 6) else 1
    whole = x.whole if isinstance(x, Core) else x.q is None
    if x.k.device.type != "cpu":
        return f"they run on a CPU, this is on {x.k.device}"
    if "matrix" in parts or "transition" in parts:
        return "a dense transition is a matrix product a step"
    if (x.v is not None and x.v.is_complex()) or (turned and "f" in parts):
        return "complex values, or complex feedback"
    if (reads > 1 and not whole) or (whole and (x.p > 1 or ("f" in parts and x.n > 1))):
        return "several reads of one state"
    if transformed():
        return "under torch.func and forward-mode differentiation the torch forms are used"
    return None


def usable(x: Core | System) -> bool:
    """True if the recurrence is to be computed by the compiled loops here and now."""
    double = x.k.dtype in DOUBLE or (x.v is not None and x.v.dtype in DOUBLE)
    return refused(x) is None and allowed(double)


def worthwhile(core: Core) -> bool:
    """True if a core is long enough for the loops: a single step in complex or signed coordinates is sooner done than
    said in real ones.
    """
    plain = core.phase is None and core.sign is None and not (core.dtype.is_complex or core.q.is_complex())
    return core.length > 1 or plain


def compute(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the reads [B,T,G,R,o,p] and the final state, from the state S [B,G,R,n,p]."""
    if core.real and core.q.is_complex() and not core.dtype.is_complex:  # Re(q^T S) of a real S
        core = core.rewritten(q=core.q.real.contiguous())
    if _constant_modes(core):
        y, S = _modes(core, S.expand(-1, *core.heads, -1, -1))
        return y, S[:, : core.state_heads[0], : core.state_heads[1]]
    core, end_unit, unit = _in_real_coordinates(core)
    S = S.expand(-1, *core.heads, -1, -1)
    if core.n == 1 or (core.whole and core.p == 1):
        y, S = _elementwise(core, S)
    elif core.p == 1 and not core.dtype.is_complex and _shared(core.q) and _shared(core.k) and _per_channel(core):
        y, S = _channels(core, S)
    else:
        y, S = _matrices(core, S)
    if core.whole and unit is not None:
        y = y * unit.unsqueeze(-1)
    S = S if end_unit is None else S * end_unit.unsqueeze(-1)
    return y, S[:, : core.state_heads[0], : core.state_heads[1]]


def _in_real_coordinates(core: Core) -> tuple[Core, Tensor | None, Tensor | None]:
    """Write the core with phases and signs in its keys and reads, the unit at the end, and all units where y = S."""
    if core.phase is None and core.sign is None:
        return core, None, None
    unit: Tensor | None = None
    if core.phase is not None:
        turned = core.phase.expand(-1, core.length, -1, -1, -1).movedim(1, -2)
        unit = cis(angles(turned)).to(core.dtype).movedim(-2, 1)
    if core.sign is not None:
        signs = torch.cumprod(core.sign.expand(-1, core.length, -1, -1, -1), 1)
        unit = signs if unit is None else unit * signs
    assert unit is not None
    earlier = torch.cat([torch.ones_like(unit[:, :1]), unit[:, :-1]], 1)
    back = unit.conj().resolve_conj()
    reads = earlier if core.exclusive else unit
    q = core.q if core.whole else core.q * reads.unsqueeze(-2)
    new = core.rewritten(
        q=q, k=core.k * back, phase=None, sign=None,
        f=None if core.f is None else core.f * back, w=None if core.w is None else core.w * earlier,
    )  # fmt: skip
    return new, unit[:, -1], reads


def _constant_modes(core: Core) -> bool:
    """True if each head is a sum of modes with constant coefficients."""
    if core.length == 1:  # in which all parts look constant
        return False
    constant = all(_constant(x) for name, x in core.tensors().items() if name != "v")
    return constant and core.p == 1 and not core.whole and core.f is None and (core.n > 1 or core.phase is not None)


def _modes(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a core where p = 1 and all but v is constant."""
    G, R = core.heads
    a = core.turn()
    if a is None:  # nothing turns
        a = torch.ones_like(core.k[..., :1]) if (log := core.decay_log()) is None else log.exp()
        a = a if core.sign is None else a * core.sign

    def across(x: Tensor) -> Tensor:  # [1,1,G,R,1|n] to both parts [2,n,L]
        x = x.expand(1, 1, G, R, core.n).reshape(G * R, core.n).mT
        return torch.stack([x.real, x.imag] if x.is_complex() else [x, torch.zeros_like(x)])

    c = torch.cat([across(x) for x in (core.q.squeeze(-2), core.k, a)])
    v = core.v.expand(core.batch, core.length, G, R, 1).reshape(core.batch, core.length, G * R)
    start = S.reshape(core.batch, G * R, core.n).mT
    start = torch.stack([start.real, start.imag] if start.is_complex() else [start, torch.zeros_like(start)], 1)
    y, end, _ = call(modes, c, v, start, core.exclusive, _keep(c, v, start))
    end = torch.complex(end[:, 0], end[:, 1]) if S.is_complex() else end[:, 0]
    return y.unflatten(-1, (G, R))[..., None, None], end.mT.unflatten(1, (G, R)).unsqueeze(-1)


def _shared(x: Tensor) -> bool:
    return x.shape[2] == x.shape[3] == 1


def _constant(x: Tensor) -> bool:
    return x.shape[0] == x.shape[1] == 1


def _per_channel(core: Core) -> bool:
    """True if the log decay is one number a channel and step, a product of one with constants, or constant."""
    return core.f is None and (core.log is None or core.log.shape[-1] == 1 or _constant(core.log))


def _keep(*xs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in xs)


def _elementwise(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a core where n = 1, or p = 1 and y = S: every entry of the state goes its own way."""
    shape = (core.batch, core.length, *core.heads, max(core.n, core.p))
    if core.f is not None and core.w is not None:  # n = 1: a scalar more in the decay
        return _matrices(core, S)
    write = (core.k * core.v).expand(shape)
    log = core.decay_log()
    parts: Callable[[Tensor], Tensor] = (
        (lambda x: torch.cat([x.real, x.imag], -1)) if core.dtype.is_complex else (lambda x: x)
    )
    lanes = 2 if core.dtype.is_complex else 1
    write = parts(write)
    start = parts(S.flatten(-2)).flatten(1).unsqueeze(-1)
    varying = rate = None
    if log is not None:
        wide = log.expand(*log.shape[:2], *core.heads, shape[-1])
        wide = torch.cat([wide] * lanes, -1) if lanes > 1 else wide
        if _constant(log):
            rate = wide.reshape(1, -1)
        else:
            varying = wide.expand(core.batch, core.length, -1, -1, -1).flatten(2)
    keep = _keep(write, varying, rate, start)
    y, end, _ = call(channel, None, None, write.flatten(2), varying, rate, start, core.exclusive, keep)

    def joined(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (*core.heads, lanes * shape[-1]))
        return torch.complex(*x.chunk(2, -1)) if lanes > 1 else x

    y, end = joined(y), joined(end.squeeze(-1))
    if core.whole and core.p == 1:
        return y.unsqueeze(-1), end.unsqueeze(-1)
    read = core.q * y.unsqueeze(-2)  # n = 1: q is one number
    return core.needed(read), end.unsqueeze(-2)


def _channels(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a core where p = 1 and all heads share q and k."""
    G, R = core.heads
    lanes = (core.batch, core.length, G * R)

    def across(x: Tensor) -> Tensor:  # [1,1,G,R,1|n] to [n,L]
        return x.expand(1, 1, G, R, core.n).reshape(G * R, core.n).mT

    log = rate = None
    if core.log is not None:
        if _constant(core.log) and (core.length > 1 or core.log.shape[-1] > 1):
            whole = core.decay_log()
            assert whole is not None
            rate = across(whole)
        else:
            log = core.log.expand(core.batch, core.length, G, R, 1).reshape(lanes)
            rate = None if core.rate is None else across(core.rate)
    v = core.v.expand(core.batch, core.length, G, R, 1).reshape(lanes)
    q, k = core.q.flatten(2), core.k.flatten(2)
    start = S.reshape(core.batch, G * R, core.n)
    y, end, _ = call(channel, q, k, v, log, rate, start, core.exclusive, _keep(q, k, v, log, rate, start))
    return y.unflatten(-1, (G, R))[..., None, None], end.unflatten(1, (G, R)).unsqueeze(-1)


def _matrices(core: Core, S: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a state of n keys by p values a head."""
    log, q, k = core.decay_log(), core.q.squeeze(-2), core.k
    is_complex = core.dtype.is_complex or q.is_complex()
    if is_complex:  # Re(q^T S) = Re(q)^T Re(S) - Im(q)^T Im(S)
        q, k = (x if x.is_complex() else torch.complex(x, torch.zeros_like(x)) for x in (q, k))
        q, k = torch.cat([q.real, -q.imag], -1), torch.cat([k.real, k.imag], -1)
        S = torch.cat([S.real, S.imag if S.is_complex() else torch.zeros_like(S)], -2)
        log = torch.cat([log, log], -1) if log is not None and log.shape[-1] > 1 else log
    f = None if core.f is not None and _one(core.f, k) else core.f
    parts = [None if x is None else _last_contiguous(x) for x in (q, k, core.v, log, f, core.w)]
    # The loops add up the gradients of what heads share along the axis R.
    turned = core.heads[1] == 1 and q.shape[2] == k.shape[2] == 1 < core.heads[0]
    if turned:
        parts, S = [None if x is None else x.transpose(2, 3) for x in parts], S.transpose(1, 2)
    q, k, v, log, f, w = parts  # type: ignore[assignment]
    assert q is not None and k is not None and v is not None
    y, end, _ = call(matrix, q, k, v, log, f, w, S, core.length, core.exclusive, _keep(*parts, S))
    if turned:
        y, end = y.transpose(2, 3), end.transpose(1, 2)
    if is_complex:
        end = torch.complex(*end.chunk(2, -2))
    return y.unsqueeze(-2), end


def _one(x: Tensor, y: Tensor) -> bool:
    """True if two parts are one tensor, for gradients too: itself, or the same view of the same one."""
    if x is y:
        return True
    if torch.compiler.is_compiling() or x.requires_grad != y.requires_grad or x.dtype != y.dtype:
        return False
    if x.is_neg() != y.is_neg():
        return False
    if x.data_ptr() != y.data_ptr() or x.shape != y.shape or x.stride() != y.stride():
        return False
    a, b = x.grad_fn, y.grad_fn
    return not x.requires_grad or (a is not None and b is not None and a.next_functions == b.next_functions)


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
