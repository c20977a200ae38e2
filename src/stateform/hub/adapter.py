"""Lifted: a mixer of another library as a Layer, which computes with that module's own weights.

An adapter says what a Layer says, `system` and (if need be) `output`, in terms of `self.module`; and, where the module
has a finite state, how that lies in the caches of transformers. All else follows: forms, splits, padding, the analysis.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import require
from ..layer import Layer
from ..layer.base import Past, convolve
from ..layer.parts import plain
from ..loops.norm import normed
from ..system.state import State, unchecked

ADAPTERS: dict[str, type[Lifted]] = {}
"""By the name of the module's class."""

L = TypeVar("L", bound="type[Lifted]")
M = TypeVar("M", bound=nn.Module)


def adapts(*classes: str) -> Callable[[L], L]:
    """Register an adapter for the modules of these classes (their names: nothing is imported)."""

    def keep(cls: L) -> L:
        ADAPTERS.update(dict.fromkeys(classes, cls))
        return cls

    return keep


@dataclass(frozen=True)
class Call:
    """What a module was called with."""

    u: Tensor
    """The input [B,T,d_model]."""
    cache: Any = None
    """The model's cache, whichever of its names it came by."""
    mask: Tensor | None = None
    """[B,T], where some tokens are padding."""
    cu_seqlens: Tensor | None = None
    """The ends of packed sequences, [N+1]."""
    rest: dict[str, Any] = field(default_factory=dict)
    """The other arguments, by name."""


CACHES = ("past_key_values", "cache_params", "past_key_value")


