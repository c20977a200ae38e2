"""A System on a text, replaced by the one of fewest states that is near it on this text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...analysis.state.state_need import state_need
from ...convert import reduce as reduce_system
from ...convert import reduce_varying
from ...convert.certificate import outputs
from ...errors import StateformError
from ...system import System
from ...system.precision import tolerance
from .result import ReducedLayer


class OnText:
    """The change of a mixer that runs the System of fewest states near its own on the text, some heads at a time."""

    def __init__(self, tol: float, limit: float) -> None:
        self.tol, self.limit = tol, limit
        self.orders: list[int] = []
        self.least: list[int] = []
        self.bound = self.error = 0.0
        self.ok = True
        self.state: int | None = None

    def again(self) -> OnText:
        """Make a new one with the same settings, which has seen nothing yet."""
        return OnText(self.tol, self.limit)

    def fill_row(self, row: ReducedLayer) -> ReducedLayer:
        """Fill the row of a layer with what was found."""
        state = None if self.state is None else (self.state, max(self.orders))
        return replace(row, state=state, orders=tuple(self.orders), least=tuple(self.least), bound=self.bound,
                       error=self.error, ok=self.ok)  # fmt: skip

    def __call__(self, system: System) -> Tensor:
        system = system.detach()
        B, T, H, n = system.B, system.T, system.H, system.n
        cached = system.readout.cached
        each = 8.0 * B * T * (4 * T if cached else 3 * (2 * n if system.is_complex else n) ** 2)
        many = max(1, min(H, int(self.limit // max(each, 1.0)))) if system.w_out is None else H
        parts = []
        for start in range(0, H, many):
            part = system if many >= H else system.select_heads(range(start, min(start + many, H)))
            parts.append(self._reduced(part))
        return torch.cat(parts, 2)

    def _reduced(self, system: System) -> Tensor:
        try:
            need = state_need(system, max(self.tol, 1e-10), limit=4 * self.limit)
            found = reduce_varying(system, self.tol, limit=4 * self.limit)
        except StateformError as error:
            return self._steady(system, error)
        least = need.ranks()[0]
        self.orders += found.orders.amax(0).tolist()
        self.least += least.amax((0, 2)).tolist() if need.splits else [0] * system.H
        self.state = need.state
        y, want, v = outputs(found.system), outputs(system), system.v
        assert v is not None
        size = lambda x: x.double().square().sum((1, 3)).sqrt()  # [B,H]  # noqa: E731
        given = size(v.expand(system.B, -1, -1, -1)).repeat_interleave(system.H // v.shape[2], 1)
        top = size(want).clamp_min(1e-300)
        off, allowed = size(y - want) / top, found.bound * given / top
        self._keep(off, allowed, system)
        return y.to(want.dtype)

    def _steady(self, system: System, refused: StateformError) -> Tensor:
        """Reduce a constant system that has no scalar weights (one with an output map, say) by balanced truncation."""
        try:
            found = reduce_system(system, self.tol)
        except StateformError:
            raise refused from None
        self.orders += [found.system.n] * system.H
        self.least += [found.system.n] * system.H
        self.state = system.n * (2 if system.is_complex else 1)
        self._keep(torch.tensor(found.error), torch.tensor(found.tolerance), system)
        return outputs(found.system).to(system.dtype)

    def _keep(self, error: Tensor, allowed: Tensor, system: System) -> None:
        self.error, self.bound = max(self.error, float(error.max())), max(self.bound, float(allowed.max()))
        self.ok &= bool((error <= allowed + tolerance(system.dtype, system.T)).all())
