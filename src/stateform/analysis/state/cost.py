"""Work and memory of a system in each form, counted from its structure."""

from __future__ import annotations

from dataclasses import dataclass

from ...forms.cost.work import work
from ...system import System


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two) and bytes of working memory (inputs excluded)."""

    flops: float
    bytes: float

    def to_dict(self) -> dict[str, float]:
        """Give plain numbers."""
        return {"flops": self.flops, "bytes": self.bytes}

    def __str__(self) -> str:
        return f"{self.flops:.3g} floating-point operations, {self.bytes / 1e6:.3g} MB of working memory"


def cost(system: System, form: str, *, chunk_size: int = 64) -> Cost:
    """Estimate the leading terms of the work and of the peak memory of one form on a system, all rows and heads.

    Args:
        system: the structure and sizes.
        form: a form that exists for it.
        chunk_size: of the form chunkwise.

    Returns:
        An estimate, on the high side: temporaries and tiles are counted as they are in this implementation.
    """
    return Cost(*work(system, form, chunk_size=chunk_size))
