"""smaller: a constant state-space layer as an ordinary layer with fewer states, and how far off it is.

Each channel is balanced and truncated (analysis/balance.py), and what is kept is diagonalised, A_r = V Lambda V^{-1}:

    y_t = sum_i (C_r V)_i (V^{-1} B_r)_i sum_j lambda_i^{t-j} u_j  =  2 Re sum_m w_m sum_j lambda_m^{t-j} u_j

over conjugate pairs, with half the weight for a pole on the real line. Layers that discretise exactly (ZOH) write
such a mode as A = log(lambda) / dt and C = w A / (lambda - 1).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..analysis.linear.balance import balred
from ..analysis.linear.control import freqresp, own_frequencies
from ..analysis.linear.gramian import poles
from ..analysis.linear.statespace import StateSpace, written
from ..architectures.ssm.dss import DSS
from ..architectures.ssm.lru import LRU
from ..architectures.ssm.lssl import LSSL
from ..architectures.ssm.s4 import S4
from ..architectures.ssm.s4d import S4D
from ..architectures.ssm.s5 import S5
from ..errors import require
from ..layer import Convolved, Layer
from ..system import System
from ..system.discretise import log_decay_and_gain

AHEAD = 3
"""So many orders above the least are looked at: one that splits no pair of poles may need fewer modes."""
TRIES = 3
"""So many numbers of modes are tried: where one is not enough although its bound is, rounding is the reason."""
GRID = 256
"""Frequencies, twice: evenly spaced, and on a logarithmic scale."""


@dataclass(frozen=True)
class Smaller:
    """A layer with fewer states."""

    layer: Layer
    """The new layer; the old one itself where no state could be left out."""
    written: bool
    """True if it is a new one."""
    states: tuple[int, int]
    """Real numbers in the state of a channel (of the layer, where all channels share one), before and after."""
    orders: tuple[int, ...]
    """Of these, those that the truncation of each channel needs."""
    bound: Tensor
    """2 sum_{k > r} sigma_k / sigma_1, of each channel: the Hankel bound, for what was truncated."""
    error: Tensor
    """||G - G'||_inf / sigma_1 of each channel, over frequencies, of the layer as its weights are."""
    tol: float
    by: Literal["bound", "error"] = "bound"

    @property
    def ok(self) -> bool:
        """True if the error is within the tolerance as measured, and by the bound where that was asked for."""
        return bool((self.error <= self.tol).all()) and (self.by == "error" or bool((self.bound <= self.tol).all()))


@dataclass(frozen=True)
class _Modes:
    """y = 2 Re sum_m c_m b_m^T sum_j lambda_m^{t-j} u_j: poles [H,M], b [H,M,i], c [H,o,M]; empty ones have c = 0."""

    poles: Tensor
    b: Tensor
    c: Tensor


def can_be_smaller(layer: object) -> bool:
    """True if `smaller` takes a layer: its class can hold any system of its kind with fewer states."""
    return type(layer.layer if isinstance(layer, Convolved) else layer) in _WRITERS


@torch.no_grad()
def smaller(
    layer: Layer, tol: float, *, by: Literal["bound", "error"] = "bound", modes: int | None = None
) -> Smaller:  # fmt: skip
    """Find the layer with the fewest modes, as many in each channel, that keeps each channel to an error of `tol`.

    S4D, DSS, LRU and S5 stay what they are. The modes of S4 and LSSL are shared by the channels, so that no channel
    could leave out its own: they become an S4D, with the same output map.

    Args:
        layer: one of these, or a short convolution before one.
        tol: the largest gain of the difference over the largest Hankel singular value of the channel, over 0.
        by: what is to keep to it: the Hankel bound, which holds for every input whatever the frequencies, or the error
            measured over frequencies alone, which is smaller, so that more can be left out.
        modes: so many instead, whatever the error is (see `Smaller.ok`).

    Raises:
        StateformError: another layer, a tol that is none, poles on or outside the unit circle.
    """
    require(isinstance(tol, float | int) and 0 < tol < float("inf"), f"tol is {tol!r}; expected a number above 0")
    require(by in ("bound", "error"), f'by is {by!r}; expected "bound" or "error"')
    if type(layer) is Convolved:
        inner = smaller(layer.layer, tol, by=by, modes=modes)
        if not inner.written:
            return replace(inner, layer=layer)
        with torch.random.fork_rng(devices=[]):
            outer: Any = Convolved(inner.layer, layer.width)
        outer = _placed_like(outer, layer)
        outer.conv = copy.deepcopy(layer.conv)
        return replace(inner, layer=outer)
    kind = type(layer)
    require(kind in _WRITERS, f"{kind.__name__} cannot hold the reduced system as weights; expected one of "
            f"{', '.join(x.__name__ for x in _WRITERS)}")  # fmt: skip
    require(modes is None or (isinstance(modes, int) and modes >= 1), f"modes is {modes!r}; expected 1 or more")
    truncations = _Truncations(layer, tol, by)
    if modes is not None:
        return truncations.to(modes, most=True)
    found = truncations.fewest_by_error() if by == "error" else truncations.fewest_by_bound()
    return truncations.none() if found is None else found


