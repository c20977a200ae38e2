"""How many attention heads a time-invariant system needs: as many as its lag operators span dimensions.

y_i = sum_j W_{i-j} u_j with W_t = C A^t B. A head of attention has scalar weights and one value matrix, w(i-j) V. With
k = dim span{W_t, t < T}, k heads sum_h w_h(i-j) V_h are the system on length T, and fewer are not.
Source: How Many Heads Make an SSM? (arXiv 2512.15115, head-count theorem).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract.equivalence import Equivalence, equivalent
from ..errors import StateformError, require
from ..system import System
from ..system.core import fold
from ..system.precision import tolerance, wide
from .certificate import check_system, reference
from .kernels import kernel


@dataclass(frozen=True)
class Heads:
    """A time-invariant system of T steps as heads of attention with weights that depend on the lag alone."""

    weights: Tensor
    """w_h(t), [k,T]: head h gives the value of t steps ago the weight w_h(t), alpha_ij = w_h(i-j)."""
    values: Tensor
    """V_h [k,o,i], the value (and output) matrix of each head."""
    singular_values: Tensor
    """Of the T lag operators side by side: how clearly k is the rank."""
    certificate: Equivalence
    """Outputs of the heads against those of the system in float64."""

    @property
    def count(self) -> int:
        """k, the heads that are necessary and sufficient."""
        return len(self.weights)

    @property
    def ok(self) -> bool:
        """True if the outputs agree."""
        return bool(self.certificate)

    def attention(self) -> Tensor:
        """Compute the attention matrices alpha [k,T,T] of the heads, lower triangular."""
        T = self.weights.shape[1]
        lag = torch.arange(T)[:, None] - torch.arange(T)
        return torch.where(lag >= 0, self.weights[:, lag.clamp_min(0)], 0.0)

    def apply(self, u: Tensor) -> Tensor:
        """Compute y_i = sum_h sum_{j<=i} w_h(i-j) V_h u_j for u [B,t,i], t <= T."""
        T = u.shape[1]
        fits = u.ndim == 3 and u.shape[2] == self.values.shape[2] and self.weights.shape[1] >= T
        require(
            fits,
            f"u has shape {list(u.shape)}; expected [B,t,{self.values.shape[2]}] with t <= {self.weights.shape[1]}",
        )
        return torch.einsum("hij,hom,bjm->bio", self.attention()[:, :T, :T], self.values, u.to(self.values.dtype))

    def __str__(self) -> str:
        following = self.singular_values[self.count : self.count + 1].tolist()
        gap = f"{float(self.singular_values[self.count - 1]):.2g}" if self.count else "none"
        return (f"{self.count} heads of attention make this system on {self.weights.shape[1]} tokens: "
                f"{self.certificate.text} (singular value {self.count}: {gap}, the next: "
                f"{f'{following[0]:.2g}' if following else 'none'})")  # fmt: skip


@torch.no_grad()
def lag_operators(system: System) -> Tensor:
    """Compute W_t = C A^t B of all heads, [T,o,i]: for values i = o = H (each head a channel), else w_out A^t w_in.

    Raises:
        StateformError: a system that varies in time.
    """
    if system.v is not None:
        K = kernel(system)
        require(K.ndim == 2 and not K.is_complex(), f"K = {list(K.shape)}: expected a real output a head, of a q [H,n]")
        return torch.diag_embed(K.T)
    require(system.w_in is not None and system.w_out is not None,
            "a vector state needs its maps w_in and w_out (as an LRU or S5 has them)")  # fmt: skip
    assert system.w_in is not None and system.w_out is not None
    varying = [x for x in system.tensors() if x != "k" and not system.is_constant(x)]
    if varying:
        raise StateformError(f"only a time-invariant system has lag operators; varying in time: {', '.join(varying)}")
    A = fold(system).transition().dense(system.n)[0, 0].flatten(0, 1)  # [H|1,n,n]
    b = system.gate("b", 1.0)[0, 0, :, None, None]
    state, out = (b * system.w_in).to(torch.promote_types(A.dtype, system.w_in.dtype)), []
    for _ in range(system.T):
        out.append(torch.einsum("ohn,hni->oi", system.w_out.to(state.dtype), state))
        state = A.to(state.dtype) @ state
    W = torch.stack(out)
    return W.real if W.is_complex() else W


@torch.no_grad()
def heads_for_ssm(system: System, *, rtol: float | None = None) -> Heads:
    """Find the interaction rank of a time-invariant system, and as many heads of attention that are equal to it.

    The lag operators side by side have a singular value decomposition W_t = sum_h (U_th sigma_h) V_h: its rank is k.

    Args:
        system: constant but for its input: values v (each head a channel) or a vector state with w_in and w_out.
        rtol: singular values below this share of the largest count as zero (default: rounding).

    Raises:
        StateformError: a system that varies in time, or with readout "exp".
    """
    check_system(system, "heads_for_ssm")
    require(system.readout.linear, f'the readout is "{system.readout}"; expected a linear time-invariant system')
    double = system.to(torch.float64)
    W = lag_operators(double)
    T, o, i = W.shape
    U, s, Vh = torch.linalg.svd(W.flatten(1), full_matrices=False)
    least = max(T, o * i) * torch.finfo(system.dtype).eps if rtol is None else rtol
    k = int((s > least * s.amax()).sum()) if s.numel() else 0
    weights, values = (U[:, :k] * s[:k]).T, Vh[:k].unflatten(1, (o, i))
    found = Heads(weights, values, s, Equivalence(True, 0.0, 0.0))
    u, want = _input(double, reference(double))
    got = found.apply(u)
    allowed = max(tolerance(system.dtype, T), 0.0 if rtol is None else rtol)
    return Heads(weights, values, s, equivalent(got, want, rtol=allowed))


def _input(system: System, y: Tensor) -> tuple[Tensor, Tensor]:
    """Read the input [B',T,i] of a system, and its outputs y as [B',T,o]."""
    if system.v is not None:  # every value of a head is a sequence of its own
        v = system.v.expand(-1, -1, system.H, -1)
        return (x.movedim(-1, 1).flatten(0, 1) for x in (v, y))  # type: ignore[return-value]
    assert system.w_in is not None
    # k = w_in u in the least-squares sense: any u with these writes has the same outputs
    k, maps = wide(system.k).flatten(2), wide(system.w_in).flatten(0, 1)
    if k.is_complex() or maps.is_complex():
        k, maps = (torch.cat([x.real, x.imag], axis) if x.is_complex() else torch.cat([x, 0 * x], axis)
                   for x, axis in ((k, 2), (maps, 0)))  # fmt: skip
    u = torch.linalg.lstsq(maps.expand(len(k), *maps.shape), k.mT).solution.mT
    return u, y.squeeze(2)
