"""A System written out: the DSF's dense matrices, and the eigenvalues of its transitions. For small sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import require
from ..system import System
from ..system.core import fold, unfold
from ..system.precision import real_dtype, upcast
from ..system.shapes import spread_heads
from .form import chunkwise_or_recurrent
from .ridge import as_linear
from .softmax import log_normaliser
from .stabilise import exponential, stabilise


@dataclass(frozen=True)
class Matrices:
    """Lambda [B,T,H,N,N], B [B,T,H,N,i], C [B,T,H,o,N], D [B,T,H,o,i]: a system written out (see System.matrices)."""

    Lambda: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    exclusive: bool = False
    """C reads h_{t-1} instead of h_t."""

    def run(self, u: Tensor) -> Tensor:
        """Run y_t = C_t h_t + D_t u_t with h_t = Lambda_t h_{t-1} + B_t u_t from h = 0, for u [B,T,H,i]."""
        u = u.to(self.B.dtype)
        h, out = torch.zeros_like(self.B[:, 0, ..., 0]), []
        for t in range(self.Lambda.shape[1]):
            before = h
            h = _mv(self.Lambda[:, t], h) + _mv(self.B[:, t], u[:, t])
            out.append(_mv(self.C[:, t], before if self.exclusive else h) + _mv(self.D[:, t], u[:, t]))
        return torch.stack(out, 1)


def _mv(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def normaliser(system: System) -> Tensor:
    """Compute eta_t [B,T,H], measured from a zero state where it is a sum (ones where there is none). A sum for reads
    with an output axis is [B,T,H,o].
    """
    B, T, H = system.B, system.T, system.H
    if B * T == 0:
        return torch.ones(B, T, H, dtype=real_dtype(upcast(system.k).dtype), device=system.device)
    if system.readout.cached and system.eta == "sum":
        eta = log_normaliser(system).exp() + system.gate("d")
        return eta if system.eta_floor is None else torch.maximum(eta.abs(), system.gate("eta_floor"))
    if system.eta != "sum":
        eta = system.gate("eta", 1.0).expand(B, T, H)
        floored = system.eta is not None and system.eta_floor is not None
        return torch.maximum(eta.abs(), system.gate("eta_floor")) if floored else eta
    system = system.to(real_dtype(upcast(system.k).dtype))  # in half precision a read is rounded to it
    ones = torch.ones(B, T * system.micro, 1, 1, dtype=system.dtype, device=system.device)
    sums = replace(system, v=ones, w_in=None, eta=None, eta_floor=None)
    core = fold(sums)
    raw, _ = chunkwise_or_recurrent(sums).compute(core, core.zero_state())
    eta = unfold(sums, raw.flatten(2, 3)).squeeze(-1).to(real_dtype(upcast(system.k).dtype))
    if system.eta_floor is None:
        return eta
    floor = system.gate("eta_floor")
    return torch.maximum(eta.abs(), floor if eta.ndim == 3 else floor.unsqueeze(-1))


def matrices(system: System, *, normalised: bool, limit: float) -> Matrices:
    """See System.matrices."""
    require(not system.readout.cached,
            'a system with readout "exp" has no finite state: its feature expansion is infinite (arXiv 2405.15731, '
            "Lemma 1). Use coefficients(), or a truncation to finitely many features")  # fmt: skip
    require(system.log_b is None, "matrices need the write strength itself: stabilise the system first")
    if system.readout.gram:
        system = as_linear(system)
    B, T, H, n, r = system.B, system.T, system.H, system.n, system.micro
    p, vector = system.p, system.v is None
    size = B * T * H * (n * p) ** 2 * upcast(system.k).element_size()
    require(size <= limit, f"these matrices would take {size / 1e9:.1f} GB ([{B},{T},{H},{n * p},{n * p}]); the limit "
            f"is {limit / 1e9:.1f} GB. Take a stretch system[start:stop] or system.select_heads([...])")  # fmt: skip
    core = fold(system)

    def full(x: Tensor) -> Tensor:  # [B,T,G,R,...] with every axis written out, heads together
        x = x.expand(B, T * r, *core.heads, *x.shape[4:])
        return x.flatten(2, 3)

    dtype = torch.promote_types(core.dtype, core.q.dtype)  # a real decay may carry complex keys or reads
    step = full(core.transition().dense(n)).to(dtype)
    k = full(core.k)
    b = spread_heads(system.gate("b", 1.0), H).expand(B, T * r, H)
    write = (k * b.unsqueeze(-1)).to(dtype)
    A, W = step[:, ::r], write[:, ::r].unsqueeze(-1)
    for i in range(1, r):  # one token is r steps; each write keeps its own input column
        A, W = step[:, i::r] @ A, torch.cat([step[:, i::r] @ W, write[:, i::r].unsqueeze(-1)], -1)
    at = slice(0, None, r) if system.exclusive else slice(r - 1, None, r)
    q = full(core.q)[:, at]
    if vector and system.w_in is not None:
        require(r == 1 and system.d is None, "w_in with micro-steps or a direct term has no matrices here")
        W = spread_heads(upcast(system.w_in)[None, None], H).to(A.dtype) * b[..., None, None]
    if system.w_out is not None:
        q = spread_heads(upcast(system.w_out).transpose(0, 1)[None, None], H).to(A.dtype).expand(B, T, H, -1, n)
    eye = torch.eye(p, dtype=A.dtype, device=A.device)
    inputs = W.shape[-1]

    def kron(x: Tensor) -> Tensor:  # x (x) I_p
        return (x[..., :, None, :, None] * eye[:, None, :]).flatten(-2).flatten(-3, -2)

    Lambda, C = kron(A), kron(q.to(A.dtype))
    Bm = kron(W.to(A.dtype))
    D = C.new_zeros(B, T, H, C.shape[-2], Bm.shape[-1])
    if system.d is not None:
        require(q.shape[-2] == 1, "a direct term with an output axis has no D here")
        own = 0 if system.exclusive else r - 1
        place = torch.zeros(1, inputs, dtype=A.dtype, device=A.device)
        place[0, own] = 1
        D = D + system.gate("d")[..., None, None] * kron(place)
    if system.eta is None:
        return Matrices(Lambda, Bm, C, D, system.exclusive)
    eta = normaliser(system)
    if eta.ndim == 4 and not normalised:  # a sum for every output, each of p rows
        return Matrices(Lambda, Bm, C / eta.repeat_interleave(p, -1).unsqueeze(-1), D, system.exclusive)
    eta = eta[..., None, None]
    if not normalised:
        return Matrices(Lambda, Bm, C / eta, D / eta, system.exclusive)
    unread = system.exclusive and system.eta == "sum" and system.d is None and system.eta_floor is None
    require(not unread, "an exclusive read divides the first token by an empty sum, and h_1 / 0 is no state to go on "
            "from; expected a direct term d, a floor, or normalised=False")  # fmt: skip
    ratio = eta_ratio(system)[..., None, None]
    return Matrices(Lambda * ratio, Bm / eta, C * ratio if system.exclusive else C, D / eta, system.exclusive)


def eta_ratio(system: System) -> Tensor:
    """Compute eta_{t-1}/eta_t [B,T,H]; before the first token a sum is 0, anything else as at the first token."""
    shared = system.eta != "sum" or system.q is None or system.q.ndim in (2, 4)
    require(shared, "with an output axis every output has a normaliser of its own; expected one a head: take the "
            "outputs one by one, or normalised=False")  # fmt: skip
    if system.eta != "sum":
        eta = normaliser(system)
        return torch.cat([eta[:, :1], eta[:, :-1]], 1) / eta
    if system.readout.cached:
        require(system.eta_floor is None, "with a floor the ratio of normalisers of an exp readout is not computed")
        log = log_normaliser(system)
        # (e^{L_{t-1}} + d_{t-1}) / (e^{L_t} + d_t), each sum without the largest of its exponents
        d = system.gate("d").expand_as(log)
        top = torch.maximum(log, d.abs().log())
        eta = torch.exp(log - top) + d * torch.exp(-top)
        later = eta[:, :-1] / eta[:, 1:] * torch.exp(top[:, :-1] - top[:, 1:])
        return torch.cat([torch.zeros_like(log[:, :1]), later], 1)
    eta = normaliser(system)
    return torch.cat([torch.zeros_like(eta[:, :1]), eta[:, :-1]], 1) / eta


def spectrum(system: System, *, normalised: bool) -> Tensor:
    """See System.spectrum."""
    if normalised and exponential(system):
        system = stabilise(system)[0]  # a eta_{t-1}/eta_t is the same in every scale of the state
    if system.readout.cached:
        require(
            normalised,
            'readout "exp" has A_t = I; its eigenvalue in the DSF\'s coordinates is eta_{t-1}/eta_t: normalised=True',
        )
        return eta_ratio(system).unsqueeze(-1) + 0j
    core = fold(system)
    values = core.transition().spectrum(system.n)
    values = values.expand(*values.shape[:2], *core.heads, system.n).flatten(2, 3)
    if normalised and system.eta is not None:
        ratio = eta_ratio(system).unsqueeze(2)  # once a token, at its first step
        later = torch.ones_like(ratio).expand(-1, -1, system.micro - 1, -1)
        values = values * torch.cat([ratio, later], 2).flatten(1, 2).unsqueeze(-1)
    return values