class _Truncations:
    """The balanced truncations of a layer: each channel to an order of its own, all to the same number of modes."""

    def __init__(self, layer: Layer, tol: float, by: Literal["bound", "error"]) -> None:
        self.layer, self.tol, self.by = layer, float(tol), by
        weight = next(layer.parameters())
        s = _space(layer)
        found = balred(s, order=s.N)
        self.N, self.whole, self.before = s.N, found.reduced, _slots(layer)
        sigma = found.hankel.values
        top = sigma[:, :1]
        tails = 2 * sigma.flip(-1).cumsum(-1).flip(-1)
        there = (sigma > s.N * torch.finfo(sigma.dtype).eps * top).sum(-1)
        self.top = top[:, 0]
        self.tails = torch.nn.functional.pad(tails, (0, 1))  # of the values from k on, k = 0 .. N
        self.need = torch.minimum((tails > tol * top).sum(-1), there)
        # What the weights can tell.
        self.seen = torch.maximum(self.need, (sigma > torch.finfo(weight.dtype).eps * top).sum(-1))
        self.counts: dict[int, Tensor] = {}

    def count(self, r: int) -> Tensor:
        """Count the modes of each channel's truncation to r states; too many where it is unstable."""
        if r not in self.counts:
            values = torch.linalg.eigvals(self.whole.A[:, :r, :r])
            stable = (values.abs() < 1).all(-1)
            self.counts[r] = torch.where(stable, (values.imag >= 0).sum(-1), self.N + 1)
        return self.counts[r]

    def orders(self, slots: int, most: bool) -> Tensor:
        """Choose an order of each channel that fits into so many modes: the largest, or the least that is enough."""
        best = torch.zeros_like(self.need)
        sizes = range(1, min(2 * slots, self.N) + 1)
        for r in reversed(sizes) if most else sizes:
            fits = (self.count(r) <= slots) & (r <= self.seen) & (best == 0)
            best = torch.where(fits if most else fits & (r >= self.need), r, best)
            if bool((best > 0).all()):
                break
        return best

    def to(self, slots: int, most: bool) -> Smaller:
        """Write the layer with so many modes."""
        orders = self.orders(slots, most)
        new = _WRITERS[type(self.layer)](self.layer, _modes(self.whole, orders, slots))
        bound = self.tails.gather(1, orders[:, None])[:, 0] / self.top.clamp_min(torch.finfo(self.top.dtype).tiny)
        sizes = (self.N, self.N // self.before * slots)  # as many real numbers a mode as before
        error = _error(self.layer, new, self.top)
        return Smaller(new, True, sizes, tuple(orders.tolist()), bound, error, self.tol, self.by)

    def fewest_by_error(self) -> Smaller | None:
        """Find the fewest modes whose measured error is within the tolerance, by halving; None: as many as before."""
        best, fails, works = None, 0, self.before
        while works - fails > 1:
            middle = (works + fails) // 2
            found = self.to(middle, most=True)
            if found.ok:
                best, works = found, middle
            else:
                fails = middle
        return best

    def fewest_by_bound(self) -> Smaller | None:
        """Find the fewest modes that the bound allows; None: as many as before."""
        least = torch.full_like(self.need, self.N + 1)
        for r in range(max(1, int(self.need.min())), min(int(self.need.max()) + AHEAD, self.N) + 1):
            near = (r >= self.need) & (r <= (self.need + AHEAD).clamp_max(self.seen.clamp_min(1)))
            least = torch.where(near, torch.minimum(least, self.count(r)), least)
        first = max(1, int(torch.where(self.need > 0, least, 0).max()))
        for slots in range(first, min(first + TRIES, self.before)):
            for most in (True, False):  # what is kept below the tolerance may cost more digits than it adds
                if bool((self.orders(slots, most) >= self.need).all()) and (found := self.to(slots, most)).ok:
                    return found
        return None

    def none(self) -> Smaller:
        """Give the layer itself, no state left out."""
        zero = torch.zeros_like(self.top)
        return Smaller(self.layer, False, (self.N, self.N), tuple(self.need.tolist()), zero, zero, self.tol, self.by)


def _space(layer: Layer) -> StateSpace:
    """Build the matrices of a layer with constant parts, in float64 from the weights it has, on the CPU."""
    return written(_system(layer))


def _system(layer: Layer) -> System:
    """Build the System of a layer with constant parts on one token, in float64 from the weights it has, on the CPU."""
    double = copy.deepcopy(layer).double().cpu()
    return double.system(torch.zeros(1, 1, layer.d_model, dtype=torch.float64))


def _slots(layer: Layer) -> int:
    """Count the modes that a layer keeps of each channel, in the class that it would be written as."""
    n = int(layer.config["d_state"])
    # an S4 has n complex modes, which in pairs are as many; an LSSL has n real states, in pairs half
    return n if type(layer) in (LRU, S4) else -(-n // 2)


def _modes(s: StateSpace, orders: Tensor, slots: int) -> _Modes:
    """Truncate to the first `orders` states of each head, diagonal, one mode of each pair."""
    H, i, o = s.H, s.B.shape[-1], s.C.shape[-2]
    poles = s.A.new_zeros(H, slots, dtype=torch.complex128)
    b, c = poles.new_zeros(H, slots, i), poles.new_zeros(H, o, slots)
    for h, r in enumerate(orders.tolist()):
        if r == 0:
            continue
        values, V = torch.linalg.eig(s.A[h, :r, :r])
        left = torch.linalg.solve(V, s.B[h, :r].to(V.dtype))
        right = s.C[h, :, :r].to(V.dtype) @ V
        kept = (values.imag >= 0).nonzero().flatten()[:slots]
        m = len(kept)
        half = torch.where(values[kept].imag == 0, 0.5, 1.0)
        poles[h, :m], b[h, :m], c[h, :, :m] = values[kept], left[kept], right[:, kept] * half
    return _Modes(poles, b, c)


def _error(old: Layer, new: Layer, scale: Tensor) -> Tensor:
    """Find the largest gain of the difference over the scale, over frequencies, the angles of all poles among them."""
    spaces, systems = [_space(x) for x in (old, new)], [_system(x) for x in (old, new)]
    tiny = torch.finfo(scale.dtype).tiny
    if systems[0].v is None:
        grid = torch.cat([own_frequencies(x) for x in spaces], -1)
        G, G_new = (freqresp(x, grid).G for x in spaces)
        return torch.linalg.matrix_norm(G - G_new, 2).amax(-1).to(scale) / scale.clamp_min(tiny)
    angles = torch.cat([poles(x).angle().abs() for x in spaces], -1)
    even = torch.cat([torch.linspace(0, torch.pi, GRID), torch.logspace(-5, 0, GRID) * torch.pi]).to(angles)
    worst = []
    for h in range(len(angles)):
        grid = torch.cat([even, angles[h]]).unique()
        G, G_new = (_response(x, y, h, grid) for x, y in zip(systems, spaces, strict=True))
        worst.append((G - G_new).abs().amax())
    return torch.stack(worst).to(scale) / scale.clamp_min(tiny)


def _response(system: System, space: StateSpace, head: int, omega: Tensor) -> Tensor:
    """Compute G(exp(i omega)) [K] of one channel, without its direct term; each frequency costs as many operations as
    there are modes.

    With R = (z - decay)^{-1}, q^T (z - decay - f w^T)^{-1} k = q^T R k + (q^T R f) (w^T R k) / (1 - w^T R f).
    """
    if system.transition is not None:
        A, B, C, D = (x[head : head + 1] for x in (space.A, space.B, space.C, space.D))
        one = StateSpace(A, B, C, D, space.exclusive)
        return freqresp(one, omega).G[0, :, 0, 0] - one.D[0, 0, 0]
    assert isinstance(system.log_decay, Tensor) and system.phase is not None and system.q is not None
    parts = (system.q, system.k, system.log_decay, system.phase, system.f, system.w)
    q, k, log, phase, f, w = (None if x is None else x[min(head, len(x) - 1)] for x in parts)
    assert q is not None and k is not None and log is not None and phase is not None
    z = torch.polar(torch.ones_like(omega), omega)
    both = []
    for at in (z, z.conj()):
        R = 1 / (at[:, None] - torch.exp(torch.complex(log, phase)))
        F = R @ (q * k).to(R.dtype)
        if f is not None and w is not None:
            F = F + (R @ (q * f)) * (R @ (w * k)) / (1 - R @ (w * f))
        both.append(at * F)
    return (both[0] + both[1].conj()) / 2  # of the real part of the outputs


# -- the layers that can hold any modes ---------------------------------------------------------------------------


def _s4d(layer: Any, modes: _Modes) -> Layer:
    """Make an S4D (or a DSS) with these modes; each channel's step, the direct term and the output map are kept."""
    states = 2 * modes.poles.shape[1]
    kind = type(layer) if isinstance(layer, S4D) else S4D
    options = {k: v for k, v in layer.config.items() if kind is type(layer) or k in ("d_model", "dt_min", "dt_max")}
    new: Any = _placed_like(_layer_to_fill(kind, {**options, "d_state": states}), layer)
    for name in ("log_dt", "D"):
        getattr(new, name).copy_(getattr(layer, name))
    new.out_proj = copy.deepcopy(layer.out_proj)
    dt = new.log_dt.double().exp().unsqueeze(-1)
    empty = modes.c[:, 0].abs() == 0
    A = torch.where(empty, -0.5 + 0j, modes.poles.log() / dt)
    new.A_log.copy_((-A.real).clamp_min(1e-30).log())
    new.A_imag.copy_(A.imag)
    A = torch.complex(-new.A_log.double().exp(), new.A_imag.double())
    gain = log_decay_and_gain(A, dt)[1]
    w = modes.c[:, 0] * modes.b[..., 0] / gain
    new.C.copy_(torch.view_as_real(w))
    return new


def _lru(layer: Any, modes: _Modes) -> Layer:
    new: Any = _placed_like(_layer_to_fill(LRU, {**layer.config, "d_state": modes.poles.shape[1]}), layer)
    log = _log(modes)
    new.nu_log.copy_((-log.real).log())
    new.theta_log.copy_(log.imag.abs().clamp_min(1e-12).log())  # an angle is above 0; this one is as good as none
    new.gamma_log.copy_(0.5 * torch.log1p(-(2 * log.real).exp()))
    b, c = _evened(modes, new.gamma_log.double().exp())
    new.B.copy_(torch.view_as_real(b))
    new.C.copy_(torch.view_as_real(2 * c))
    new.D.copy_(layer.D)
    return new


def _s5(layer: Any, modes: _Modes) -> Layer:
    new: Any = _placed_like(_layer_to_fill(S5, {**layer.config, "d_state": 2 * modes.poles.shape[1]}), layer)
    log = _log(modes)
    dt = -2 * log.real  # the real part of Lambda is -1/2, as that of HiPPO
    new.log_dt.copy_(dt.log())
    dt = new.log_dt.double().exp()
    new.log_decay_rate.copy_((-log.real / dt).log())
    new.frequency.copy_(log.imag / dt)
    Lambda = torch.complex(-new.log_decay_rate.double().exp(), new.frequency.double())
    b, c = _evened(modes, log_decay_and_gain(Lambda, dt)[1])
    new.B.copy_(torch.view_as_real(b))
    new.C.copy_(torch.view_as_real(c))
    new.D.copy_(layer.D)
    new.gate_proj = copy.deepcopy(layer.gate_proj)
    return new


_WRITERS: dict[type[Layer], Callable[[Any, _Modes], Layer]] = {
    S4D: _s4d, DSS: _s4d, S4: _s4d, LSSL: _s4d, LRU: _lru, S5: _s5,
}  # fmt: skip


def _log(modes: _Modes) -> Tensor:
    """Compute log lambda of the one system, [M]; an empty mode decays like exp(-t/2)."""
    empty = modes.c[0].abs().amax(0) == 0
    return torch.where(empty, -0.5 + 0j, modes.poles[0].log())


def _evened(modes: _Modes, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Divide b [M,i] by the gain and by its norms, and give c [o,M] what that takes away."""
    b, c = modes.b[0] / gain.unsqueeze(-1), modes.c[0]
    size = torch.linalg.vector_norm(b, dim=-1)
    size = torch.where(size > 0, size, 1.0)
    return b / size.unsqueeze(-1), c * size


def _layer_to_fill(kind: type[Layer], options: dict[str, Any]) -> Layer:
    """Make a layer whose weights are to be overwritten: the random numbers of the program go on as they were."""
    with torch.random.fork_rng(devices=[]):
        return kind(**options)


def _placed_like(new: Layer, old: Layer) -> Layer:
    """Put a layer into the dtype, on the device and in the mode of another."""
    weight = next(old.parameters())
    return new.to(device=weight.device, dtype=weight.dtype).train(old.training)
