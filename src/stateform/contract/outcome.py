"""What a check came to: its comparisons, and the failures in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..result import Result
from ..system.precision import first_difference, largest, relative_error, why_no_proof, wide

REMEMBERS_NOTHING = (
    "the last output is the same whatever comes before the last token: no comparison can see what is remembered wrongly"
)
"""A note on what keeps the contract for want of a memory, a module whose output weights are 0, say."""


@dataclass
class PartOutcome:
    """What one part of the contract came to."""

    part: str
    comparisons: int = 0
    worst: float = 0.0
    """Largest error over its tolerance: at most 1 if the part holds."""
    failures: list[str] = field(default_factory=list)


@dataclass
class Report(Result):
    """Whether a layer or model keeps the contract. `print` it; `bool(report)` and `report.ok` say yes or no."""

    name: str
    outcomes: dict[str, PartOutcome] = field(default_factory=dict)
    not_offered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What makes the comparisons say less than they seem to."""

    @property
    def ok(self) -> bool:
        """True if nothing failed."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Every failure, first ones first."""
        return [f"{o.part}: {text}" for o in self.outcomes.values() for text in o.failures]

    def __bool__(self) -> bool:
        return self.ok

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(str(self))

    def __str__(self) -> str:
        total = sum(o.comparisons for o in self.outcomes.values())
        lines = [f"{self.name}: {'the contract holds' if self.ok else 'the contract is BROKEN'} ({total} comparisons)"]
        width = max([12, *map(len, self.outcomes)])
        for o in self.outcomes.values():
            mark = "ok  " if not o.failures else "FAIL"
            lines.append(
                f"  {mark} {o.part:<{width}} {o.comparisons:>4} comparisons, worst error {o.worst:.2g} of its tolerance"
            )
            lines += [f"       {text}" for text in o.failures[:3]]
            if len(o.failures) > 3:
                lines.append(f"       ... and {len(o.failures) - 3} more")
        if self.not_offered:
            lines.append(f"  not offered by this module: {', '.join(self.not_offered)}")
        lines += [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers and strings, for JSON."""
        parts = {
            o.part: {"comparisons": o.comparisons, "worst": o.worst, "failures": o.failures}
            for o in self.outcomes.values()
        }
        told = {"not_offered": self.not_offered, "notes": self.notes}
        return {"name": self.name, "ok": self.ok, "parts": parts, **told}

    # -- filling it ----------------------------------------------------------------------------------------------

    def outcome(self, part: str) -> PartOutcome:
        """Find the outcome of a part; it is made on first use."""
        return self.outcomes.setdefault(part, PartOutcome(part))

    def lacks(self, what: str) -> None:
        """Say once what is not offered."""
        if what not in self.not_offered:
            self.not_offered.append(what)

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def compare(
        self,
        part: str,
        where: str,
        got: Tensor,
        want: Tensor,
        allowed: float,
        *,
        heads: bool = False,
        floor: float = 0.0,
        infinite: bool = False,
    ) -> None:
        """Compare two tensors; time is axis 1 (and heads axis 2 if `heads`, each measured on its own scale, but on none
        below `floor`). What is wanted has to be finite unless it may be `infinite`.
        """
        outcome = self.outcome(part)
        outcome.comparisons += 1
        if got.shape != want.shape:
            outcome.failures.append(f"{where}: shape {list(got.shape)}, expected {list(want.shape)}")
            outcome.worst = math.inf
            return
        if want.numel() == 0:
            return
        got, want = (wide(x.detach()) for x in (got, want))
        if not infinite and (why := why_no_proof(want)):
            outcome.failures.append(f"{where}: {why}")
            outcome.worst = math.inf
            return
        error = relative_error(got, want, heads=heads, floor=floor)
        bad, top = ~(error <= allowed), largest(error)
        outcome.worst = max(outcome.worst, top / allowed)
        if bool(bad.any()):
            outcome.failures.append(
                f"{where}: {first_difference(bad, error)} (largest {top:.2g}, allowed {allowed:.2g})"
            )

    def expect(self, part: str, condition: bool, text: str) -> None:
        """Count one yes-or-no finding."""
        outcome = self.outcome(part)
        outcome.comparisons += 1
        if not condition:
            outcome.failures.append(text)
            outcome.worst = math.inf


def close(got: Tensor, want: Tensor, allowed: float) -> bool:
    """True if two tensors have the same shape and agree, within a relative error."""
    if got.shape != want.shape:
        return False
    return want.numel() == 0 or bool((relative_error(wide(got), wide(want)) <= allowed).all())
