"""The logits of an exp readout, x_ij = Re(q_i^T A_i ... A_{j+1} b_j k_j), in two ways.

Absorbed    where A is a phase alone (RoPE): turned once, at absolute angles, q and k meet in one product
Carried     any A: the cache holds the keys as they stand today, A_t ... A_{j+1} b_j k_j, and each step, or each
            block of steps, moves all of them on; it is the state S_t of the same system with a linear readout
            and the unit vectors for values
"""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import StateformError, require
from ..graph import any_length
from ..system import State, System
from ..system.core import Core, contract, fold
from ..system.precision import DOUBLE, angles, upcast, wrap
from ..system.shapes import split_heads, spread_heads
from .matrix import solve, solve_rows
from .opaque import opaque


class Scores(Protocol):
    """The queries and keys of a system behind its past; keys are counted from the oldest in the cache."""

    past: int
    """Keys in the cache before the first token, L."""

    def product(self, start: int, stop: int, low: int) -> tuple[Tensor, Tensor] | None:
        """Give queries [B,c,H|.,n] and keys [B,.,H|.,n] whose products are the logits, where there are such."""

    def logits(self, start: int, stop: int, low: int) -> Tensor:
        """Compute the unmasked logits [B,H,stop-start,L+stop-low] of queries start..stop and keys low..L+stop.

        Blocks of queries are asked for in their order, each once.
        """

    def rows(self, at: Tensor) -> Tensor:
        """Compute the logits [B,H,rows,T] of chosen queries from an empty cache."""

    def kept(self) -> dict[str, Tensor]:
        """Give the part of the state after the last query: keys [B,.,H|.,n], and what else later queries need."""


def scores_of(system: System, state: State | None) -> Scores:
    """Choose the way of a system."""
    return Absorbed(system, state) if turns_only(system) else Carried(system, state)


def absorbed(system: System, what: str) -> Absorbed:
    """Give real q and k of a bare softmax: weights exp(q^T k) whose keys are turned by phases at most.

    Raises:
        StateformError: more in the weights; `what` names the asker.
    """
    given: list[str] = [name for name in ("log_decay", "sign", "f") if name in system.parts]
    given += system.readout.refinements()
    require(not given, f"{what} takes weights exp(q^T k), with phases on the keys and `forget` on the weights; this "
            f"system has {', '.join(given)} too")  # fmt: skip
    return Absorbed(system, None)


def turns_only(system: System) -> bool:
    """True if keys are turned by phases, or not at all."""
    return system.log_decay is None and system.sign is None and system.f is None


def kept_as(system: System) -> str:
    """Name the keys in a state of the system."""
    return "keys" if turns_only(system) else "moved_keys"


def joined(state: State | None, name: str, x: Tensor) -> Tensor:
    """Join the past of a cache and its new entries [B,L+T,...], in the dtype of the new ones."""
    if state is None:
        return x
    old = state[name]
    if old.shape[2:] != x.shape[2:]:
        expected = f"[{x.shape[0]},L,{', '.join(map(str, x.shape[2:]))}]"
        raise StateformError(f"the state holds {name} {list(old.shape)}; expected {expected}, as in the State that "
                             "return_state=True gave")  # fmt: skip
    return torch.cat([old.to(x.dtype), x], 1)


class Absorbed:
    """Phases as rotations of q and k, by their absolute angles."""

    def __init__(self, system: System, state: State | None) -> None:
        q, k, b = system.q, system.k, strength(system)
        assert q is not None
        if b is not None:
            k = _per_head(upcast(k), upcast(b if b.ndim == 3 else b[None, None]).unsqueeze(-1))
        self.heads = system.H
        self.angle = None
        if system.phase is not None:
            turn, self.angle = _turned(system, state)
            q, k = _per_head(upcast(q), turn), _per_head(upcast(k), turn.conj())
        if q.is_complex() or k.is_complex():
            q, k = torch.cat([q.real, -_imag(q)], -1), torch.cat([k.real, _imag(k)], -1)
        self.q = q.to(system.dtype)
        """[B,T,Hq,n']"""
        self.keys = joined(state, "keys", k.to(system.dtype))
        """[B,L+T,Hk,n'], the L past ones first."""
        self.past = self.keys.shape[1] - self.q.shape[1]

    def product(self, start: int, stop: int, low: int) -> tuple[Tensor, Tensor]:
        return self.q[:, start:stop], self.keys[:, low : self.past + stop]

    def logits(self, start: int, stop: int, low: int) -> Tensor:
        return product_logits(*self.product(start, stop, low), self.heads)

    def rows(self, at: Tensor) -> Tensor:
        return product_logits(self.q[:, at], self.keys, self.heads)

    def kept(self) -> dict[str, Tensor]:
        return {"keys": self.keys} if self.angle is None else {"keys": self.keys, "angle": self.angle}


