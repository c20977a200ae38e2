"""The shapes of a System's parts: one table, and the three things that are done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._errors import StateformError, require

if TYPE_CHECKING:
    from .system import System

SHAPES: dict[str, tuple[str, ...]] = {
    "q": ("BtHn", "BtHon", "Hn", "Hon"),
    "k": ("BTHn", "Hn"),
    "v": ("BTHp",),
    "log_decay": ("BTH", "BTHn", "H", "Hn"),
    "rate": ("H", "Hn"),
    "phase": ("BTH", "BTHn", "H", "Hn"),
    "sign": ("BTH", "BTHn", "H", "Hn"),
    "transition": ("BTHnn", "Hnn"),
    "f": ("BTHn", "Hn"),
    "w": ("BTHn", "Hn"),
    "b": ("BTH", "H"),
    "log_b": ("BTH", "H"),
    "d": ("BtH", "H"),
    "eta": ("BtH", "H"),
    "eta_floor": ("BtH", "H"),
    "w_in": ("Hni",),
    "w_out": ("oHn",),
}
"""B batch, t tokens, T tokens * micro, H heads (or a divisor), n keys, p values, o outputs, i inputs."""

PER_TOKEN = frozenset(name for name, layouts in SHAPES.items() if "t" in layouts[0])
GATES = frozenset(
    name for name, layouts in SHAPES.items() if layouts[-1] == "H" or name in ("phase", "log_decay", "sign", "rate")
)
VECTORS = ("q", "k", "v", "f", "w", "transition", "w_in", "w_out")
DECAYS = ("log_decay", "rate", "phase", "sign")


def layout(name: str, x: Tensor) -> str:
    """The layout of a part, by its number of axes."""
    for axes in SHAPES[name]:
        if len(axes) == x.ndim:
            return axes
    expected = " or ".join("[" + ",".join(axes) + "]" for axes in SHAPES[name])
    raise StateformError(f"{name} has shape {list(x.shape)}; expected {expected} (t tokens, T = t * micro)")


def check_shapes(s: System) -> None:
    """Raise unless the parts of a system fit each other."""
    parts = s.tensors()
    for name in ("q", "k", "v", "phase", "sign", "transition", "f", "w", "b", "log_b", "d", "w_in", "w_out"):
        x = getattr(s, name)
        require(
            x is None or isinstance(x, Tensor),
            f"{name} is a {type(x).__name__}; expected a tensor" + (" or None" if name != "k" else ""),
        )
    require(isinstance(s.k, Tensor), f"k is {type(s.k).__name__}; expected a tensor [B,T,H,n] or [H,n]")
    require(s.readout in ("linear", "exp"), f"readout is {s.readout!r}; expected 'linear' or 'exp'")
    require(
        s.eta is None or isinstance(s.eta, Tensor) or s.eta == "sum",
        f"eta is {s.eta!r}; expected None, 'sum' or a tensor",
    )
    require(
        isinstance(s.micro, int) and s.micro >= 1,
        f"micro is {s.micro!r}; expected a number of steps per token, 1 or more",
    )
    _check_sizes(s, parts)
    _check_kinds(parts)
    _check_combinations(s)


def _check_sizes(s: System, parts: dict[str, Tensor]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    heads: dict[str, int] = {}
    for name, x in parts.items():
        for axis, size in zip(layout(name, x), x.shape, strict=True):
            if axis == "H":
                heads[name] = size
                continue
            if axis == "T":
                require(size % s.micro == 0, f"{name} has {size} steps; expected a multiple of micro = {s.micro}")
                axis, size = "t", size // s.micro
            if axis == "n" and size == 1 and name in DECAYS:
                continue
            known, first = seen.setdefault(axis, (size, name))
            what = {
                "B": "batch size",
                "t": "length",
                "n": "number of keys",
                "p": "values",
                "o": "outputs",
                "i": "inputs",
            }[axis]
            if axis == "o" and {name, first} == {"q", "w_out"}:
                raise StateformError("w_out maps the state of a system with q = None; give one of them")
            require(
                known == size, f"{name} has {what} {size}, but {first} has {known}; shape of {name}: {list(x.shape)}"
            )
    H = max(heads.values())
    for name, h in heads.items():
        require(h > 0 and H % h == 0, f"{name} has {h} heads; expected a divisor of {H} (the most heads any part has)")
    require("B" in seen, "every part of this system is constant; give v (or k) a batch and a time axis")


def _check_kinds(parts: dict[str, Tensor]) -> None:
    k = parts["k"]
    double = (torch.float64, torch.complex128)
    half = (torch.float16, torch.bfloat16)
    for name, x in parts.items():
        require(x.is_floating_point() or x.is_complex(), f"{name} has dtype {x.dtype}; expected a floating dtype")
        require(x.device == k.device, f"{name} is on {x.device}, but k is on {k.device}; move them with .to(device)")
        require(not (x.is_complex() and name in GATES), f"{name} is complex; give the angle of the decay as phase")
        # Decays may be more precise than the values they act on. There is no complex half: complex64 goes with half.
        same = x.dtype.to_real() == k.dtype.to_real() if name in VECTORS else (x.dtype in double) == (k.dtype in double)
        paired = {x.dtype, k.dtype} & {torch.complex64} and {x.dtype, k.dtype} & set(half)
        fits = same or paired or name in (*DECAYS, "log_b", "eta_floor")
        require(fits, f"{name} has dtype {x.dtype}, but k has {k.dtype}; cast one of them with .to(dtype)")


def _check_combinations(s: System) -> None:
    require(s.k.ndim == 4 or s.v is not None, "with v = None, k is the whole input: give it a batch and a time axis")
    require((s.f is None) == (s.w is None), "feedback f w^T needs both f and w")
    require(s.b is None or s.log_b is None, "give b or log_b (its logarithm), not both")
    dense = s.transition is not None
    require(not dense or (s.log_decay is None and s.phase is None and s.sign is None),
            "a dense transition already holds decay, phase and sign; give one or the other")  # fmt: skip
    require(s.eta_floor is None or s.eta is not None, "eta_floor is the least value of eta; give eta too")
    require(s.w_out is None or (s.q is None and s.v is None), "w_out is for vector states: q = None and v = None")
    require(s.w_in is None or s.v is None, "w_in is the map k = w_in u of a vector state: v = None")
    if s.readout == "exp":
        require(s.q is not None and s.q.ndim == 4 and s.v is not None and s.k.ndim == 4,
                'readout "exp" needs q and k [B,T,H,n] and v [B,T,H,p]')  # fmt: skip
        require(s.decay_kind in ("identity", "scalar") or _only_phase(s),
                'readout "exp" takes a scalar log decay (on weights) and a phase (on keys), no other decay')  # fmt: skip
        require(s.f is None and s.sign is None, 'readout "exp" has no feedback and no sign')
        require(not s.exclusive and s.micro == 1, 'readout "exp" is inclusive and has one step a token')
        require(s.window is None or s.window >= 1, f"window is {s.window}; expected 1 or more tokens")
    else:
        require(s.window is None, 'window is for readout "exp"; a linear readout forgets by its decay')
        require(s.causal, 'causal=False is for readout "exp"')


def _only_phase(s: System) -> bool:
    log = s.tensors().get("log_decay")
    return "rate" not in s.tensors() and (log is None or log.ndim in (1, 3) or log.shape[-1] == 1)


def split_heads(name: str, x: Tensor, G: int, R: int) -> Tensor:
    """A part with the Core's axes [batch, time, G, R, ...]; size 1 where it is constant or shared."""
    axes = layout(name, x)
    if axes[0] == "H":
        x = x[None, None]
    heads = x.shape[2]
    if heads != 1 and heads != G:
        heads = G if G % heads == 0 else G * R
        x = spread_heads(x, heads)
    x = x.unflatten(2, (1, 1) if heads == 1 else (G, 1) if heads == G else (G, R))
    if name == "q" and "o" not in axes:
        x = x.unsqueeze(-2)
    return x if axes[-1] in "np" else x.unsqueeze(-1)


def spread_heads(x: Tensor, H: int, axis: int = 2) -> Tensor:
    """The head axis repeated to H (1 stays 1: it broadcasts)."""
    heads = x.shape[axis]
    return x if heads in (1, H) else x.repeat_interleave(H // heads, axis)


def select_heads(name: str, x: Tensor, index: Tensor, H: int) -> Tensor:
    """The part seen by the heads in `index` of H."""
    axis = layout(name, x).index("H")
    return x if x.shape[axis] == 1 else x.index_select(axis, index // (H // x.shape[axis]))
