"""accelerate: run the mixers of a pretrained model in our forms, in place, with the model's weights and caches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import StateformError, require, validate
from ..result import Result
from .lifted import ADAPTERS, Lifted, argument_names
from .supported import mixers, require_supported

_KEY = "_stateform_layer"
"""The attribute of a module that holds its Lifted, outside its parameters and submodules."""


class _Accelerated:
    """Mixed into the class of a module, so that copies of a model are copies of it all."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        layer = _layer(self)
        call = layer.arguments(layer.module, args, kwargs)
        if not layer.takes(call):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        state = None if call.cache is None else layer.read(call.cache)
        if state is not None and call.u.dtype == torch.float64:
            state = state.to(torch.float64)  # some caches are float32 whatever the model's dtype
        if state is not None and torch.is_grad_enabled():
            state = state.clone()  # gradients may need the state read, which the cache overwrites
        with _as_given():
            whole = call.mask is None and call.cu_seqlens is None
            if whole and state is not None and call.u.shape[1] == 1:  # a Layer's checks take longer than a step
                y, state = layer._run(call.u, state, "auto")
            else:
                y, state = layer(
                    call.u, initial_state=state, return_state=True, attention_mask=call.mask, cu_seqlens=call.cu_seqlens
                )
        if call.cache is not None:
            layer.write(call.cache, state if call.cu_seqlens is None else state.select([-1]))
        return layer.returns(y, call)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).original,), self.__dict__  # type: ignore[attr-defined]


def _layer(module: Any) -> Lifted:
    """Find a module's Lifted. A shallow copy of a module (a replica of DataParallel) gets one with its own weights."""
    layer: Lifted = module.__dict__[_KEY]
    if layer.module is module:
        return layer
    own = copy.copy(layer)
    own._modules = {**layer._modules, "module": module}
    return own


def _blank(cls: type[nn.Module]) -> nn.Module:
    """Make an accelerated module without attributes, for pickle, which cannot find a class made here by its name."""
    made = _accelerated(cls)
    return made.__new__(made)


def _as_given() -> AbstractContextManager[Any]:
    """Switch the checks on values off: a model may compute inf or NaN, as the original would."""
    return nullcontext() if torch.compiler.is_compiling() else validate(False)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _accelerated(cls: Any) -> type[nn.Module]:
    if cls not in _CLASSES:
        # A traced graph holds what lies in the class as constants. A table filled at the first call would differ at the
        # second, and be traced again.
        given = {"__module__": cls.__module__, "original": cls, "names": argument_names(cls)}
        _CLASSES[cls] = type(cls.__name__, (_Accelerated, cls), given)
    return _CLASSES[cls]


@dataclass(frozen=True)
class Acceleration(Result):
    """The result of `accelerate`."""

    replaced: dict[str, str]
    """Names of modules, with their classes."""
    left: dict[str, str]
    """Names of modules that run as before, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Give plain strings and dicts."""
        return {"replaced": dict(self.replaced), "left": dict(self.left)}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for name, kind in self.replaced.items():
            yield f"{name} ({kind}): in our forms"
        for name, why in self.left.items():
            yield f"{name}: as before, {why}"


def accelerate(model: nn.Module) -> Acceleration:
    """Run the mixers with a finite state in our forms, in place: same weights, outputs, caches and gradients.

    `generate()`, training, saving and copies go on working, and `undo` reverts it. Softmax attention is left as it is:
    it runs in torch's fused kernels already. So is a mixer with options that no System expresses. A second call changes
    nothing.

    Two things differ, on purpose. Padding is absent wherever it stands, also between tokens, where models read part of
    it. And every map and convolution is called, so that hooks and adapters on it take effect, also where the model
    would only read its weights.

    Args:
        model: a model of a supported type (`stateform.hub.FAMILIES`).

    Returns:
        The modules that were replaced, and those that were left, with the reason; print it.

    Raises:
        StateformError: a model of another type, or one whose mixers all have options that no System expresses.
    """
    require_supported(model)
    found = mixers(model)
    require(found, f"no sequence mixer that is known was found in this {type(model).__name__}")
    made: dict[str, Lifted] = {}
    left: dict[str, str] = {}
    refused = ""
    for name, module in found.items():
        cls = ADAPTERS[type(module).__name__]
        if "forward" in module.__dict__:
            left[name] = "its forward was replaced (by hooks of the package accelerate, say)"
        elif not cls.finite:
            left[name] = cls.left
        elif _KEY in module.__dict__:
            made[name] = module.__dict__[_KEY]
        else:
            try:
                made[name] = cls(module)
            except StateformError as error:
                left[name] = refused = str(error)
    require(made or not refused, f"no mixer of this {type(model).__name__} can run in our forms: {refused}")
    for name, layer in made.items():
        module = found[name]
        if _KEY not in module.__dict__:
            module.__dict__[_KEY] = layer
            module.__class__ = _accelerated(type(module))
    return Acceleration({name: type(layer.module).__name__ for name, layer in made.items()}, left)


def undo(model: nn.Module) -> int:
    """Make every module compute as before `accelerate`. Returns the number of modules changed back."""
    require(isinstance(model, nn.Module), f"a {type(model).__name__} was given; expected a model")
    count = 0
    for module in model.modules():
        if module.__dict__.pop(_KEY, None) is not None:
            module.__class__ = type(module).original  # type: ignore[attr-defined]
            count += 1
    return count
