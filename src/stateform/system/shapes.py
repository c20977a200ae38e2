"""The shapes of a System's parts: one table, and the three things that are done with it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import StateformError, require
from .precision import DOUBLE, HALF, autocast_on, real_dtype, upcast
from .readout import KINDS, Readout, SoftmaxRead

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
    "forget": ("BtH", "H"),
    "bias": ("BtH", "H"),
    "distance": ("Hd",),
    "blocks": ("BtHm",),
    "sink": ("BtH", "H"),
    "sink_value": ("BtHp",),
    "ridge": ("BtH", "BtHn", "Hn", "H"),
    "mix": ("BtH", "H"),
    "w_in": ("Hni",),
    "w_out": ("oHn",),
}
"""B batch, t tokens, T tokens * micro, H heads (or a divisor), n keys, p values, o outputs, i inputs, d distances,
m blocks of keys."""

PER_TOKEN = frozenset(name for name, layouts in SHAPES.items() if "t" in layouts[0])
GATES = frozenset(
    name
    for name, layouts in SHAPES.items()
    if layouts[-1] == "H" or name in ("phase", "log_decay", "sign", "rate", "distance", "blocks")
)
VECTORS = ("q", "k", "v", "f", "w", "transition", "sink_value", "w_in", "w_out")
DECAYS = ("log_decay", "rate", "phase", "sign")
HIDING = ("log_b", *SoftmaxRead.exponents)
"""Exponents that may be -inf, as a log decay may that is no product."""
EXPONENTS = (*DECAYS, *HIDING)
"""Exponents and angles, which stay at float32 at least."""
READ = tuple(name for kind in KINDS.values() for name in kind.parts)
"""The parts that belong to readouts."""
TENSORS = tuple(name for name in SHAPES if name not in ("rate", *READ))
"""The fields of a System that may be tensors; a product decay is a pair, log_decay and rate;
readouts have their own."""
AXES = {"B": "batch size", "t": "length", "n": "number of keys", "p": "number of values", "o": "number of outputs",
        "i": "number of inputs", "d": "number of distances", "m": "number of blocks"}  # fmt: skip


def layout(name: str, x: Tensor) -> str:
    """Find the layout of a part, by its number of axes."""
    for axes in SHAPES[name]:
        if len(axes) == x.ndim:
            return axes
    expected = " or ".join("[" + ",".join(axes) + "]" for axes in SHAPES[name])
    letters = "t tokens, T = t * micro" if name in PER_TOKEN else "T = tokens * micro"
    raise StateformError(f"{label(name)} has shape {list(x.shape)}; expected {expected} (B batch, {letters}, H heads)")


def decay_kind(parts: dict[str, Tensor], layouts: dict[str, str]) -> Literal["identity", "scalar", "diagonal"]:
    """Name the structure of a decay that is not dense."""
    decays = [name for name in DECAYS if name in parts]
    if not decays:
        return "identity"
    wide = any(layouts[name][-1] == "n" and parts[name].shape[-1] > 1 for name in decays)
    return "diagonal" if wide else "scalar"


def label(name: str) -> str:
    """Make the name of a part in messages."""
    return "log_decay[1]" if name == "rate" else name


def signature(s: Any) -> Any:
    """List all that `check_shapes` looks at, to tell whether a system like this one has been checked; None if it cannot
    be said: under torch.compile, and for what cannot be a key.
    """
    if torch.compiler.is_compiling():
        return None
    marks = tuple([_mark(x) if x is not None else None for x in s.__dict__.values()])
    try:
        hash(marks)
    except TypeError:
        return None
    return marks, autocast_on(s.k.device) if isinstance(s.k, Tensor) else None


def _mark(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.shape, x.dtype, x.device, x.layout
    if isinstance(x, tuple):
        return tuple(_mark(part) for part in x)
    if isinstance(x, Readout):
        return type(x), *map(_mark, vars(x).values())
    return type(x), x


KNOWN: dict[Any, dict[str, Any]] = {}
"""What follows from the signatures of systems that were checked."""
MOST_KNOWN = 4096


def facts(s: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Check a system, and find what the properties `names` of it say.

    Both are done once for all systems that have the same shapes, dtypes and options: for a token of decoding the checks
    would take longer than the numbers. `shared` is a dictionary for what else follows from them.
    """
    if torch.compiler.is_compiling():  # a graph is traced once, and torch 2.11 cannot trace the rest
        check_shapes(s)
        return {}
    key = signature(s)
    known = None if key is None else KNOWN.get(key)
    if known is None:
        check_shapes(s)
        known = {name: getattr(s, name) for name in names} | {"shared": {}}
        if key is not None:
            if len(KNOWN) >= MOST_KNOWN:
                KNOWN.clear()
            KNOWN[key] = known
    return known


