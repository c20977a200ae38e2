"""Work and memory of a system in each form, counted from its structure."""

from __future__ import annotations

from ...system import System
from ...system.precision import upcast
from .. import chunkwise, scan
from ..form import reads_of


def work(system: System, form: str, *, chunk_size: int = 64) -> tuple[float, float]:
    """Count floating-point operations and bytes of working memory: the leading terms, for all rows and heads.

    An estimate on the high side: temporaries and tiles are counted as they are in this implementation.
    """
    return reads_of(system).work(system, form, chunk_size)


def number_size(system: System) -> float:
    """Count the bytes of one number of the state."""
    size = upcast(system.k).element_size() / (2 if system.k.is_complex() else 1)
    return size * (2 if system.is_complex else 1)


def work_of_recurrence(system: System, form: str, chunk_size: int) -> tuple[float, float]:
    """Count as `work` does, for a linear readout."""
    T, n, p = system.T * system.micro, system.n, system.columns
    products = 4 if system.is_complex else 1  # a complex product is four real ones
    size = number_size(system)
    heads, states = system.B * system.H, system.B * system.state_heads
    feedback = system.f is not None
    outputs = system.outputs
    result = heads * T * outputs * p * size
    dense = system.transition is not None
    update = 2 * n * n * p if dense else n * p
    step = update + 2 * n * p + (4 * n * p if feedback else 0) + 2 * outputs * n * p
    if form == "recurrent":
        return (products * heads * T * step, result + 4 * states * n * p * size)
    if form == "scan":
        tile = min(T, max(64, scan.room(system.device) // max(1, states * n * (p + (n if dense else 1)))))
        pairs = 2 * (2 * n**3 + 2 * n * n * p) if dense else 2 * 3 * n * p
        return (
            products * heads * T * (pairs + 2 * outputs * n * p),
            result + 6 * states * tile * n * (p + (n if dense else 1)) * size,
        )
    if form == "convolution":
        padded = 2 * T
        transforms = 3 * 5 * padded * max(1, padded.bit_length())
        return (products * heads * (transforms * p + 4 * T * n * p), 2 * result + heads * T * (6 * n + 6 * p) * size)
    c = T if form == "matrix" else min(chunk_size, T)
    sums = 2 * outputs * c * n + (6 * c * n if feedback else 0) + (2 * c * c if feedback else 0)
    apply = outputs * c * p + 4 * n * p + (4 * c * (n + p) if feedback else 0)
    wide = system.decay_kind == "diagonal"
    temporaries = (4 + 3 * feedback) * heads * c * c * outputs * size + (8 * heads * c * n * 4 * size if wide else 0)
    tiles = (
        1
        if form == "matrix"
        else min(-(-T // c), max(1, chunkwise.room(system.device) // max(1, heads * (c * (c + 4 * n + 2 * p) + n * p))))
    )
    return (
        products * heads * T * (sums + 2 * apply),
        result + tiles * (temporaries + heads * (6 * c * (n + p) + n * p) * size),
    )
