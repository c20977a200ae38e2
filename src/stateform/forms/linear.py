"""A linear readout, in every form: stabilise, fold, compute the recurrence, unfold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..system import State, System
from ..system.core import Core, fold, unfold
from ..system.precision import real_dtype
from ..system.readout import LinearRead
from ..system.shapes import spread_heads
from ..system.state import unchecked
from .cost.work import work_of_recurrence
from .form import Form, register_reads
from .matrix import solve, solve_rows
from .stabilise import exponential, stabilise


class LinearForms:
    """y_t = q_t^T S_t. See `Reads`."""

    def query(self, system: System, core: Core, S: Tensor, form: Form) -> Core:
        """Rewrite the core with the vectors that S is read by."""
        return core

    def compute(self, system: System, form: Form, state: State | None) -> tuple[Tensor, State]:
        log_scale, S, tokens = None, None if state is None else state["S"], system.T
        if exponential(system):
            start = None if state is None else state.get("log_scale")
            if S is not None and start is None:
                start = torch.zeros(S.shape[:2], dtype=real_dtype(S.dtype), device=S.device)
            system, scales = stabilise(system, start)
            log_scale = scales[:, -1]
        core = fold(system)
        S = core.zero_state() if S is None else S.to(core.dtype).view(S.shape[0], *core.state_heads, *S.shape[2:])
        raw, S = form.compute(self.query(system, core, S, form), S)
        raw = raw if raw.shape[2:4] == core.heads else raw.expand(-1, -1, *core.heads, -1, -1)
        y = unfold(system, raw.flatten(2, 3))
        new = {"S": S.flatten(1, 2).contiguous()}
        if log_scale is not None:
            new["log_scale"] = log_scale
        seen = None if state is None else state.get("position")
        seen = torch.zeros(system.B, dtype=torch.long, device=system.device) if seen is None else seen
        new["position"] = seen + tokens
        return y, unchecked(new)

    def weights(self, system: System, queries: Sequence[int] | None) -> Tensor:
        return weights(system, queries)

    def blank_state(self, system: System, rows: int) -> dict[str, Tensor]:
        core = fold(system)
        shape = (rows, system.state_heads, core.n, core.p)
        new = {"S": torch.zeros(shape, dtype=core.dtype, device=system.device)}
        if exponential(system):
            new["log_scale"] = torch.full(shape[:2], -torch.inf, dtype=real_dtype(core.dtype), device=system.device)
        return new

    def nothing(self, system: System) -> Tensor:
        core = fold(system)
        y = core.v.new_zeros(system.B, system.T * system.micro, system.H, core.q.shape[-2], core.p, dtype=core.dtype)
        return unfold(system, y)

    def state_names(self, system: System) -> list[str]:
        return ["S"]

    def check_state(self, system: System, given: State) -> None:
        S, scale = given["S"], given.get("log_scale")
        shape = (S.shape[0], system.state_heads, system.n, system.columns)
        if tuple(S.shape) != shape:
            raise StateformError(
                f"the state S has shape {list(S.shape)}; expected {list(shape)}{self.columns_in_words(system)}"
            )
        require(
            system.is_complex or not S.is_complex(),
            "the state is complex, the system real; use the state of this system",
        )
        if scale is not None and tuple(scale.shape) != shape[:2]:
            raise StateformError(f"log_scale of the state has shape {list(scale.shape)}; expected {list(shape[:2])}")

    def columns_in_words(self, system: System) -> str:
        """Tell what the last columns of S are, for messages."""
        return " (the last column is the normaliser)" if system.eta == "sum" else ""

    def work(self, system: System, form: str, chunk_size: int) -> tuple[float, float]:
        return work_of_recurrence(system, form, chunk_size)


def weights(system: System, queries: Sequence[int] | None) -> Tensor:
    """Compute alpha [B,H,o,queries,T*micro] of a linear readout from a zero state."""
    core, r = fold(system), system.micro
    index = torch.tensor([int(i) for i in (range(system.T) if queries is None else queries)], device=core.k.device)
    at = index * r + (0 if system.exclusive else r - 1)
    alpha = solve(core)[0][..., at, :] if queries is None else solve_rows(core, at.tolist())
    alpha = alpha.expand(core.batch, *core.heads, *alpha.shape[3:]).flatten(1, 2)
    H, rows = system.H, slice(None) if queries is None else index

    def gate(x: Tensor) -> Tensor:  # [B|1,T|1,H|1] to [B|1,H|1,1,queries|1,1]
        x = x if x.shape[1] == 1 else x[:, rows]
        return x.transpose(1, 2)[:, :, None, :, None]

    b = spread_heads(system.gate("log_b").exp() if system.log_b is not None else system.gate("b", 1.0), H)
    alpha = alpha * b.transpose(1, 2)[:, :, None, None]
    if system.d is not None:
        own = torch.nn.functional.one_hot(at, core.length).to(alpha.dtype)
        alpha = alpha + own * gate(system.gate("d"))
    if alpha.is_complex() and system.q is not None and not (system.v is not None and system.v.is_complex()):
        alpha = alpha.real  # y = Re(alpha v): with a real v the real part is enough
    if system.eta is None:
        return alpha
    total = alpha.sum(-1, keepdim=True)
    eta = (total.real if total.is_complex() else total) if isinstance(system.eta, str) else gate(system.gate("eta"))
    if system.eta_floor is not None:
        eta = torch.maximum(eta.abs(), gate(system.gate("eta_floor")))
    return alpha / eta


register_reads(LinearRead, LinearForms())
