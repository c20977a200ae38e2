"""Chain: a System whose parts are made of what other Systems read.

    z_t = read of the first,    y_t = read of the last, whose q, k, v or gates are functions of z_t

The slots of gated slot attention are such: what the first reads of them is the query of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import StateformError, require
from .shapes import indices
from .system import System


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Chain(System):
    """The last of several Systems, which is what it computes and answers for; `before` holds the others.

    A layer makes one of what `Past.read` gave:

        z = past.read("slots", first)
        return Chain(z.softmax(-1), k, v, log_decay=g, before=(first,))

    Args:
        q, k, v, parts: the last System, see `System`.
        before: the Systems whose reads its parts are made of, in their order; of the same batch and length.

    Raises:
        StateformError: as `System` does, and where batch, length or device of two Systems differ.
    """

    before: tuple[System, ...]

    def __init__(
        self, q: Tensor | None, k: Tensor, v: Tensor | None, *, before: Sequence[System] = (), **parts: Any
    ) -> None:
        super().__init__(q, k, v, **parts)
        before = tuple(before)
        for number, system in enumerate(before):
            _check_fits(system, self, number)
        object.__setattr__(self, "before", before)

    @property
    def last(self) -> System:
        """The last System alone."""
        return System(**{name: getattr(self, name) for name in System.__dataclass_fields__})

    @property
    def systems(self) -> tuple[System, ...]:
        """All Systems, the last one last."""
        return (*self.before, self.last)

    @property
    def held(self) -> int:
        return super().held + sum(system.held for system in self.before)

    @property
    def growth(self) -> int:
        return super().growth + sum(system.growth for system in self.before)

    def each(self, fn: Callable[[System], System]) -> Chain:
        """Make a chain of `fn` of each System."""
        last = fn(self.last)
        parts = {name: getattr(last, name) for name in System.__dataclass_fields__}
        return Chain(**parts, before=tuple(fn(system) for system in self.before))

    def map(self, fn: Callable[[str, Tensor], Tensor]) -> Chain:
        return self.each(lambda system: system.map(fn))

    def gather(self, fn: Callable[[Tensor, int], Tensor]) -> Chain:
        return self.each(lambda system: system.gather(fn))

    def select_heads(self, heads: Sequence[int] | int) -> Chain:
        """Select some heads of the last System, and of those before it what belongs to them."""
        chosen, H = indices(heads, self.H, "heads"), self.H

        def part(system: System) -> System:
            if max(H, system.H) % min(H, system.H):
                return system
            share = max(1, system.H // H)
            own = [i * system.H // H + j for i in chosen for j in range(share)]
            return system.select_heads(list(dict.fromkeys(own)) if system.H < H else own)

        return self.each(part)

    def check_values(self) -> None:
        for system in self.before:
            system.check_values()
        super().check_values()

    def __repr__(self) -> str:
        return " -> ".join(map(repr, self.systems))


def _check_fits(system: System, last: System, number: int) -> None:
    require(isinstance(system, System), f"number {number} of before is a {type(system).__name__}; expected a System")
    for what, one, other in (("batch size", system.B, last.B), ("length", system.T, last.T)):
        if one != other:  # no message is made of sizes that a graph leaves open
            raise StateformError(
                f"number {number} of before and the last System differ in their {what}, {one} and {other}; a chain is "
                "made of what one read of the same tokens"
            )
    require(system.device == last.device, f"number {number} of before is on {system.device}, the last System on "
            f"{last.device}; move one of them with .to(device)")  # fmt: skip
