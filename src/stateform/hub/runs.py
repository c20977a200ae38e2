"""Runs: a model on a text, with some of its mixers changed, and the loss that comes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import StateformError, require, require_finite_weights, validate
from ..forms import run
from ..layer import Layer, Past
from ..models import LanguageModel, SequenceModel
from ..system import System
from ..system.precision import largest, relative_error, tolerance, why_no_proof
from .lift import check_tokens, evaluating
from .lifted import ADAPTERS, CACHES
from .supported import mixers, require_supported

Change = Callable[[System], Tensor]
"""Computes the y [B,T,H,p] that takes the place of what the System of a mixer would give."""
Changes = Mapping[str, "Change | nn.Module"]
"""By the name of the mixer: the change of its System's y, or another module to run in its place."""


@dataclass(frozen=True)
class TextScore:
    """The outputs and the loss of a model on a text."""

    outputs: Tensor
    """Logits, or whatever it gives, [B,T,.]."""
    nats: float | None
    """Mean cross-entropy of a token given those before it; None unless the model is a causal language model."""

    @property
    def perplexity(self) -> float | None:
        """Compute exp(nats)."""
        return None if self.nats is None else math.exp(min(self.nats, 700.0))

    @property
    def bits(self) -> float | None:
        """Compute the bits per token; for a model of bytes, per byte."""
        return None if self.nats is None else self.nats / math.log(2)

    def off(self, other: TextScore) -> float:
        """Compute ||outputs - other's|| / ||other's||."""
        want = other.outputs.double()
        return float((self.outputs.double() - want).norm() / want.norm().clamp_min(1e-300))


