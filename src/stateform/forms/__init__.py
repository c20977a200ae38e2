"""Five ways to compute one System, all equal: recurrent, chunkwise, scan, matrix, convolution; one file each."""

from __future__ import annotations

import importlib
import pkgutil
from functools import partial

import torch
from torch import Tensor

from .._errors import nearest, require, values_checked
from .._form import FORMS
from ..attend import attend
from ..state import State
from ..system import System, stabilise
from ._packing import check_cu_seqlens, groups

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def run(
    system: System,
    form: str = "auto",
    *,
    initial_state: State | Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, State]:
    """Compute a system.

    Args:
        system: what to compute.
        form: "auto", or one of recurrent, chunkwise, scan, matrix, convolution.
        initial_state: the State (or S itself, [B,H,n,p]) before the first token; default zero. Packed: one row a sequence.
        return_state: give the state after the last token too.
        cu_seqlens: integer [N+1], the ends of N sequences packed into one row (B = 1).

    Returns:
        y [B,T,H,p] (with an output axis [B,T,H,o,p]; vector states [B,T,H,o] or [B,T,H,n]), and the State if asked for.

    Raises:
        StateformError: a form that does not exist for this system (and why), a state that does not fit, bad cu_seqlens,
            or (where values are checked, see `sf.validate`) NaN or inf.
    """
    if values_checked(system.k):
        system.check_values()
    if cu_seqlens is None:
        y, state = compute(system, form, initial_state)
        return (y, state) if return_state else y
    check_cu_seqlens(cu_seqlens, system.T, system.B)
    rows = len(cu_seqlens) - 1
    given = as_state(system, initial_state, rows)
    state = blank_state(system, rows) if given is None else given
    packed: Tensor | None = None
    for group in groups(cu_seqlens):
        part = system.gather(partial(_take, tokens=group.tokens))
        y_part, s_part = compute(part, form, None if given is None else given.select(group.rows))
        packed = y_part.new_zeros(1, system.T, *y_part.shape[2:]) if packed is None else packed
        packed = packed.index_put((torch.zeros_like(group.tokens), group.tokens), y_part)
        state = put_rows(state, group.rows, s_part)
    y = compute(system, form, None)[0] if packed is None else packed
    return (y, state) if return_state else y


def _take(x: Tensor, r: int, tokens: Tensor) -> Tensor:
    """The tokens [N,l] of a pack x [1,T*r,...] as rows [N,l*r,...]."""
    x = x[0].unflatten(0, (-1, r))
    return x[tokens].flatten(1, 2)


def compute(system: System, form: str, initial_state: State | Tensor | None) -> tuple[Tensor, State]:
    """One plain batch: y and the final state. Values are not checked again."""
    chosen = choose(system) if form == "auto" else form
    require(chosen in FORMS, f"unknown form {form!r}: {nearest(form, FORMS)}")
    reason = FORMS[chosen].refuses(system)
    require(
        reason is None,
        f"the form {chosen!r} does not exist for this system: {reason}. Forms that do: {', '.join(exists(system))}",
    )
    state = as_state(system, initial_state, system.B)
    require(system.causal or state is None, "a non-causal system has no state to start from")
    with torch.autocast(system.device.type, enabled=False):
        if system.B == 0 or system.T == 0:
            return _empty(system), blank_state(system, system.B) if state is None else state
        if system.readout == "exp":
            block = {"recurrent": 1, "chunkwise": CHUNK, "matrix": system.T}[chosen]
            return attend(system, state, block)
        return _linear(system, chosen, state)


CHUNK = 256
"""Queries a block of an exp readout in the form chunkwise."""


def _linear(system: System, form: str, state: State | None) -> tuple[Tensor, State]:
    log_scale, S = None, None if state is None else state["S"]
    tokens = system.T
    if system.log_b is not None and system.eta == "sum":
        start = None if state is None else state.get("log_scale")
        if S is not None and start is None:
            start = torch.zeros(S.shape[:2], dtype=S.real.dtype, device=S.device)
        system, scales = stabilise(system, start)
        log_scale = scales[:, -1]
    core = system.core()
    S = core.zero_state() if S is None else S.to(core.dtype).unflatten(1, core.state_heads)
    raw, S = FORMS[form].compute(core, S)
    y = system.finish(raw.expand(-1, -1, *core.heads, -1, -1).flatten(2, 3))
    new = {"S": S.flatten(1, 2)}
    if log_scale is not None:
        new["log_scale"] = log_scale
    seen = torch.zeros(system.B, dtype=torch.long, device=system.device) if state is None else _seen(state, system.B)
    return y, State({**new, "position": seen + tokens})


