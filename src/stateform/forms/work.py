"""Work and memory of a system in each form, counted from its structure."""

from __future__ import annotations

from ..system import System
from ..system.precision import upcast
from . import chunkwise, scan
from .ridge import without_ridge


def work(system: System, form: str, *, chunk_size: int = 64) -> tuple[float, float]:
    """Floating-point operations and bytes of working memory: the leading terms, for all rows and heads.

    An estimate on the high side: temporaries and tiles are counted as they are in this implementation.
    """
    T, n = system.T * system.micro, system.n
    p = system.p if system.readout == "exp" else system.columns
    scalar = 2 if system.is_complex else 1
    products = 4 if system.is_complex else 1  # a complex product is four real ones
    size = upcast(system.k).element_size() / (2 if system.k.is_complex() else 1) * scalar
    heads, states = system.B * system.H, system.B * system.state_heads
    feedback = system.f is not None
    outputs = n if system.q is None else system.q.shape[-2] if system.q.ndim in (3, 5) else 1
    result = heads * T * outputs * p * size
    if system.readout == "exp":
        keys = n * scalar
        seen = T / 2 if system.window is None or system.window > T else system.window
        plain = system.eta == "sum" and system.d is None and system.log_decay is None and system.window is None
        rows = {"recurrent": 1, "chunkwise": min(256, T), "matrix": 0 if plain else T}[form]
        return (
            2 * heads * T * seen * (keys + p),
            result + states * T * (keys + p) * size + 3 * heads * rows * T * size,
        )
    if system.readout == "ridge":
        flops, memory = work(without_ridge(system), form, chunk_size=chunk_size)
        share = n / system.p  # of the Gram matrix against S
        written = n * n * size * min(heads * T, 2**22 // (4 * n * n) + heads)  # G of the tokens of a tile
        if system.solver is None or system.solver.method == "exact":
            return (
                flops * (1 + share) + heads * T * (2 * n**3 + n**3 / 3 + 2 * n * n),
                memory * (1 + share) + 2 * heads * T * n * size + 4 * written,
            )
        steps = 2 * n if system.solver.steps is None else system.solver.steps
        return (flops * (1 + (steps + 2) * share), memory * (1 + share) + 6 * heads * T * n * size + written)
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
