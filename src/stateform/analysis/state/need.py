"""The singular values of an operator's blocks between past and future, and the states that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import require
from ...system.shapes import indices


@dataclass(frozen=True)
class StateNeed:
    """The singular values of H_t = Phi[t:, :t] at some splits t, and the states that they ask for."""

    splits: list[int]
    """Tokens before each split, ascending, among 1..T-1."""
    values: Tensor
    """Singular values of what was kept of H_t, [B,H,splits,m], descending, zeros behind."""
    missing: Tensor
    """Squared Frobenius norm of what was dropped of H_t, [B,H,splits]; zero for a linear readout."""
    energy: Tensor
    """||H_t||_F^2 at every t = 1..T-1, [B,H,T-1]."""
    total: Tensor
    """||Phi||_F^2, the diagonal included, [B,H]."""
    tol: float
    relative: Literal["block", "operator"]
    writes: int
    """Columns of Phi a token (micro-steps)."""
    outputs: int
    """Rows of Phi a token (1 for scalar weights)."""
    state: int | None
    """Rank that no H_t exceeds: that of the system's own state, in real numbers where only a real part is read."""

    @property
    def length(self) -> int:
        """The tokens T."""
        return self.energy.shape[-1] + 1

    def ranks(self, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """Bound the state that is needed at each split: the least and the most, [B,H,splits] each.

        With H = H' + D, H' what was kept and D, orthogonal to it, what was dropped: sigma_k(H') <= sigma_k(H), and
        sum_{k>r} sigma_k(H)^2 <= sum_{k>r} sigma_k(H')^2 + ||D||_F^2. Equal where nothing was dropped.

        Args:
            tol: the relative error allowed (default: the one that the operator was read with).
        """
        at = torch.tensor([t - 1 for t in self.splits], dtype=torch.long, device=self.energy.device)
        allowed = self._allowed(self.tol if tol is None else tol)[..., at]
        return self._ranks(torch.arange(len(self.splits), device=at.device), allowed)

    def bounds(self, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """Bound the same at every t = 1..T-1, [B,H,T-1] each, exactly, from the splits on either side.

        From t to t + 1, H_t loses the rows of a token and gains its columns: at one and the same error the rank rises
        by at most the columns of a token and falls by at most its rows.
        """
        T, device = self.length, self.energy.device
        allowed, t = self._allowed(self.tol if tol is None else tol), torch.arange(1, T, device=device)
        most = torch.minimum(t * self.writes, (T - t) * self.outputs).expand_as(allowed)
        most = most if self.state is None else most.clamp_max(self.state)
        least = torch.zeros_like(most)
        if not self.splits:
            return least, most
        splits = torch.tensor(self.splits, device=device)
        after = torch.searchsorted(splits, t)  # the first split at t or later
        for near, known in ((after - 1, after > 0), (after, after < len(splits))):
            near = near.clamp(0, len(splits) - 1)
            low, high = self._ranks(near, allowed)
            since, until = (t - splits[near]).clamp_min(0), (splits[near] - t).clamp_min(0)
            low = low - since * self.outputs - until * self.writes
            high = high + since * self.writes + until * self.outputs
            least = torch.where(known, torch.maximum(least, low), least)
            most = torch.where(known, torch.minimum(most, high), most)
        return least, most

    @property
    def need(self) -> Tensor:
        """The state that is enough at every split, the most of `ranks`, [B,H]."""
        most = self.ranks()[1]
        return most.amax(-1) if self.splits else most.new_zeros(most.shape[:2])

    def per_head(self) -> list[int]:
        """Give `need`, the largest of the batch, per head."""
        return [int(x) for x in self.need.amax(0)]

    def limited(self) -> list[bool]:
        """Mark each head that needs at some split all that so short a text can ask for: a bound from below."""
        splits = torch.tensor(self.splits, device=self.energy.device)
        full = torch.minimum(splits * self.writes, (self.length - splits) * self.outputs)
        asked = (self.ranks()[1] >= full) & (full < (torch.inf if self.state is None else self.state))
        return [bool(x) for x in asked.any(-1).any(0)]

    @property
    def exact(self) -> bool:
        """True if least and most agree at every split."""
        least, most = self.ranks()
        return bool((least == most).all())

    def _allowed(self, tol: float) -> Tensor:
        """Compute the squared error allowed at every t, [B,H,T-1]."""
        return tol**2 * (self.energy if self.relative == "block" else self.total[..., None].expand_as(self.energy))

    def _ranks(self, near: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Find the least and the most rank of H at the splits `near` [N], with squared errors allowed [B,H,N]."""
        squares = F.pad(self.values[:, :, near].square(), (0, 1))
        tails = squares.flip(-1).cumsum(-1).flip(-1)  # tails[r] = sum_{k>r}
        allowed, missing = allowed.unsqueeze(-1), self.missing[:, :, near].unsqueeze(-1)
        splits = torch.tensor(self.splits, device=near.device)[near]
        full = torch.minimum(splits * self.writes, (self.length - splits) * self.outputs).expand(allowed.shape[:-1])
        enough = tails + missing <= allowed
        most = torch.where(enough.any(-1), enough.int().argmax(-1), full)
        return (tails <= allowed).int().argmax(-1), most

    def __str__(self) -> str:
        heads = ", ".join(str(x) for x in self.per_head())
        of = "each block Phi[t:, :t]" if self.relative == "block" else "the whole operator"
        lines = [f"state needed for {self.tol:.2g} of the Frobenius norm of {of}, T = {self.length}, per head: {heads}"]
        least, most = self.ranks()
        found = "exact" if self.exact else f"within {int((most - least).amax())}"
        above = int(self.bounds()[1].amax()) if self.length > 1 else 0
        lines.append(f"at {len(self.splits)} splits ({found}); between them no more than {above}")
        if self.state is not None:
            lines.append(f"the system's own state has {self.state}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        least, most = (x.tolist() for x in self.ranks())
        low, high = (x.tolist() for x in self.bounds())
        return {
            "tol": self.tol, "relative": self.relative, "splits": list(self.splits), "heads": self.per_head(),
            "least": least, "most": most, "bounds": {"least": low, "most": high}, "exact": self.exact,
            "state": self.state,
        }  # fmt: skip


def spread_splits(splits: Sequence[int] | int, T: int) -> list[int]:
    """Choose so many splits evenly, or check those that are given."""
    if isinstance(splits, int):
        require(splits >= 1, f"splits is {splits}; expected 1 or more, or which ones among 1..{T - 1}")
        return sorted({int(t) for t in torch.linspace(0, T, splits + 2)[1:-1].round()} & set(range(1, T)))
    chosen = sorted(set(indices(splits, T, "splits")))
    require(0 not in chosen, f"splits {chosen} hold 0, with no past; expected some among 1..{T - 1}")
    return chosen


def check_size(size: float, limit: float, what: str) -> None:
    """Raise if what is held at a time takes more bytes than allowed."""
    require(size <= limit, f"{what} would take {size / 1e9:.2g} GB; the limit is {limit / 1e9:.2g} GB: choose heads=, "
            "a shorter stretch system[start:stop], other splits, or limit=")  # fmt: skip
