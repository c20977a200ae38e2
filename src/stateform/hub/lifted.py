"""Lifted: a mixer of another library as a Layer, which computes with that module's own weights.

An adapter defines `system` and (if need be) `output` as a Layer does, in terms of `self.module`. If the module has a
finite state, it also says how that lies in the caches of transformers. Forms, splits, padding and the analysis follow.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer
from ..system.state import State, unchecked
from .parts import own

ADAPTERS: dict[str, type[Lifted]] = {}
"""Adapters by the name of the module's class."""
FAMILIES: dict[str, tuple[str, ...]] = {}
"""Types of models (`config.model_type`) with the classes of their mixers."""

L = TypeVar("L", bound="type[Lifted]")


def adapts(*classes: str, **types: str) -> Callable[[L], L]:
    """Register an adapter for the modules of these classes (their names: nothing is imported).

    Args:
        classes: names of classes.
        types: types of models that may be opened by their type alone, each with the name of its class:
            `adapts(mamba="MambaMixer")`.
    """

    def keep(cls: L) -> L:
        for kind, name in types.items():
            FAMILIES[kind] = tuple(dict.fromkeys((*FAMILIES.get(kind, ()), name)))
        ADAPTERS.update(dict.fromkeys((*classes, *types.values()), cls))
        return cls

    return keep


@dataclass(frozen=True)
class Call:
    """A call of a module."""

    u: Tensor
    """The input [B,T,d_model]."""
    cache: Any = None
    """The model's cache, under whichever name it was given."""
    mask: Tensor | None = None
    """[B,T], where some tokens are padding."""
    cu_seqlens: Tensor | None = None
    """The ends of packed sequences, [N+1]."""
    rest: dict[str, Any] = field(default_factory=dict)
    """The other arguments, by name."""


CACHES = ("past_key_values", "cache_params", "past_key_value", "layer_past")