class Runs:
    """A model and a text: `runs({name: change})` is the model with these mixers changed, for one run.

    Args:
        model: a LanguageModel, a Classifier, a Layer, or a model of transformers of a supported type.
        inputs: token ids [T] or [B,T] (of a Layer or a Classifier of numbers: [B,T,.]); None for `modules` alone.

    Raises:
        StateformError: another model, inputs that it cannot read, or a weight that is not finite.
    """

    def __init__(self, model: nn.Module, inputs: Tensor | None) -> None:
        self.model, self.modules = model, modules(model)
        require_finite_weights(model)
        self.inputs = None if inputs is None else readable_inputs(model, inputs)
        self.refused: dict[str, str] = {}
        """By mixer: why there is no System of it. Filled by `same`."""
        self._wrapped: dict[str, list[Any] | None] = {}  # by mixer: what it returns beside its output, in a tuple

    def __call__(self, changes: Changes | None = None) -> TextScore:
        if self.inputs is None:
            raise StateformError("there is no text to run on; give tokens")
        if changes and not self._wrapped:
            self()
        hooks = [] if changes else [m.register_forward_hook(self._record(name)) for name, m in self.modules.items()]
        try:
            with torch.no_grad(), validate(False), self._changed(changes or {}), evaluating(self.model):
                out = self.model(self.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        out = getattr(out, "logits", getattr(out, "last_hidden_state", out))  # [B,T,.]
        assert isinstance(out, Tensor)
        why = "" if changes else why_no_proof(out)
        require(not why, f"{type(self.model).__name__} on this text: {why}")
        return TextScore(out, _nats(self.model, out, self.inputs))

    def _record(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            self._wrapped[name] = [_index(x) for x in out[1:]] if isinstance(out, tuple) else None

        return hook

    def same(self) -> dict[str, float]:
        """Compute the relative error of each mixer recomputed from its System, divided by the tolerance.

        At most 1: equal. Above: the mixer is not its System, as with a cell, whose System depends on its own
        trajectory. NaN: the mixer was not called.
        """
        found: dict[str, float] = dict.fromkeys(self.modules, math.nan)
        ours: dict[str, dict[str, Tensor]] = {}  # what our layers were given as shared, before they add to it
        theirs: dict[str, Tensor] = {}

        def before(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                ours[name] = dict(kwargs.get("shared") or {})

            return hook

        def compare(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
                want = out[0] if isinstance(out, tuple) else out
                try:
                    given = {**kwargs, "shared": ours[name]} if "shared" in kwargs else kwargs
                    got = self._compute(as_it_is, theirs, _twin(module), args, given)
                except StateformError as why:
                    self.refused[name] = str(why)
                    return
                error = largest(relative_error(got.double(), want.double()))
                found[name] = error / tolerance(want.dtype, want.shape[1], rounded=8)

            return hook

        hooks = [m.register_forward_hook(compare(name), with_kwargs=True) for name, m in self.modules.items()]
        hooks += [m.register_forward_pre_hook(before(name), with_kwargs=True) for name, m in self.modules.items()]
        try:
            self()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @contextmanager
    def _changed(self, changes: Changes) -> Iterator[None]:
        shared: dict[str, Tensor] = {}
        before = {name: self.modules[name].__dict__.get("forward") for name in changes}
        try:
            for name, change in changes.items():
                module = self.modules[name]
                module.__dict__["forward"] = self._forward(name, change, shared, _twin(module))
            yield
        finally:
            for name, forward in before.items():
                kept = self.modules[name].__dict__
                kept.pop("forward", None)
                if forward is not None:
                    kept["forward"] = forward

    def _forward(
        self, name: str, change: Change | nn.Module, shared: dict[str, Tensor], twin: nn.Module
    ) -> Callable[..., Any]:
        if isinstance(change, nn.Module):
            return change.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            y = self._compute(change, shared, twin, args, kwargs)
            rest = self._wrapped.get(name)
            return y if rest is None else (y, *rest)

        return forward

    @staticmethod
    def _compute(
        change: Change, shared: dict[str, Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        layer: Layer
        if isinstance(module, Layer):
            layer, u, handed = module, args[0], kwargs.get("shared")
        else:
            cls = ADAPTERS[type(module).__name__]
            call = cls.arguments(module, args, kwargs)
            given = {k: v for k, v in call.rest.items() if k not in (*CACHES, "use_cache", "output_attentions")}
            layer, u, handed = cls.called(module, given), call.u, shared
        past = Past(None, handed)
        system = layer.system(u, past)
        return layer.output(change(system), u, system, past)


def _index(x: Any) -> Tensor | None:
    """Keep which tokens an attention chose, for the layers that attend to the same; nothing else is read later."""
    return x if isinstance(x, Tensor) and not x.is_floating_point() else None


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """Find the mixers of a model by the names of its modules; a bare Layer has the name "layer".

    Raises:
        StateformError: neither a model of ours, a Layer, nor a supported model of transformers.
    """
    require(isinstance(model, nn.Module), f"a {type(model).__name__} was given; expected a model or a layer")
    if isinstance(model, Layer):
        return {"layer": model}
    if isinstance(model, SequenceModel):
        return {f"blocks.{i}.mixer": block.mixer for i, block in enumerate(model.blocks)}  # type: ignore[misc]
    require_supported(model)
    found = mixers(model)
    require(found, f"no sequence mixer that is known was found in this {type(model).__name__}")
    return found


def readable_inputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Give token ids [B,T], or numbers [B,T,d] for what reads numbers; raise unless the model can read them."""
    require(isinstance(inputs, Tensor), f"the tokens are a {type(inputs).__name__}; expected a tensor")
    if isinstance(model, Layer):
        fits = inputs.is_floating_point() and inputs.ndim in (2, 3) and inputs.shape[-1] == model.d_model
        require(fits, f"the input is {inputs.dtype} of shape {list(inputs.shape)}; expected numbers "
                f"[B,T,{model.d_model}] for a layer")  # fmt: skip
        weight = next(model.parameters(), inputs)
        inputs = inputs if inputs.ndim == 3 else inputs[None]
        require(inputs.numel() > 0 and bool(inputs.isfinite().all()), "the input is empty, or holds NaN or inf")
        return inputs.to(weight)
    if not isinstance(model, SequenceModel):
        tokens = check_tokens(model, inputs)
    else:
        numbers = model.embedding is None
        inputs = inputs[None] if inputs.ndim == (2 if numbers else 1) else inputs
        tokens = inputs.to(model.device)
        model._check(tokens, None, None, None)
        if not numbers and tokens.numel():
            model._check_ids(tokens, "the text")
        most = model.config.max_positions
        require(most is None or tokens.shape[1] <= most,
                f"the text has {tokens.shape[1]} tokens; the model has {most} positions")  # fmt: skip
    require(tokens.shape[1] >= 2, f"the text has {tokens.shape[1]} token; expected 2 or more")
    return tokens


def perplexity(model: nn.Module, tokens: Tensor) -> TextScore:
    """Run a causal language model on a text: `.perplexity`, `.bits`, `.nats` a token.

    Args:
        model: a LanguageModel, or a causal model of transformers of a supported type.
        tokens: [T] or [B,T].

    Raises:
        StateformError: another model, or tokens that it cannot read.
    """
    score = Runs(model, tokens)()
    require(score.nats is not None, f"{type(model).__name__} is no causal language model: it has no perplexity")
    return score


def as_it_is(system: System) -> Tensor:
    """Read a System as it is, [B,T,H,p]."""
    y = run(system, "auto" if system.causal else "matrix")
    return y


def _twin(module: nn.Module) -> nn.Module:
    """Copy a module, with the forward of its class."""
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin.__dict__["_forward_hooks"] = {}
    twin.__dict__["_forward_pre_hooks"] = {}
    return twin


def _nats(model: nn.Module, logits: Tensor, tokens: Tensor) -> float | None:
    if tokens.is_floating_point() or logits.ndim != 3 or "MaskedLM" in type(model).__name__:
        return None
    if isinstance(model, SequenceModel | Layer):
        if not isinstance(model, LanguageModel):
            return None
    elif logits.shape[2] != int(getattr(model.config.get_text_config(), "vocab_size", 0)):  # type: ignore[operator,union-attr]
        return None
    total = 0.0
    for row, ids in zip(logits, tokens, strict=True):  # a row at a time, as float64 copies of all logits take memory
        total += float(F.cross_entropy(row[:-1].double(), ids[1:].long(), reduction="sum"))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))
