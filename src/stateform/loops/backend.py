"""Whether loops are compiled or torch's own: the switch, and what must hold for the compiled ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import StateformError, require
from .build import UnavailableError, library

Backend = Literal["auto", "compiled", "torch"]
BACKENDS = ("auto", "compiled", "torch")
_backend: ContextVar[Backend | None] = ContextVar("stateform_backend", default=None)
_VARIABLE = "STATEFORM_BACKEND"
_told = False


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Choose how the form `recurrent` is computed inside a `with` block.

    Args:
        name: "compiled" (the loops in C wherever they exist for a system; an error where they cannot be compiled),
            "torch" (step by step in torch: the definition), or "auto" (compiled if possible), the default. The
            environment variable STATEFORM_BACKEND sets it for a process.

    Raises:
        StateformError: an unknown name; "compiled" without a way to compile.
    """
    require(name in BACKENDS, f"backend {name!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if name == "compiled":
        try:
            library(32)
        except UnavailableError as error:
            raise StateformError(f"there are no compiled loops: {error}") from None
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def current_backend() -> Backend:
    """Give what `backend` set, else STATEFORM_BACKEND, else "auto"."""
    name: str | None = _backend.get()
    if name is None and _VARIABLE in os.environ:  # asked at every token: an absent key is not raised and caught
        name = os.environ[_VARIABLE]
    name = name or "auto"
    if name not in BACKENDS:
        raise StateformError(f"{_VARIABLE} is {name!r}; expected one of {', '.join(BACKENDS)}")
    return name  # type: ignore[return-value]


def available(double: bool) -> str | None:
    """Say why the loops of a precision cannot be had, or None. The first call compiles them; a failure is said once."""
    global _told
    try:
        library(64 if double else 32)
    except UnavailableError as error:
        if not _told:
            _told = True
            print(f"stateform: {error}. The torch forms are used: correct, but slower.", file=sys.stderr, flush=True)
        return str(error)
    return None


@torch.compiler.assume_constant_result  # a traced graph keeps the answer of its first call
def allowed(double: bool) -> bool:
    """True if the loops of a precision are wanted and there."""
    return current_backend() != "torch" and available(double) is None


def transformed() -> bool:
    """True if torch.func or forward-mode differentiation is at work: the compiled loops have no rules for them."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def compiled_for(x: Tensor) -> bool:
    """True if the compiled loops take a tensor here and now."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0
    return fits and not transformed() and allowed(x.dtype == torch.float64)
