"""Eigenvalues and norms of the transitions on real input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import require
from ..system import System


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of A_t at some tokens."""

    eigenvalues: Tensor
    """Complex, [B|1, steps, H, n]."""
    norm: float
    """Largest operator norm ||A_t||_2 seen: at most 1 means that no state grows in a step."""

    @property
    def radius(self) -> float:
        """Largest modulus."""
        return float(self.eigenvalues.abs().max())

    @property
    def smallest(self) -> float:
        """Least modulus."""
        return float(self.eigenvalues.abs().min())

    @property
    def is_complex(self) -> bool:
        """Whether an eigenvalue lies off the real line."""
        e = self.eigenvalues
        return bool((e.imag.abs() > 1e-6 * e.abs().clamp_min(1e-12)).any())

    def real_range(self) -> tuple[float, float]:
        """Least and largest real part."""
        return float(self.eigenvalues.real.min()), float(self.eigenvalues.real.max())

    def sample(self, size: int, seed: int = 0) -> Tensor:
        """At most `size` eigenvalues drawn without replacement."""
        flat = self.eigenvalues.flatten()
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:size]
        return flat[order.to(flat.device)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        low, high = self.real_range()
        return {
            "abs_min": self.smallest, "abs_max": self.radius, "real_min": low, "real_max": high,
            "complex": self.is_complex,
        }  # fmt: skip


@torch.no_grad()
def spectrum(system: System, tokens: Sequence[int] | None = None) -> Spectrum:
    """Eigenvalues of A_t at the tokens given (default: up to 32 spread evenly).

    With readout "exp" A_t = I; what is given there is eta_{t-1}/eta_t, the eigenvalue in the DSF's coordinates
    (arXiv 2405.15731 eq. 15, 2510.09379), from the first tokens up to the last one asked for.

    Args:
        system: any system.
        tokens: indices into time.
    """
    T = system.T
    require(T > 0, "an empty sequence has no transitions")
    index = list(tokens) if tokens is not None else sorted({int(t) for t in torch.linspace(0, T - 1, 32)})
    require(all(0 <= t < T for t in index), f"tokens {index} are not all among the {T} of the system")
    if system.readout == "exp":
        ratio = system[: max(index) + 1].spectrum(normalised=True)[:, index]
        return Spectrum(ratio, 1.0)
    at = torch.tensor(index, device=system.device)
    chosen = system.gather(lambda x, r: x.unflatten(1, (-1, r))[:, at].flatten(1, 2))
    values = chosen.spectrum()
    return Spectrum(values, _norm(chosen, values))


def _norm(system: System, values: Tensor) -> float:
    if system.f is None and system.transition is None:
        return float(values.abs().max())  # a diagonal matrix
    core = system.core()
    return float(torch.linalg.matrix_norm(core.transition().dense(system.n), ord=2).max())
