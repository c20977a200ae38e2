"""Five ways to compute one System, all equal: recurrent, chunkwise, scan, matrix, convolution; one file each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import StateformError, nearest, require, values_checked
from ..loops.backend import backend
from ..system import System, stabilise
from ..system.precision import DOUBLE, real_dtype, without_autocast
from ..system.state import State, grows, lengthened, unchecked
from . import compiled as _compiled
from .form import FORMS
from .packing import check_cu_seqlens, groups
from .predict import Choice, decide
from .ridge import solution
from .softmax import attend

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def run(
    system: System,
    form: str = "auto",
    *,
    initial_state: State | Tensor | None = None,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    explain: bool = False,
) -> Any:
    """Compute a system.

    Args:
        system: what to compute.
        form: "auto", or one of recurrent, chunkwise, scan, matrix, convolution.
        initial_state: the State (or S itself, [B,H,n,p]) before the first token; default zero. Packed: a row each.
        return_state: give the state after the last token too.
        cu_seqlens: integer [N+1], the ends of N sequences packed into one row (B = 1).
        explain: give the Choice too: the form, compiled or in torch, why, and what each way was predicted to take.

    Returns:
        y [B,T,H,p] (with an output axis [B,T,H,o,p]; vector states [B,T,H,o] or [B,T,H,n]); if asked for, a tuple of y,
        the State, the Choice.

    Raises:
        StateformError: a form that does not exist for this system (and why), a state that does not fit, bad cu_seqlens,
            or (where values are checked, see `sf.validate`) NaN or inf.
    """
    require(isinstance(system, System), f"system is a {type(system).__name__}; expected a System, e.g. layer.system(x)")
    known_form(form)
    require(system.causal or not return_state, "a non-causal system has no state; leave out return_state")
    if values_checked(system.k):
        system.check_values()
    y, state = _run(system, form, initial_state, cu_seqlens)
    more = ([state] if return_state else []) + ([explained(system, form)] if explain else [])
    return (y, *more) if more else y


def _run(
    system: System, form: str, initial_state: State | Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, State]:
    if cu_seqlens is None:
        return compute(system, form, initial_state)
    check_cu_seqlens(cu_seqlens, system.T, system.B, system.device)
    rows = len(cu_seqlens) - 1
    given = as_state(system, initial_state, rows)
    state = blank_state(system, rows)
    if given is not None:  # a bare S has the scale 1 and no token behind it
        blank = {name: torch.zeros_like(x) for name, x in state.tensors.items()}
        state = State({**blank, **given.tensors}, given.fingerprint)
    packed: Tensor | None = None
    for group in groups(cu_seqlens, system.device):
        part = system.gather(partial(_take, tokens=group.tokens))
        y_part, s_part = compute(part, form, None if given is None else given.select(group.rows))
        packed = y_part.new_zeros(1, system.T, *y_part.shape[2:]) if packed is None else packed
        packed = packed.index_put((torch.zeros_like(group.tokens), group.tokens), y_part)
        state = put_rows(state, group.rows, s_part)
    return compute(system, form, None)[0] if packed is None else packed, state


def explained(system: System, form: str) -> Choice:
    """The Choice of `auto`, or of the one who named the form."""
    if form == "auto":
        return decide(system)
    compiled = form == "recurrent" and system.readout == "linear" and _compiled.usable(system)
    return Choice(form, "compiled" if compiled else "torch", "it was asked for")


def _take(x: Tensor, r: int, tokens: Tensor) -> Tensor:
    """The tokens [N,l] of a pack x [1,T*r,...] as rows [N,l*r,...]."""
    x = x[0].unflatten(0, (-1, r))
    return x[tokens].flatten(1, 2)


def compute(system: System, form: str, initial_state: State | Tensor | None) -> tuple[Tensor, State]:
    """One plain batch: y and the final state. Values are not checked again."""
    chosen = form
    if form == "auto":
        chosen = "recurrent" if system.T == 1 and system.causal else choose(system)
    known_form(chosen)
    reason = FORMS[chosen].refuses(system)
    if reason is not None:
        raise StateformError(
            f"the form {chosen!r} does not exist for this system: {reason}. Forms that do: {', '.join(exists(system))}"
        )
    state = as_state(system, initial_state, system.B)
    require(system.causal or state is None, "a non-causal system has no state to start from; leave out initial_state")
    with without_autocast(system.device):
        if system.B == 0 or system.T == 0:
            y = _empty(system) + nothing_of(system.tensors().values())
            return y, blank_state(system, system.B) if state is None else state
        if system.readout == "exp":
            block = {"recurrent": 1, "chunkwise": CHUNK, "matrix": system.T}[chosen]
            return attend(system, state, block)
        return _linear(system, chosen, state)


def known_form(form: str) -> None:
    """Raise unless there is a form of that name."""
    if not isinstance(form, str) or (form != "auto" and form not in FORMS):
        raise StateformError(f"unknown form {form!r}: {nearest(str(form), FORMS)} (or auto)")


CHUNK = 256
"""Queries a block of an exp readout in the form chunkwise."""


def _linear(system: System, form: str, state: State | None) -> tuple[Tensor, State]:
    log_scale, S = None, None if state is None else state["S"]
    tokens = system.T
    if system.log_b is not None and system.eta == "sum":
        start = None if state is None else state.get("log_scale")
        if S is not None and start is None:
            start = torch.zeros(S.shape[:2], dtype=real_dtype(S.dtype), device=S.device)
        system, scales = stabilise(system, start)
        log_scale = scales[:, -1]
    core = system.core()
    if S is None:
        S = core.zero_state()
    else:
        S = S.to(core.dtype).view(S.shape[0], *core.state_heads, *S.shape[2:])
    if system.readout == "ridge":
        core = replace(core, q=solution(system, core, S, form))
    raw, S = FORMS[form].compute(core, S)
    raw = raw if raw.shape[2:4] == core.heads else raw.expand(-1, -1, *core.heads, -1, -1)
    y = system.finish(raw.flatten(2, 3))
    new = {"S": S.flatten(1, 2).contiguous()}
    if log_scale is not None:
        new["log_scale"] = log_scale
    seen = torch.zeros(system.B, dtype=torch.long, device=system.device) if state is None else _seen(state, system.B)
    new["position"] = seen + tokens
    return y, unchecked(new)


def _seen(state: State, rows: int) -> Tensor:
    seen = state.get("position")
    return torch.zeros(rows, dtype=torch.long, device=state["S"].device) if seen is None else seen


def exists(system: System) -> list[str]:
    """The names of the forms that exist for a system."""
    return [name for name, reason in system.forms().items() if reason is None]


def choose(system: System) -> str:
    """The form that `auto` takes; `decide` says why too."""
    return decide(system).form


def blank_state(system: System, rows: int) -> State:
    """The state before anything was seen."""
    system = system[:0]
    position = torch.zeros(rows, dtype=torch.long, device=system.device)
    if system.readout == "exp":
        _, state = attend(_one_token(system), None, 1)
        empty = {k: x[:1, :0] if grows(k) else torch.zeros_like(x[:1]) for k, x in state.tensors.items()}
        return State(
            {k: x.expand(rows, *x.shape[1:]) for k, x in empty.items() if k != "position"} | {"position": position}
        )
    core = system.core()
    shape = (rows, system.state_heads, core.n, core.p)
    new = {"S": torch.zeros(shape, dtype=core.dtype, device=system.device)}
    if system.log_b is not None and system.eta == "sum":
        new["log_scale"] = torch.full(shape[:2], -torch.inf, dtype=real_dtype(core.dtype), device=system.device)
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


def nothing_of(tensors: Iterable[Tensor]) -> Tensor | float:
    """Sum no numbers of each tensor: a 0 by which what is computed from no tokens has gradients, all zero."""
    if not torch.is_grad_enabled():
        return 0.0
    return sum((x.flatten()[:0].abs().sum() for x in tensors if x.requires_grad), 0.0)


def put_rows(state: State, rows: Tensor, part: State) -> State:
    """`state` with some rows replaced; caches of another length are aligned at their end."""
    out = {}
    for name, old in state.tensors.items():
        new = part[name]
        if grows(name):
            length = max(old.shape[1], new.shape[1])
            old, new = lengthened(old, length), lengthened(new, length)
        out[name] = old.to(new.dtype).index_copy(0, rows, new)
    return State(out, state.fingerprint)


def as_state(system: System, given: State | Tensor | None, rows: int) -> State | None:
    """The initial state as a State that fits the system."""
    if given is None:
        return None
    if isinstance(given, Tensor):
        require(
            system.readout != "exp",
            "the state of an exp readout is a cache: give the State that return_state=True gave",
        )
        given = State({"S": given})
    require(isinstance(given, State), f"initial_state is a {type(given).__name__}; expected a State or a tensor")
    exp = system.readout == "exp"
    needed = ["keys", "values", "position"] if exp else ["S"]
    needed += ["angle"] if exp and system.phase is not None else []
    needed += ["log_weight"] if exp and system.log_decay is not None else []
    if not all(name in given for name in needed):
        raise StateformError(
            f"the state holds {', '.join(given) or 'nothing'}; expected {', '.join(needed)}, "
            "as in the State that return_state=True gave"
        )
    if given.rows != rows:
        raise StateformError(f"the state has {given.rows} rows; expected {rows}, one for each sequence")
    double = system.k.dtype in DOUBLE
    for name in given:
        x = given[name]
        if x.device != system.device:
            raise StateformError(f"the state is on {x.device}, the system on {system.device}; use state.to(device)")
        if name in ("S", "keys", "values") and ((x.dtype in DOUBLE) != double or not _numbers(x)):
            raise StateformError(f"the state has dtype {x.dtype}, the system {system.k.dtype}; use state.to(dtype)")
    if not exp:
        _check_matrix(system, given)
    return given


def _numbers(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _check_matrix(system: System, given: State) -> None:
    """Raise unless S (and its scale, where it has one) fits the system."""
    S, scale = given["S"], given.get("log_scale")
    shape = (S.shape[0], system.state_heads, system.n, system.columns)
    if tuple(S.shape) != shape:
        ridge = f" (the last {system.n} columns are the Gram matrix)" if system.readout == "ridge" else ""
        extra = " (the last column is the normaliser)" if system.eta == "sum" else ridge
        raise StateformError(f"the state S has shape {list(S.shape)}; expected {list(shape)}{extra}")
    require(
        system.is_complex or not S.is_complex(), "the state is complex, the system real; use the state of this system"
    )
    if scale is not None and tuple(scale.shape) != shape[:2]:
        raise StateformError(f"log_scale of the state has shape {list(scale.shape)}; expected {list(shape[:2])}")


__all__ = ["Choice", "backend", "choose", "compute", "decide", "exists", "run"]
