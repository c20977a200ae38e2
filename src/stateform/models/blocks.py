"""A block of a model: any mixer, then an MLP, each added to what it reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import StateformError, require
from ..layer import Layer
from ..system.state import State
from .config import ModelConfig, mlp_width


class GatedMLP(nn.Module):
    """W_out (silu(W_gate x) * W_in x), the hidden width rounded up to a multiple of 8 (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, d_model: int, ratio: float) -> None:
        super().__init__()
        hidden = mlp_width(d_model, ratio)
        self.in_proj = nn.Linear(d_model, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.in_proj(x).chunk(2, -1)
        y: Tensor = self.out_proj(F.silu(gate) * x)
        return y


class Block(nn.Module):
    """x <- lambda x + mixer(norm(x)), x <- x + mlp(norm(x)); lambda = 1 unless it is learned."""

    gradient_checkpointing = False
    """Set by `SequenceModel.gradient_checkpointing_enable`, or by transformers, to which the name belongs."""
    _gradient_checkpointing_func: Callable[..., Any] = staticmethod(checkpoint)

    def __init__(self, config: ModelConfig, spec: str) -> None:
        super().__init__()
        self.spec = spec
        self.mixer_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = config.mixer(spec)
        self.lambda_skip = None if config.lambda_skip is None else nn.Parameter(torch.full((1,), config.lambda_skip))
        self.mlp_norm = self.mlp = None
        if config.mlp_ratio is not None:
            self.mlp_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
            self.mlp = GatedMLP(config.d_model, config.mlp_ratio)
        self.dropout = nn.Dropout(config.dropout)
        known = inspect.signature(self.mixer.forward).parameters
        everything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        self.takes = frozenset({*known, *(inspect.signature(Layer.forward).parameters if everything else ())})

    def forward(
        self, x: Tensor, state: State | None, return_state: bool, shared: dict[str, Tensor], **call: Any
    ) -> tuple[Tensor, State | None]:
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return self._run(x, state, return_state, shared, **call)
        before = dict(shared)  # a copy, as the second run must not find what the first one adds

        def run(x: Tensor) -> tuple[Tensor, State | None, dict[str, Tensor]]:
            handed = dict(before)
            x, new = self._run(x, state, return_state, handed, **call)
            return x, new, handed

        x, new, handed = self._gradient_checkpointing_func(run, x)
        shared.update(handed)
        return x, new

    def _run(
        self, x: Tensor, state: State | None, return_state: bool, shared: dict[str, Tensor], **call: Any
    ) -> tuple[Tensor, State | None]:
        if state is not None:
            call["initial_state"] = state
        if return_state:
            call["return_state"] = True
        for name in call:
            if name not in self.takes:
                raise StateformError(f"the layer {self.spec} does not take {name}; see sf.Layer.forward")
        if "shared" in self.takes:
            call["shared"] = shared
        out = self.mixer(self.mixer_norm(x), **call)
        y, new = out if isinstance(out, tuple) else (out, None)
        if return_state and not isinstance(new, State):
            raise StateformError(f"the layer {self.spec} gave no State; expected (y, State) for return_state=True")
        x = (x if self.lambda_skip is None else self.lambda_skip * x) + self.dropout(y)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x, new


def checkpointing(options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Bind the options of `torch.utils.checkpoint.checkpoint`. Raises if they ask for reentrance."""
    options = {"use_reentrant": False, **(options or {})}
    require(
        not options["use_reentrant"],
        "use_reentrant is True, which would lose the gradients that go through states; leave it out, or give False",
    )
    return functools.partial(checkpoint, **options)