class Lifted(Layer):
    """A module as a Layer. Subclasses are registered with `adapts`.

    Args:
        module: the mixer; its weights stay its own, and are used as they are at each call.
    """

    finite: ClassVar[bool] = True
    """The state does not grow with the sequence, and our forms are faster, so that `accelerate` uses them."""
    left: ClassVar[str] = "softmax attention has torch's fused kernels"
    """The reason if `accelerate` leaves the module as it is."""
    windows: ClassVar[tuple[str, ...]] = ("conv",)
    """Names of the short convolutions, in the order of the cache's states."""
    wraps: ClassVar[bool] = False
    """True if the module returns a tuple, the output first."""
    opened: ClassVar[tuple[str, ...]] = ()
    """Names of inner modules that are not called, because the adapter computes the same itself."""
    positions: ClassVar[tuple[str, ...]] = ()
    """Names of the tables in which models with such mixers keep the positions that they learned."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self.width(module))
        self.module = module
        self.given: dict[str, Any] = {}
        self.index: int = getattr(module, "layer_idx", 0)
        self.check(module)

    @classmethod
    def called(cls, module: nn.Module, given: dict[str, Any]) -> Self:
        """Make the Layer of a module that is called with these arguments besides its input: positions, masks."""
        layer = cls(module)
        layer.given = given
        return layer

    @staticmethod
    def width(module: Any) -> int:
        """Give d_model."""
        size = getattr(module, "hidden_size", None)
        return int(module.config.hidden_size if size is None else size)

    def check(self, module: Any) -> None:
        """Raise a StateformError for options that no System expresses."""

    @staticmethod
    def exact(module: Any) -> None:
        """Recompute in float64, in place, what a cast module still holds in fewer digits: tables of decays, say."""

    def weight(self, module: Any) -> Tensor | None:
        """Find a weight whose dtype is that of the input."""
        linear = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
        return next(module.parameters(), None) if linear is None else linear.weight

    def _weight(self) -> Tensor | None:
        return self.weight(self.module)

    # -- calls ---------------------------------------------------------------------------------------------------

    @staticmethod
    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Read the arguments of a module's call."""
        given = named(module, args, kwargs)
        u = given.pop("hidden_states")
        cache = next((c for name in CACHES if (c := given.pop(name, None)) is not None), None)
        mask = given.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return Call(u, cache, None if mask is None else _padding(mask, u), _packing(given, u), given)

    def takes(self, call: Call) -> bool:
        """True if our forms can compute a call; the others go to the module's own code."""
        recording = getattr(call.cache, "is_recording_past", None)
        if recording is not None and recording(self.index):
            return False
        return all(own(self.module, getattr(self.module, name)) for name in self.opened)

    def result(self, y: Tensor) -> Any:
        """Return the output in the module's own form."""
        return (y, None) if self.wraps else y

    def returns(self, y: Tensor, call: Call) -> Any:
        """Return what the module returns for a call, if that is more than the output."""
        return self.result(y)

    # -- the caches of transformers ------------------------------------------------------------------------------

    def ours(self, kept: Tensor) -> Tensor:
        """Turn the module's recurrent state into S [B,H,n,p]."""
        return kept

    def theirs(self, S: Tensor) -> Tensor:
        """Turn S [B,H,n,p] into the module's recurrent state."""
        return S

    def read(self, cache: Any) -> State | None:
        """Read the state that a cache holds for this module; None at the start."""
        window = cache.get_conv_state(self.index) if self.windows else None
        S = cache.get_recurrent_state(self.index)
        if window is None and S is None:
            return None
        some: Tensor = S if S is not None else window  # type: ignore[assignment]
        kept = {} if S is None else {"S": self.ours(S)}
        for i, name in enumerate(self.windows):
            kept[name] = cache.get_conv_state(self.index, i)[..., 1:].mT.contiguous()  # the layout of our loops' steps
        position = torch.zeros(some.shape[0], dtype=torch.long, device=some.device)
        return unchecked({**kept, "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        """Put the state into a cache, in place if the cache has one already."""
        layer = cache.layers[self.index]
        for i, name in enumerate(self.windows):
            window = state[name].mT
            if layer.has_previous_state[i]:
                layer.conv_states[i][..., 1:].copy_(window)
            else:  # the module's window is one longer: its oldest entry is not read
                cache.update_conv_state(F.pad(window, (1, 0)), self.index, i)
        if "S" in state and state["S"].numel():
            # A cache keeps the strides of the first tensor it is given. They must not depend on the form that made S,
            # or compiled steps would be compiled again; and they are those our loops read and write.
            cache.update_recurrent_state(self.theirs(state["S"].contiguous()), self.index)
            for i in layer.has_previous_state:
                layer.has_previous_state[i] = True


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Give the arguments of a call by their names in the module's forward."""
    cls: Any = type(module)
    names = getattr(cls, "names", None) or argument_names(cls)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@functools.cache
def argument_names(cls: Any) -> tuple[str, ...]:
    """Give the names of the arguments of a class's forward."""
    return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]


def _padding(mask: Tensor, u: Tensor) -> Tensor | None:
    """Cut a mask of all tokens so far to those of u; None if no token is padding."""
    mask = mask[:, -u.shape[1] :]
    return None if mask.shape[1] != u.shape[1] or bool(mask.all()) else mask


def _packing(given: dict[str, Any], u: Tensor) -> Tensor | None:
    """Find the ends of packed sequences in the arguments; None if nothing is packed."""
    ends, index = given.get("cu_seq_lens_q"), given.get("seq_idx")
    if ends is None and index is not None:
        require(index.shape[0] == 1, f"seq_idx has {index.shape[0]} rows; packed sequences lie in one")
        new = (index[0, 1:] != index[0, :-1]).nonzero().flatten() + 1
        ends = torch.cat([new.new_zeros(1), new, new.new_full((1,), u.shape[1])])
    return ends