class Carried:
    """Keys as the transitions since have left them."""

    def __init__(self, system: System, state: State | None) -> None:
        self.core = _strong_core(system)
        shape = torch.broadcast_shapes(*(x.shape[2:4] for x in self._moved()))
        self.groups = (shape[0], shape[1])
        self.heads = system.H
        self.keys = self.core.k.new_zeros(system.B, 0, shape[0] * shape[1], system.n, dtype=self.core.dtype)
        """Of the tokens first .. , [B,.,G R,n]."""
        self.keys = joined(state, "moved_keys", self.keys)
        self.first, self.past = 0, self.keys.shape[1]

    def _moved(self) -> list[Tensor]:
        """Select the parts whose heads are those of the keys, not of the values."""
        core = self.core
        return [x for x in (core.k, core.log, core.rate, core.phase, core.sign, core.f, core.w) if x is not None]

    def product(self, start: int, stop: int, low: int) -> None:
        return None

    def logits(self, start: int, stop: int, low: int) -> Tensor:
        old = self.keys[:, low - self.first :].unflatten(2, self.groups).movedim(1, -1)  # [B,G,R,n,.]
        found, new = carried(self.core.slice(start, stop), old)
        self.keys, self.first = new.movedim(-1, 1).flatten(2, 3), low
        found = found.expand(-1, -1, *self.core.heads, -1).flatten(2, 3)
        return found.transpose(1, 2)

    def rows(self, at: Tensor) -> Tensor:
        found = self.core.needed(solve_rows(self.core, at.tolist())).squeeze(3)
        return found.expand(self.core.batch, *self.core.heads, -1, -1).flatten(1, 2)

    def kept(self) -> dict[str, Tensor]:
        return {"moved_keys": self.keys}


def carried(core: Core, old: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the reads [B,c,G,R,L+c] of c steps with the keys old [B,G,R,n,L] and their own, and all keys after."""
    c, L = core.length, old.shape[-1]
    if any_length(c):  # in a graph the form is one operator: the old keys and room for new ones are its state
        unit = torch.eye(c, dtype=core.k.real.dtype, device=old.device)
        values = F.pad(unit, (L, 0))[None, :, None, None]
        reads, new = opaque("matrix", replace(core, v=values), F.pad(old, (0, c)))
        return core.needed(reads).squeeze(-2), new
    if c == 1:
        moved = core.transition().apply(old.unsqueeze(1)).squeeze(1)
        own = core.k.to(moved.dtype).squeeze(1).unsqueeze(-1).expand(*moved.shape[:-1], 1)
        new = torch.cat([moved, own], -1)
        return core.needed(contract("btgron,bsgrnl->btgrl", core.q, new.unsqueeze(1))), new
    alpha, read, write, carry = solve(core)
    before = contract("btgron,bsgrnl->btgrl", read, old.unsqueeze(1))
    within = alpha.squeeze(3).movedim(-2, 1)
    front = torch.broadcast_shapes(before.shape[:-1], within.shape[:-1])
    reads = torch.cat([core.needed(before).expand(*front, -1), core.needed(within).expand(*front, -1)], -1)
    moved = contract("bgrmn,bgrnl->bgrml", carry, old)
    return reads, torch.cat([moved, write.to(moved.dtype).expand(*moved.shape[:-1], -1)], -1)


def strength(system: System) -> Tensor | None:
    """Give b, where there is one."""
    return upcast(system.log_b).exp() if system.log_b is not None else system.b


def _strong_core(system: System) -> Core:
    """Fold a system into a core whose keys are b_j k_j; its values are not used."""
    b = strength(system)
    if b is None:
        return fold(system)
    core = fold(replace(system, b=None, log_b=None))
    return replace(core, k=core.k * split_heads("b", b.to(core.k.real.dtype), *core.heads))


def product_logits(q: Tensor, keys: Tensor, H: int) -> Tensor:
    """Compute q_i^T k_j [B,H,c,L] of queries [B,c,Hq,n] and keys [B,L,Hk,n]."""
    q, keys = upcast(spread_heads(q, H)), upcast(spread_heads(keys, H))
    return torch.einsum("bihn,bjhn->bhij", q.expand(-1, -1, H, -1), keys.expand(-1, -1, H, -1))


def _turned(system: System, state: State | None) -> tuple[Tensor, Tensor]:
    """Compute the units of all absolute angles [B,T,H|.,n|1], and the angle after the last token, float64."""
    phase = system.phase
    assert phase is not None
    if phase.ndim < 3:
        phase = phase.expand(system.B, system.T, *phase.shape)
    phase = phase if phase.ndim == 4 else phase.unsqueeze(-1)
    start = None if state is None else state.get("angle")
    turned = angles(phase.movedim(1, 2)).movedim(2, 1) + (0 if start is None else start.unsqueeze(1))
    turn = torch.polar(torch.ones_like(turned), turned)
    after = turned[:, -1] if system.T else turned.sum(1) if start is None else start
    return turn if system.k.dtype in DOUBLE else turn.to(torch.complex64), wrap(after)


def _per_head(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply x with a factor, both [B|1,T|1,heads,n|1], the fewer heads repeated to the more."""
    heads = lcm(x.shape[2], factor.shape[2])
    return spread_heads(x, heads) * spread_heads(factor, heads)


def _imag(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)
