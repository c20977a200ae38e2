"""Systems of every structure, drawn at random: what the tests of the representation and of the forms run over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

import stateform as sf

B, T, N, P = 2, 70, 6, 5


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def u(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def c(*shape: int) -> Tensor:
    return torch.complex(r(*shape), r(*shape))


def unit(*shape: int) -> Tensor:
    return normalize(r(*shape), dim=-1)


def decay(kind: str, **more: object) -> sf.System:
    """A system with decay of one kind, four heads."""
    H = 4
    q, k, v = r(B, T, H, N), r(B, T, H, N), r(B, T, H, P)
    parts: dict[str, object] = {}
    match kind:
        case "scalar":
            parts = {"log_decay": -u(B, T, H)}
        case "diagonal":
            parts = {"log_decay": -u(B, T, H, N)}
        case "product":
            parts = {"log_decay": (u(B, T, H), -u(H, N))}
        case "reset":
            g = -0.01 * u(B, T, H, N)
            g[:, 37] = -torch.inf
            parts = {"log_decay": g}
        case "complex":
            q, k = c(B, T, H, N), c(B, T, H, N)
            parts = {"log_decay": -u(B, T, H, N), "phase": 3 * r(B, T, H, N)}
        case "signed":
            parts = {"log_decay": -u(B, T, H, N), "sign": r(B, T, H, N).sign()}
        case "constant":
            q, k = r(H, N), r(H, N)
            parts = {"log_decay": -u(H, N), "phase": u(H, N)}
        case "dense":
            parts = {"transition": r(B, T, H, N, N) / N}
        case "dense constant":
            q, k = r(H, N), r(H, N)
            parts = {"transition": r(H, N, N) / N}
    return sf.System(q, k, v, **{**parts, **more})  # type: ignore[arg-type]


KINDS = (
    "identity",
    "scalar",
    "diagonal",
    "product",
    "reset",
    "complex",
    "signed",
    "constant",
    "dense",
    "dense constant",
)


def feedback(kind: str, **more: object) -> sf.System:
    w = unit(4, N) if "constant" in kind else unit(B, T, 4, N)
    strength = 0.5 if "constant" in kind else 0.5 * u(B, T, 4, 1)
    return decay(kind, f=-strength * w, w=w, **more)


def phases(**more: object) -> sf.System:
    """Softmax with a rotation of the keys."""
    return sf.System(
        c(B, T, 4, 3), c(B, T, 4, 3), r(B, T, 4, P), readout="exp", eta="sum", **{"phase": u(4, 3), **more}
    )  # type: ignore[arg-type]


def softmax(kv_heads: int = 4, **more: object) -> sf.System:
    parts = {"readout": "exp", "eta": "sum", **more}
    return sf.System(r(B, T, 4, N), r(B, T, kv_heads, N), r(B, T, kv_heads, P), **parts)  # type: ignore[arg-type]


def micro(**more: object) -> sf.System:
    k = r(B, 3 * T, 4, N)
    return sf.System(r(B, T, 4, N), k, r(B, 3 * T, 4, P), micro=3, **more)  # type: ignore[arg-type]


def ridge(kv_heads: int = 4, **more: object) -> sf.System:
    """A ridge readout: q is answered by the regression of the values on the keys so far."""
    q, k, v = r(B, T, 4, N), unit(B, T, kv_heads, N), r(B, T, kv_heads, P)
    parts = {"ridge": 0.3 + u(4), "b": u(B, T, kv_heads), "log_decay": -0.1 * u(B, T, kv_heads), **more}
    return sf.System(q, k, v, readout="ridge", **parts)  # type: ignore[arg-type]


CASES: dict[str, Callable[[], sf.System]] = {
    **{kind: (lambda kind=kind: decay(kind)) for kind in KINDS},
    **{f"{kind} + feedback": (lambda kind=kind: feedback(kind)) for kind in KINDS},
    **{f"{kind}, exclusive": (lambda kind=kind: decay(kind, exclusive=True)) for kind in KINDS},
    **{f"{kind} + feedback, exclusive": (lambda kind=kind: feedback(kind, exclusive=True)) for kind in KINDS},
    **{f"{kind} + feedback, b, d": (lambda kind=kind: feedback(kind, b=u(B, T, 4), d=r(B, T, 4))) for kind in KINDS},
    "grouped queries": lambda: sf.System(r(B, T, 4, N), r(B, T, 2, N), r(B, T, 2, P), log_decay=-u(B, T, 2)),
    "grouped queries, feedback": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 2, N), r(B, T, 2, P), log_decay=-u(B, T, 4),
        f=-0.3 * r(B, T, 2, N), w=0.3 * r(B, T, 2, N),
    ),
    "three head counts": lambda: sf.System(r(B, T, 6, N), r(B, T, 2, N), r(B, T, 3, P), log_decay=-u(B, T, 6)),
    "shared keys, product decay": lambda: sf.System(
        r(B, T, 1, N), r(B, T, 1, N), r(B, T, 8, 1), log_decay=(u(B, T, 8), -u(8, N)), b=u(B, T, 8), d=r(8)
    ),
    "groups": lambda: sf.System(
        r(B, T, 2, N), r(B, T, 2, N), r(B, T, 8, P), log_decay=-u(B, T, 8), b=u(B, T, 8), d=r(8)
    ),
    "output axis": lambda: sf.System(
        r(B, T, 4, 3, N), r(B, T, 4, N), r(B, T, 4, P), log_decay=-u(B, T, 4, N),
        f=-0.1 * r(B, T, 1, N), w=0.1 * r(B, T, 1, N)
    ),
    "whole state": lambda: sf.System(None, r(B, T, 4, N), None, log_decay=-u(B, T, 4, N)),
    "vector state, output axis": lambda: sf.System(r(4, 3, N), r(B, T, 4, N), None, log_decay=-u(4, N), phase=u(4, N)),
    "modes": lambda: sf.System(None, c(B, T, 8, 1), None, log_decay=-u(8), phase=u(8), w_out=c(5, 8, 1)),
    "channels, constant": lambda: sf.System(
        c(8, N), torch.ones(1, N, dtype=torch.float64), r(B, T, 8, 1), log_decay=-u(8, N), phase=u(8, N)
    ),
    "micro-steps": lambda: micro(
        log_decay=-u(B, 3 * T, 4), f=-0.2 * r(B, 3 * T, 4, N), w=0.2 * r(B, 3 * T, 4, N), b=u(B, 3 * T, 4), d=r(B, T, 4)
    ),
    "micro-steps, exclusive": lambda: micro(log_decay=-u(B, 3 * T, 4, N), exclusive=True),
    "eta sum": lambda: sf.System(u(B, T, 4, N), u(B, T, 4, N), r(B, T, 4, P), eta="sum", d=u(B, T, 4), b=u(B, T, 4)),
    "eta floor": lambda: sf.System(
        u(B, T, 4, N), u(B, T, 4, N), r(B, T, 4, P), eta="sum", log_decay=-u(4), eta_floor=0.3
    ),
    "eta given": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 4, N), r(B, T, 4, P), eta=r(B, T, 4).exp(), log_decay=-u(B, T, 4)
    ),
    "eta given, floored": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 4, N), r(B, T, 4, P), eta=r(B, T, 4), eta_floor=0.3, log_decay=-u(B, T, 4)
    ),
    "complex keys, real decay": lambda: sf.System(
        c(B, T, 4, N), c(B, T, 4, N), r(B, T, 4, P), log_decay=-u(B, T, 4)
    ),
    "exponential gate": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 4, N), r(B, T, 4, P), eta="sum", log_decay=-u(B, T, 4),
        log_b=5 * r(B, T, 4), eta_floor=1.0
    ),
    "exponential gate, exclusive, direct": lambda: sf.System(
        torch.ones(8, 1, dtype=torch.float64), torch.ones(8, 1, dtype=torch.float64), r(B, T, 8, 1), eta="sum",
        log_decay=-u(8), log_b=5 * r(B, T, 8), d=r(B, T, 8).exp(), exclusive=True,
    ),
    "complex values": lambda: sf.System(
        c(B, T, 4, N), c(B, T, 4, N), c(B, T, 4, P), log_decay=-u(4, N), phase=u(4, N), eta=u(4)
    ),
    "modes, divided": lambda: sf.System(
        None, c(B, T, 8, 1), None, log_decay=-u(8), phase=u(8), w_out=c(5, 8, 1), eta=0.5 + u(8)
    ),
    "exponential gate of shared heads": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 4, N), r(B, T, 4, P), eta="sum", log_b=5 * r(B, T, 1), eta_floor=1.0
    ),
    "exponential gate, grouped, product decay": lambda: sf.System(
        r(B, T, 4, N), r(B, T, 2, N), r(B, T, 2, P), eta="sum", log_decay=(u(B, T, 2), -u(1)), log_b=5 * r(B, T, 2),
        eta_floor=0.5 + u(4), d=u(B, T, 4),
    ),
    "ridge": ridge,
    "ridge, diagonal": lambda: ridge(ridge=0.3 + u(4, N), d=r(4), eta=0.5 + u(B, T, 4)),
    "ridge, no decay, exclusive": lambda: ridge(log_decay=None, b=None, exclusive=True, ridge=0.3 + u(B, T, 4)),
    "ridge, grouped, diagonal from the input": lambda: ridge(2, ridge=0.3 + u(B, T, 4, N), b=r(B, T, 2).exp()),
    "ridge, shared keys, product decay": lambda: sf.System(
        r(B, T, 1, N), unit(B, T, 1, N), r(B, T, 8, 2), log_decay=(u(B, T, 8), -u(8)), readout="ridge", ridge=0.1 + u(1)
    ),
    "ridge, relative, mixed": lambda: ridge(ridge=torch.full((4,), 0.02).double(), relative=True, mix=u(B, T, 4)),
    "ridge, relative, exclusive": lambda: ridge(ridge=0.1 + u(4), relative=True, exclusive=True),
    "ridge, conjugate gradients": lambda: ridge(solver=sf.Solver("cg")),
    "ridge, chebyshev": lambda: ridge(2, solver=sf.Solver("chebyshev")),
    "ridge, relative, chebyshev": lambda: ridge(
        ridge=torch.full((1,), 0.02).double(), relative=True, solver=sf.Solver("chebyshev")
    ),
    "ridge, output axis": lambda: sf.System(
        r(B, T, 4, 3, N), unit(B, T, 4, N), r(B, T, 4, P), log_decay=-0.1 * u(4), readout="ridge", ridge=0.3 + u(4)
    ),
    "ridge, constant query and key": lambda: sf.System(
        r(4, N), unit(4, N), r(B, T, 4, P), log_decay=-0.1 * u(4), readout="ridge", ridge=0.3 + u(4)
    ),
    "ridge, one key": lambda: sf.System(
        r(B, T, 4, 1), r(B, T, 4, 1), r(B, T, 4, P), log_decay=-0.1 * u(B, T, 4), readout="ridge", ridge=0.3 + u(4)
    ),
    "time-invariant": lambda: sf.System(r(4, N), r(4, N), r(B, T, 4, P)),
    "softmax": softmax,
    "softmax, grouped": lambda: softmax(2),
    "softmax, rotary": phases,
    "softmax, distance penalty": lambda: softmax(forget=-u(4)),
    "softmax, forgetting": lambda: softmax(forget=-u(B, T, 4)),
    "softmax, grouped, forgetting": lambda: softmax(2, forget=-u(B, T, 2)),
    "softmax, window": lambda: softmax(window=7),
    "softmax, window, forgetting": lambda: softmax(window=7, forget=-u(B, T, 4)),
    "softmax, not normalised": lambda: softmax(eta=None),
    "softmax, direct": lambda: softmax(d=u(B, T, 4)),
    "softmax, all": lambda: phases(phase=u(B, T, 4, 3), forget=-u(4), b=u(B, T, 4)),
}  # fmt: skip