class Lifted(Layer):
    """A module as a Layer. Subclasses are registered with `adapts`.

    Args:
        module: the mixer; its weights stay its own, and are used as they are at each call.
    """

    finite: ClassVar[bool] = True
    """The state does not grow with the sequence, and our forms are faster, so that `accelerate` uses them."""
    left: ClassVar[str] = "softmax attention has torch's fused kernels"
    """Why the module is not run in our forms, where it is not."""
    windows: ClassVar[tuple[str, ...]] = ("conv",)
    """Names of the short convolutions, in the order of the cache's states."""
    wraps: ClassVar[bool] = False
    """The module gives a tuple, the output first."""
    opened: ClassVar[tuple[str, ...]] = ()
    """Names of the modules inside that are not called: what they compute is written here."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self.width(module))
        self.module = module
        self.index: int = getattr(module, "layer_idx", 0)
        self.check(module)

    @staticmethod
    def width(module: Any) -> int:
        """d_model."""
        size = getattr(module, "hidden_size", None)
        return int(module.config.hidden_size if size is None else size)

    def check(self, module: Any) -> None:
        """Raise a StateformError for options that no System expresses."""

    @staticmethod
    def exact(module: Any) -> None:
        """Make anew, in place, what a module cast to float64 keeps in fewer digits: tables of decays, say."""

    def weight(self, module: Any) -> Tensor | None:
        """A weight with the dtype of the input."""
        linear = next((m for m in module.modules() if isinstance(m, nn.Linear)), None)
        return next(module.parameters(), None) if linear is None else linear.weight

    def _weight(self) -> Tensor | None:
        return self.weight(self.module)

    # -- calls ---------------------------------------------------------------------------------------------------

    @staticmethod
    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What a call of a module means."""
        given = named(module, args, kwargs)
        u = given.pop("hidden_states")
        cache = next((c for name in CACHES if (c := given.pop(name, None)) is not None), None)
        mask = given.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        return Call(u, cache, None if mask is None else _padding(mask, u), _packing(given, u), given)

    def takes(self, call: Call) -> bool:
        """Whether a call is for our forms; the others go to the module as it was."""
        recording = getattr(call.cache, "is_recording_past", None)
        if recording is not None and recording(self.index):
            return False
        return all(own(self.module, getattr(self.module, name)) for name in self.opened)

    def result(self, y: Tensor) -> Any:
        """The output as the module gives it."""
        return (y, None) if self.wraps else y

    def returns(self, y: Tensor, call: Call) -> Any:
        """What the module gives for a call, where that is more than the output."""
        return self.result(y)

    # -- the caches of transformers ------------------------------------------------------------------------------

    def ours(self, kept: Tensor) -> Tensor:
        """The module's recurrent state as S [B,H,n,p]."""
        return kept

    def theirs(self, S: Tensor) -> Tensor:
        """S as the module keeps it."""
        return S

    def read(self, cache: Any) -> State | None:
        """The state that a cache holds for this module; None at the start."""
        window = cache.get_conv_state(self.index) if self.windows else None
        S = cache.get_recurrent_state(self.index)
        if window is None and S is None:
            return None
        some: Tensor = S if S is not None else window  # type: ignore[assignment]
        kept = {} if S is None else {"S": self.ours(S)}
        for i, name in enumerate(self.windows):
            kept[name] = cache.get_conv_state(self.index, i)[..., 1:].mT.contiguous()  # as our loops take a step
        position = torch.zeros(some.shape[0], dtype=torch.long, device=some.device)
        return unchecked({**kept, "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        """Put the state into a cache, in place where it holds one already."""
        layer = cache.layers[self.index]
        for i, name in enumerate(self.windows):
            window = state[name].mT
            if layer.has_previous_state[i]:
                layer.conv_states[i][..., 1:].copy_(window)
            else:  # theirs is one longer: the oldest is not read
                cache.update_conv_state(F.pad(window, (1, 0)), self.index, i)
        if "S" in state and state["S"].numel():
            # A cache takes on the strides it is given first: the same whichever form made S, or compiled steps would be
            # compiled again. They stay those of our loops, which begin the next step where this one ends.
            cache.update_recurrent_state(self.theirs(state["S"].contiguous()), self.index)
            for i in layer.has_previous_state:
                layer.has_previous_state[i] = True


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward, by name."""
    cls: Any = type(module)
    names = getattr(cls, "names", None) or argument_names(cls)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@functools.cache
def argument_names(cls: Any) -> tuple[str, ...]:
    """The names of the arguments of a class's forward."""
    return tuple(inspect.signature(inspect.unwrap(cls.forward)).parameters)[1:]


def _padding(mask: Tensor, u: Tensor) -> Tensor | None:
    """The mask of these tokens, of a mask of all so far; None where no token is padding."""
    mask = mask[:, -u.shape[1] :]
    return None if mask.shape[1] != u.shape[1] or bool(mask.all()) else mask


def _packing(given: dict[str, Any], u: Tensor) -> Tensor | None:
    """The ends of packed sequences, from the arguments that say so."""
    ends, index = given.get("cu_seq_lens_q"), given.get("seq_idx")
    if ends is None and index is not None:
        require(index.shape[0] == 1, f"seq_idx has {index.shape[0]} rows; packed sequences lie in one")
        new = (index[0, 1:] != index[0, :-1]).nonzero().flatten() + 1
        ends = torch.cat([new.new_zeros(1), new, new.new_full((1,), u.shape[1])])
    return ends


def part(linear: nn.Module, u: Tensor, start: int, stop: int | None, step: int = 1) -> Tensor:
    """linear(u)[..., start:stop:step], computing no more than that of a plain nn.Linear."""
    at = slice(start, stop, step)
    if not (isinstance(linear, nn.Linear) and plain(linear, nn.Linear)):
        return linear(u)[..., at]
    return F.linear(u, linear.weight[at], None if linear.bias is None else linear.bias[at])


def short_conv(conv: nn.Module, x: Tensor, past: Past | None, act: str | None = "silu", name: str = "conv") -> Tensor:
    """Convolve x [B,T,c] over time with a causal depthwise nn.Conv1d, and apply the activation that is named `act`."""
    silu = act in SILU
    if isinstance(conv, nn.Conv1d) and plain(conv, nn.Conv1d):
        y = convolve(x, past, name, conv.weight, conv.bias, silu)
    else:
        width = inside(conv, nn.Conv1d).kernel_size[0] - 1
        y = conv((past or Past()).extend(name, x, width).mT).mT
        padded = (y.shape[1] - x.shape[1]) // 2  # on both sides
        y = y[:, padded : padded + x.shape[1]]
        y = F.silu(y) if silu else y
    return y if silu or act is None else _activation(act)(y)


def inside(module: nn.Module, cls: type[M]) -> M:
    """Find the module of this class that another is, or is wrapped around."""
    found = next((m for m in module.modules() if isinstance(m, cls)), None)
    require(
        found is not None, f"a {type(module).__name__} has no {cls.__name__} in it; expected one, or an adapter of it"
    )
    assert found is not None
    return found


def gated_norm(owner: nn.Module, norm: Any, y: Tensor, gate: Tensor, act: str | None) -> Tensor | None:
    """An RMS norm of transformers, of y [B,T,..,p], times act(gate) [B,T,c]: [B,T,c], in one pass.

    None where that is not to be had: in half precision, for other activations, where more than the norm of the `owner`
    is called.
    """
    if act not in ("silu", "sigmoid") or not own(owner, norm) or norm.weight.dtype != y.dtype:
        return None
    p = y.shape[-1]
    x = normed(
        y, p, share=1 / p, eps=norm.variance_epsilon, weight=norm.weight, gate=gate,
        activation="silu" if act == "silu" else "sigmoid",
    )  # fmt: skip
    return None if x is None else x.flatten(2)


SILU = ("silu", "swish")
"""Names of the activation that mixers have unless they are told otherwise."""
GENERAL = (5, 15)
"""The version of transformers from which another activation is that of the convolution alone, and gates have silu."""


def activation(module: Any) -> str:
    """Return the name of the activation of a mixer's convolution.

    Raises:
        StateformError: another than silu where the mixer's forms of computing do not agree on where it is applied.
    """
    name: str = getattr(module, "activation", "silu")
    require(
        name in SILU or tuple(int(x) for x in version("transformers").split(".")[:2]) >= GENERAL,
        f"the activation of {type(module).__name__} is {name!r}, which transformers {version('transformers')} applies "
        f"in some places and not in others; expected 'silu', or transformers {'.'.join(map(str, GENERAL))} or newer",
    )
    return name


@functools.cache
def _activation(name: str) -> nn.Module:
    from transformers.activations import ACT2FN

    found: nn.Module = ACT2FN[name]
    return found


def own(owner: nn.Module, module: nn.Module) -> bool:
    """True if a module inside `owner` is as the model's own code makes it: its call is its forward and nothing more."""
    return type(module).__module__ == type(owner).__module__ and plain(module, type(module))