def _seen(state: State, rows: int) -> Tensor:
    seen = state.get("position")
    return torch.zeros(rows, dtype=torch.long, device=state["S"].device) if seen is None else seen


def exists(system: System) -> list[str]:
    """The names of the forms that exist for a system."""
    return [name for name, reason in system.forms().items() if reason is None]


def choose(system: System) -> str:
    """The form that `auto` takes, by structure, length and device."""
    if system.readout == "exp":
        plain = system.log_decay is None and system.window is None
        return (
            "matrix"
            if not system.causal or (plain and system.T <= 8192)
            else "chunkwise"
            if system.T > 1
            else "recurrent"
        )
    if system.T * system.micro <= 4:
        return "recurrent"
    if system.decay_kind == "dense":
        return "scan" if FORMS["scan"].refuses(system) is None and system.n <= 16 else "recurrent"
    return "scan" if FORMS["scan"].refuses(system) is None else "chunkwise"


def blank_state(system: System, rows: int) -> State:
    """The state before anything was seen."""
    system = system[:0]
    position = torch.zeros(rows, dtype=torch.long, device=system.device)
    if system.readout == "exp":
        _, state = attend(_one_token(system), None, 1)
        empty = {
            k: x[:1, :0] if k in ("keys", "values", "log_weight") else torch.zeros_like(x[:1])
            for k, x in state.tensors.items()
        }
        return State(
            {k: x.expand(rows, *x.shape[1:]) for k, x in empty.items() if k != "position"} | {"position": position}
        )
    core = system.core()
    shape = (rows, system.state_heads, core.n, core.p)
    new = {"S": torch.zeros(shape, dtype=core.dtype, device=system.device)}
    if system.log_b is not None and system.eta == "sum":
        new["log_scale"] = torch.full(shape[:2], -torch.inf, dtype=core.dtype.to_real(), device=system.device)
    return State({**new, "position": position})


def _one_token(system: System) -> System:
    """A system of one zero token with the structure of the given (empty) one."""
    return system.gather(lambda x, r: x.new_zeros(1, r, *x.shape[2:]))


def _empty(system: System) -> Tensor:
    """y of no rows or no tokens."""
    if system.readout == "exp":
        return torch.zeros(system.B, system.T, system.H, system.p, dtype=system.dtype, device=system.device)
    core = system.core()
    y = core.v.new_zeros(system.B, system.T * system.micro, system.H, core.q.shape[-2], core.p, dtype=core.dtype)
    return system.finish(y)


def put_rows(state: State, rows: Tensor, part: State) -> State:
    """`state` with some rows replaced; caches of another length are aligned at their end."""
    out = {}
    for name, old in state.tensors.items():
        new = part[name]
        if name in ("keys", "values", "log_weight") and old.shape[1] != new.shape[1]:
            length = max(old.shape[1], new.shape[1])
            old, new = (
                torch.cat([x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:]), x], 1) for x in (old, new)
            )
        out[name] = old.to(new.dtype).index_copy(0, rows, new)
    return State(out, state.fingerprint)


def as_state(system: System, given: State | Tensor | None, rows: int) -> State | None:
    """The initial state as a State that fits the system."""
    if given is None:
        return None
    if isinstance(given, Tensor):
        require(
            system.readout == "linear",
            "the state of an exp readout is a cache: give the State that return_state=True gave",
        )
        given = State({"S": given})
    require(isinstance(given, State), f"initial_state is a {type(given).__name__}; expected a State or a tensor")
    needed = "keys" if system.readout == "exp" else "S"
    require(
        needed in given, f"this state holds {', '.join(given)}; a system with readout {system.readout!r} needs {needed}"
    )
    x = given[needed]
    require(x.device == system.device, f"the state is on {x.device}, the system on {system.device}; move it with .to()")
    require(x.shape[0] == rows, f"the state has {x.shape[0]} rows; expected {rows}")
    if needed == "S":
        columns = system.p + (1 if system.eta == "sum" else 0)
        shape = (rows, system.state_heads, system.n, columns)
        extra = " (the last column is the normaliser)" if system.eta == "sum" else ""
        require(tuple(x.shape) == shape, f"the state has shape {list(x.shape)}; expected {list(shape)}{extra}")
        double = (torch.float64, torch.complex128)
        require(
            (x.dtype in double) == (system.k.dtype in double),
            f"the state has dtype {x.dtype}, the system {system.k.dtype}; use state.to(dtype)",
        )
        require(system.is_complex or not x.is_complex(), "the state is complex, the system real")
    return given


__all__ = ["choose", "compute", "exists", "run"]