def check_shapes(s: Any) -> None:
    """Raise unless the parts of a system fit each other."""
    _check_types(s)
    parts = s.tensors()
    _check_sizes(s, parts)
    _check_kinds(parts)
    _check_combinations(s)


def _check_types(s: Any) -> None:
    require(isinstance(s.k, Tensor), f"k is a {type(s.k).__name__}; expected a tensor [B,T,H,n] or [H,n]")
    for name in TENSORS:
        x = getattr(s, name)
        if x is None or isinstance(x, Tensor):
            continue
        if name == "log_decay":
            pair = isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, Tensor) for part in x)
            given = f"a tuple of {len(x)}" if isinstance(x, tuple) else f"a {type(x).__name__}"
            require(pair, f"log_decay is {given}; expected a tensor, a pair of tensors (dt, a), or None")
        elif name == "eta":
            require(isinstance(x, str) and x == "sum", f"eta is {x!r}; expected None, 'sum' or a tensor")
        elif name == "eta_floor":
            number = isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float("inf")
            require(number, f"eta_floor is {x!r}; expected a number, 0 or more, or a tensor")
        else:
            raise StateformError(f"{name} is a {type(x).__name__}; expected a tensor or None")
    whole = isinstance(s.micro, int) and not isinstance(s.micro, bool) and s.micro >= 1
    require(whole, f"micro is {s.micro!r}; expected 1 or more steps per token")
    require(isinstance(s.exclusive, bool), f"exclusive is {s.exclusive!r}; expected True or False")


