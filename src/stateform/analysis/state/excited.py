"""Which of its states a system uses on real input, and how much it reads from each head's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import StateformError, require
from ...forms import run
from ...forms.stabilise import stabilise
from ...system import System
from ...system.readout import LINEAR

STRETCH = 2**22
"""Numbers of the state held at once."""


@dataclass(frozen=True, eq=False)
class Excited:
    """The directions of the state that an input moves, by the singular values of the states that it was in."""

    singular_values: Tensor
    """Root mean square of the state along its principal directions, [H,N], the largest first."""
    tol: float

    @property
    def N(self) -> int:
        """States of a head, real numbers."""
        return self.singular_values.shape[-1]

    @property
    def count(self) -> list[int]:
        """Directions moved by more than `tol` of the most moved one, for each head."""
        s = self.singular_values
        return [int(x) for x in (s > self.tol * s[:, :1]).sum(-1)]

    @property
    def effective(self) -> list[float]:
        """exp of the entropy of the shares sigma_k^2 / sum sigma^2 of each head: 1 if one direction has it all."""
        energy = self.singular_values.square()
        share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
        return [float(x) for x in torch.special.entr(share).sum(-1).exp()]

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {
            "states": self.N, "count": self.count, "effective": self.effective, "tol": self.tol,
            "singular_values": self.singular_values.tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        text = [f"{self.N} states a head; directions moved by more than {self.tol:g} of the most moved one:"]
        for h, (count, effective) in enumerate(zip(self.count, self.effective, strict=True)):
            text.append(f"  head {h}: {count}, effectively {effective:.1f}")
        return "\n".join(text)


@torch.no_grad()
def excited(system: System, tol: float = 1e-3) -> Excited:
    """Compute the singular values of the trajectory S_1 ... S_T, from a zero state, over rows, time and columns.

    The vector is a column of S, of n keys (a complex one counts as [Re; Im], 2 n). Where heads are single numbers
    (n = 1), or are mapped together by `w_out`, all heads are one vector. Exponential gates (`log_b`) are taken in the
    coordinates of `stabilise`; the column of a normaliser is left out. The states are never all held: each
    stretch is folded into a triangular factor (QR), which keeps the digits of small singular values.

    Args:
        system: of a finite state, time-varying or not, on its input.
        tol: the share of the largest singular value above which a direction counts as moved.

    Raises:
        StateformError: a softmax readout (no finite state), or no tokens.
    """
    require(isinstance(system, System), f"a {type(system).__name__} was given; expected a System, layer.system(u)")
    if system.readout.cached:
        raise StateformError('readout "exp" (softmax) has no finite state: its state is the cache of all tokens')
    require(system.B * system.T > 0, "an empty sequence moves no state")
    require(tol > 0, f"tol is {tol}; expected a number above 0")
    joined = system.w_out is not None or system.n == 1
    if system.log_b is not None and system.eta == "sum":
        system = stabilise(system)[0]
    bare: dict[str, Any] = dict.fromkeys(("q", "w_out", "d", "eta", "eta_floor"))
    system = replace(system, **bare, readout=LINEAR, exclusive=False)
    step = max(1, STRETCH // (system.B * system.H * system.n * system.p))
    state, R, count = None, None, 0
    for start in range(0, system.T, step):
        S, state = run(system[start : start + step], initial_state=state, return_state=True)
        S = S.unsqueeze(-1) if system.v is None else S  # [B,t,H,n,p]
        x = S.movedim(4, 2)  # columns are samples, as rows and tokens are
        x = x.flatten(3).unsqueeze(3) if joined else x
        x = torch.cat([x.real, x.imag], -1) if x.is_complex() else x
        x = x.flatten(0, 2).movedim(1, 0).double()  # [H, samples, N]
        count += x.shape[1]
        R = torch.linalg.qr(x if R is None else torch.cat([R, x], 1), mode="r").R
    assert R is not None
    sigma = torch.linalg.svdvals(R) / count**0.5
    return Excited(torch.nn.functional.pad(sigma, (0, R.shape[-1] - sigma.shape[-1])), tol)


@torch.no_grad()
def carried(system: System) -> Tensor:
    """Measure how much is read from the state of each head on this input, relative to the strongest head, [H], 0 to 1.

    Root mean squares over rows, time and outputs, without the direct term: what the state of a head is worth knowing
    for. Where `w_out` maps heads together, of what each adds to the outputs.

    Args:
        system: causal, on its input, from a zero state.
    """
    require(system.causal and system.B * system.T > 0, "what a state carries needs a causal system with tokens")
    w_out = system.w_out
    system = replace(system, d=None) if w_out is None else replace(system, d=None, q=None, w_out=None)
    y = run(system)
    if w_out is not None:
        y = y * w_out.abs().square().sum(0).sqrt()
    size = y.abs().double().square().movedim(2, 0).flatten(1).mean(1).sqrt()
    share = size / size.amax().clamp_min(torch.finfo(size.dtype).tiny)
    return torch.where(share.isfinite(), share, 1.0)
