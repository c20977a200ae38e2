"""The errors that users see, and when values are checked."""

from __future__ import annotations

import cmath
import contextlib
import difflib
import functools
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_validation: ContextVar[bool | None] = ContextVar("stateform_validation", default=None)


class StateformError(ValueError):
    """Something given by the user cannot be used; the message says what was given, what was expected, what to do."""


def require(condition: object, message: str) -> None:
    """Raise a StateformError with `message` unless `condition` holds."""
    if not condition:
        raise StateformError(message)


def require_seed(seed: int) -> None:
    """Raise unless `seed` can start a generator of torch."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    require(
        whole and -(2**63) <= seed < 2**64 - 1,
        f"seed is {seed!r}; expected a whole number of 64 bits, from -2^63 to below 2^64 - 1",
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Give a hint for a misspelt name: the nearest known ones, or all of them."""
    return _nearest(name, tuple(sorted(known)))


@functools.lru_cache(maxsize=4096)  # a check makes its message even if it passes
def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"known names: {', '.join(known)}"


@contextlib.contextmanager
def validate(on: bool) -> Iterator[None]:
    """Switch the checks on values (finite, ordered, contractive) on or off inside a `with` block.

    Shapes, dtypes and devices are always checked. Values are checked by default for eager tensors on a CPU and not
    on an accelerator (where reading them waits for the device) nor under `torch.compile`.
    """
    token = _validation.set(on)
    try:
        yield
    finally:
        _validation.reset(token)


def readable(x: Tensor) -> bool:
    """True if the values of `x` can become Python numbers here and now (not while traced, nor on the meta device)."""
    return not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x) or x.is_meta)


def values_checked(x: Tensor) -> bool:
    """True if the values of `x` are to be checked here and now, see `validate`."""
    if not readable(x):
        return False
    on = _validation.get()
    return x.device.type == "cpu" if on is None else on


def require_values(x: Tensor, name: str, allowed: tuple[int, int], hint: str) -> None:
    """Raise if `x` holds another value than the two allowed, naming the first position."""
    if x.numel() == 0 or not values_checked(x):
        return
    bad = ~((x == allowed[0]) | (x == allowed[1]))
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise StateformError(
            f"{name} holds {x[first].item()} at index {first} of shape {tuple(x.shape)}; "
            f"expected {allowed[0]} or {allowed[1]}: {hint}"
        )


def require_above(x: Tensor | None, name: str, least: float, why: str, *, equal: bool = False) -> None:
    """Raise if `x` holds a value below `least` (or equal to it, unless `equal`), naming the first position."""
    if x is None or x.numel() == 0 or not values_checked(x):
        return
    bad = x < least if equal else x <= least
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        expected = f"{least:g} or more" if equal else f"numbers above {least:g}"
        raise StateformError(
            f"{name} holds {x[first].item()} at index {first} of shape {tuple(x.shape)}; expected {expected}: {why}"
        )


def require_finite(x: Tensor, name: str, *, allow_minus_inf: bool = False) -> None:
    """Raise if `x` holds NaN or inf (a log decay may be -inf), naming the first position."""
    if x.numel() == 0 or not values_checked(x):
        return
    # A sum is non-finite whenever an entry is; the entries are looked at only when it is.
    if not allow_minus_inf and cmath.isfinite(x.detach().sum().item()):
        return
    bad = torch.isnan(x) | (torch.isinf(x) if not allow_minus_inf else torch.isposinf(x))
    if bool(bad.any()):
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise StateformError(
            f"{name} holds {x[first].item()} at index {first} of shape {tuple(x.shape)}; expected finite values"
            f"{' or -inf' if allow_minus_inf else ''}. Mask padded positions with attention_mask, or switch this check "
            "off with `with sf.validate(False):`"
        )


def require_finite_weights(module: nn.Module) -> None:
    """Raise if a parameter holds NaN or inf, naming the first and its module: NaN would pass for equal, or for fast.

    A layer's own parameter (one of a module that gives a System) may be -inf, the log decay of a reset.
    """
    for path, owner in module.named_modules():
        for name, p in owner.named_parameters(recurse=False):
            first = _first_not_finite(p, minus_inf=hasattr(owner, "system"))
            if first is not None:
                where = f"{path} ({type(owner).__name__})" if path else type(owner).__name__
                raise StateformError(
                    f"the parameter {name} of {where} holds {p[first].item()} at index {first} of shape "
                    f"{list(p.shape)}; expected finite numbers, without which nothing can be compared or measured: "
                    "load the weights again, or take them from before the training diverged"
                )


def _first_not_finite(p: Tensor, *, minus_inf: bool) -> tuple[int, ...] | None:
    """Find the index of the first entry that is NaN or inf; None if there is none, or no values can be read."""
    if not (p.is_floating_point() or p.is_complex()) or p.numel() == 0 or not readable(p):
        return None
    p = p.detach().float() if p.element_size() == 1 else p.detach()
    if bool(p.sum(dtype=torch.promote_types(p.dtype, torch.float32)).isfinite()):  # it is not if an entry is not
        return None
    bad = ~p.isfinite()
    bad = bad & ~p.isneginf() if minus_inf and not p.is_complex() else bad
    return tuple(int(i) for i in bad.nonzero()[0]) if bool(bad.any()) else None