def _check_sizes(s: Any, parts: dict[str, Tensor]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    heads: dict[str, int] = {}
    for name, x in parts.items():
        for axis, size in zip(layout(name, x), x.shape, strict=True):
            if axis == "H":
                heads[name] = size
                continue
            if axis == "T":
                if size % s.micro:
                    raise StateformError(
                        f"{label(name)} has {size} steps; expected a multiple of micro = {s.micro}, the steps per token"
                    )
                axis, size = "t", size // s.micro
            if axis == "n" and size == 1 and name in DECAYS:
                continue
            known, first = seen.setdefault(axis, (size, name))
            if axis == "o" and {name, first} == {"q", "w_out"}:
                raise StateformError("w_out maps the state of a system with q = None; give q or w_out, not both")
            if known != size:
                raise StateformError(
                    f"{label(name)} and {label(first)} differ in their {AXES[axis]}, {size} and {known}; "
                    f"their shapes are {list(x.shape)} and {list(parts[first].shape)}"
                )
    for axis in "npoidm":
        size, name = seen.get(axis, (1, ""))
        require(size > 0, f"the {AXES[axis]} of {name} is 0; expected 1 or more")
    most = max(heads, key=lambda name: heads[name])
    for name, h in heads.items():
        if h == 0 or heads[most] % h:
            rest = "1 or more" if h == 0 else f"a divisor of the {heads[most]} of {label(most)}"
            raise StateformError(f"{label(name)} has {h} heads; expected {rest}")
    require("B" in seen, "every part of this system is constant; give v (or k) a batch and a time axis")


def _check_kinds(parts: dict[str, Tensor]) -> None:
    k = parts["k"]
    for name, x in parts.items():
        if not (x.is_floating_point() or x.is_complex()):
            raise StateformError(
                f"{label(name)} has dtype {x.dtype}; expected a floating dtype: cast it with .to(dtype)"
            )
        if x.layout != torch.strided:
            raise StateformError(f"{label(name)} is a sparse tensor; expected a dense one: use .to_dense()")
        if x.device != k.device:
            raise StateformError(f"{label(name)} is on {x.device}, k on {k.device}; move one of them with .to(device)")
        if x.is_complex() and name in GATES:
            hint = "give the angle of the decay as phase" if name in DECAYS else "its phase belongs to k, v or q"
            raise StateformError(f"{label(name)} is complex; expected a real tensor: {hint}")
        # Decays may be more precise than the values they act on, and so may f: `stabilise` multiplies it by one.
        # There is no complex half: complex64 goes with half.
        if x.dtype == k.dtype or name in (*EXPONENTS, "eta_floor") or (name == "f" and x.dtype == upcast(k).dtype):
            continue
        fits = (x.dtype in DOUBLE) == (k.dtype in DOUBLE)
        if name in VECTORS and not autocast_on(k.device):  # autocast lowers what it likes
            half = torch.complex64 in (x.dtype, k.dtype) and (x.dtype in HALF or k.dtype in HALF)
            fits = fits and (half or real_dtype(x.dtype) == real_dtype(k.dtype))
        if not fits:
            raise StateformError(f"{name} has dtype {x.dtype}, but k has {k.dtype}; cast one of them with .to(dtype)")


def _check_combinations(s: Any) -> None:
    require(s.k.ndim == 4 or s.v is not None, "with v = None, k is the whole input: give it a batch and a time axis")
    require((s.f is None) == (s.w is None), "feedback f w^T needs both f and w; give the other one too, or neither")
    require(s.b is None or s.log_b is None, "give b or log_b (its logarithm), not both")
    dense = s.transition is not None
    require(not dense or (s.log_decay is None and s.phase is None and s.sign is None),
            "a dense transition already holds decay, phase and sign; give one or the other")  # fmt: skip
    require(s.eta_floor is None or s.eta is not None, "eta_floor is the least value of eta; give eta too")
    require(s.w_out is None or (s.q is None and s.v is None), "w_out is for vector states: q = None and v = None")
    require(s.w_in is None or s.v is None, "w_in is the map k = w_in u of a vector state: v = None")
    s.readout.check(s)


def split_heads(name: str, x: Tensor, G: int, R: int) -> Tensor:
    """Reshape a part to the Core's axes [batch, time, G, R, ...]; size 1 where it is constant or shared."""
    axes = layout(name, x)
    at = axes.index("H")
    heads = x.shape[at]
    if heads != 1 and heads != G:
        heads = G if G % heads == 0 else G * R
        x = spread_heads(x, heads, at)
    front = x.shape[:2] if at else (1, 1)
    split = (1, 1) if heads == 1 else (G, 1) if heads == G else (G, R)
    last = x.shape[at + 1 :] or (1,)
    return x.view(*front, *split, *((1,) if name == "q" and "o" not in axes else ()), *last)


def spread_heads(x: Tensor, H: int, axis: int = 2) -> Tensor:
    """Repeat the head axis to H (1 stays 1: it broadcasts)."""
    heads = x.shape[axis]
    return x if heads in (1, H) else x.repeat_interleave(H // heads, axis)


def select_heads(name: str, x: Tensor, index: Tensor, H: int) -> Tensor:
    """Take the part seen by the heads in `index` of H."""
    axis = layout(name, x).index("H")
    return x if x.shape[axis] == 1 else x.index_select(axis, index // (H // x.shape[axis]))


def indices(given: Sequence[int] | int, size: int, what: str) -> list[int]:
    """Turn whole numbers into indices 0..size-1; negative ones count from the end."""
    try:
        index = [operator.index(i) for i in ([given] if hasattr(given, "__index__") else given)]
    except TypeError:
        raise StateformError(f"{what} is {given!r}; expected whole numbers") from None
    require(all(-size <= i < size for i in index), f"{what} {index} are not all among the {size}: 0..{size - 1}")
    return [i % size for i in index]


def stretch(at: slice, length: int) -> tuple[int, int]:
    """Find where a slice of tokens begins and ends."""
    whole = isinstance(at, slice) and all(x is None or hasattr(x, "__index__") for x in (at.start, at.stop))
    require(whole and at.step in (None, 1),
            f"a system is sliced in time, system[start:stop] with whole numbers; got {at!r}")  # fmt: skip
    start, stop, _ = at.indices(length)
    return start, max(start, stop)
