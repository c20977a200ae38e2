"""A System in one line, for people."""

from __future__ import annotations

from typing import Any


def in_words(system: Any) -> str:
    """Say in a line what a System is made of, and its sizes."""
    kind = {
        "identity": "no decay",
        "scalar": "scalar decay",
        "diagonal": "diagonal decay",
        "dense": "dense transition",
    }
    decay = [x for x in ("log_decay", "rate", "phase", "sign", "transition") if x in system.parts]
    constant = all(system.is_constant(x) for x in decay)
    words = [
        ("constant " if decay and constant else "")
        + ("complex " if system.is_complex else "")
        + kind[system.decay_kind]
    ]
    if system.f is not None:
        words.append("rank-1 feedback")
    if system.micro > 1:
        words.append(f"{system.micro} micro-steps")
    words.append("softmax readout" if system.readout.cached and system.eta == "sum" else f"{system.readout} readout")
    if system.exclusive:
        words.append("exclusive")
    if system.eta is not None:
        words.append("eta = sum" if isinstance(system.eta, str) else "eta given")
    if system.readout.cached:
        state = f"cache of {system.state_size} numbers a token" + (f", last {system.window}" if system.window else "")
    else:
        more = 0 if isinstance(system.eta, str) else system.readout.columns(system)
        both = f"({system.p} + {more})" if more else f"{system.p}"
        state = f"state {system.state_heads} x {system.n} x {both}"
    sizes = f"B={system.B}, T={system.T}, H={system.H}, n={system.n}, p={system.p}"
    return f"System({', '.join(words)}; {state}; {sizes}; {str(system.dtype).removeprefix('torch.')})"
