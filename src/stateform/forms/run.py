"""run: a system in one of its forms. A batch or a pack, from a state or from none."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..errors import StateformError, require, values_checked
from ..system import State, System
from ..system.precision import DOUBLE, without_autocast
from ..system.state import grows, lengthened
from . import compiled as _compiled
from .cost.predict import Choice, decide
from .form import FORMS, exists, known_form, reads_of
from .packing import check_cu_seqlens, groups


@overload
def run(
    system: System, form: str = ..., *, initial_state: State | Tensor | None = ..., return_state: Literal[False] = ...,
    cu_seqlens: Tensor | None = ..., explain: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def run(
    system: System, form: str = ..., *, initial_state: State | Tensor | None = ..., return_state: Literal[True],
    cu_seqlens: Tensor | None = ..., explain: Literal[False] = ...,
) -> tuple[Tensor, State]: ...  # fmt: skip


@overload
def run(
    system: System, form: str = ..., *, initial_state: State | Tensor | None = ..., return_state: bool = ...,
    cu_seqlens: Tensor | None = ..., explain: bool = ...,
) -> Any: ...  # fmt: skip


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
        form: "auto", or the name of one that exists for the system, see `system.forms()`.
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
    """Return the Choice of `auto`, or of the one who named the form."""
    if form == "auto":
        return decide(system)
    compiled = form == "recurrent" and system.readout.linear and _compiled.usable(system)
    return Choice(form, "compiled" if compiled else "torch", "it was asked for")


def _take(x: Tensor, r: int, tokens: Tensor) -> Tensor:
    """Take the tokens [N,l] of a pack x [1,T*r,...] as rows [N,l*r,...]."""
    x = x[0].unflatten(0, (-1, r))
    return x[tokens].flatten(1, 2)


def compute(system: System, form: str, initial_state: State | Tensor | None) -> tuple[Tensor, State]:
    """Compute one plain batch: y and the final state. Values are not checked again."""
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
            y = reads_of(system).nothing(system) + nothing_of(system.tensors().values())
            return y, blank_state(system, system.B) if state is None else state
        return reads_of(system).compute(system, FORMS[chosen], state)


def choose(system: System) -> str:
    """Choose the form that `auto` takes; `decide` says why too."""
    return decide(system).form


def blank_state(system: System, rows: int) -> State:
    """Make the state before anything was seen."""
    system = system[:0]
    position = torch.zeros(rows, dtype=torch.long, device=system.device)
    return State({**reads_of(system).blank_state(system, rows), "position": position})


def nothing_of(tensors: Iterable[Tensor]) -> Tensor | float:
    """Sum no numbers of each tensor: a 0 by which what is computed from no tokens has gradients, all zero."""
    if not torch.is_grad_enabled():
        return 0.0
    return sum((x.flatten()[:0].abs().sum() for x in tensors if x.requires_grad), 0.0)


def put_rows(state: State, rows: Tensor, part: State) -> State:
    """Replace some rows of `state`; caches of another length are aligned at their end."""
    out = {}
    for name, old in state.tensors.items():
        new = part[name]
        if grows(name):
            length = max(old.shape[1], new.shape[1])
            old, new = lengthened(old, length), lengthened(new, length)
        out[name] = old.to(new.dtype).index_copy(0, rows, new)
    return State(out, state.fingerprint)


def as_state(system: System, given: State | Tensor | None, rows: int) -> State | None:
    """Turn the initial state into a State that fits the system."""
    if given is None:
        return None
    reads = reads_of(system)
    needed = reads.state_names(system)
    if isinstance(given, Tensor):
        bare = needed == ["S"]
        require(bare, "the state of an exp readout is a cache: give the State that return_state=True gave")
        given = State({"S": given})
    require(isinstance(given, State), f"initial_state is a {type(given).__name__}; expected a State or a tensor")
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
        if name in ("S", "keys", "moved_keys", "values") and ((x.dtype in DOUBLE) != double or not _numbers(x)):
            raise StateformError(f"the state has dtype {x.dtype}, the system {system.k.dtype}; use state.to(dtype)")
    reads.check_state(system, given)
    return given


def _numbers(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
