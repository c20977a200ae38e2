"""Parties of a benchmark: each computes y from inputs, all at once or token by token from a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...architectures.rnn.rg_lru import BlockLinear
from ...layer import Layer
from ...system.state import State, grows

Inputs = tuple[Tensor, ...]
Run = Callable[..., Any]
"""From inputs [B,T,...] to y [B,T,...]."""
Begin = Callable[[Inputs, int], Run]
"""From a prompt [B,T,...] and a number of tokens, T or more, to a function of one token [B,1,...]. The state is made as
large as after that many tokens; each call goes on from the state that the call before left.
"""


@dataclass(frozen=True)
class Party:
    """One way to compute a function.

    Args:
        run: computes the whole sequence.
        module: holds the weights; moving or casting it moves or casts what `run` and `begin` use.
        begin: begins decoding; None if it cannot go on from a state.
        growth: bytes by which the state grows with each token (given for ours alone).
        inputs: draws the inputs of `run` from rows, tokens, dtype and a generator; None: those of the pair.
    """

    run: Run
    module: nn.Module = field(default_factory=nn.Module)
    begin: Begin | None = None
    growth: int = 0
    inputs: Callable[[int, int, torch.dtype, torch.Generator], Inputs] | None = None

    @property
    def weights(self) -> list[Tensor]:
        """List the parameters, of which training takes gradients besides those of the inputs."""
        return list(self.module.parameters())


def place(module: nn.Module) -> dict[str, Any]:
    """Give device and dtype of a module's weights, for tensors that are made beside them."""
    weight = next(module.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


# -- ours -----------------------------------------------------------------------------------------------------------


def ours(layer: Layer) -> Party:
    """Make a party of a layer of ours."""

    def begin(prompt: Inputs, tokens: int) -> Run:
        _, state = layer(*prompt, return_state=True)
        state = aged(state, tokens)

        def step(x: Tensor) -> Tensor:
            nonlocal state
            y, state = layer.step(x[:, 0], state)
            return y.unsqueeze(1)

        return step

    x = torch.zeros(1, 1, layer.d_model, **place(layer))
    with torch.no_grad():
        _, state = layer(x, return_state=True)
    return Party(layer, layer, begin, sum(x.nbytes for name, x in state.tensors.items() if grows(name)))


def aged(state: State, tokens: int) -> State:
    """Make the state as large as after `tokens` tokens: set its position, and fill caches with copies of their rows."""
    behind = tokens - int(state["position"].amax())
    if behind <= 0:
        return state
    tensors = {name: repeat_along(x, 1, tokens) if grows(name) else x for name, x in state.tensors.items()}
    return State({**tensors, "position": state["position"] + behind}, state.fingerprint)


def repeat_along(x: Tensor, axis: int, length: int) -> Tensor:
    """Repeat x along an axis up to a length."""
    at = torch.arange(length, device=x.device) % x.shape[axis]
    return x.index_select(axis, at)


# -- what bounds every implementation from below --------------------------------------------------------------------


def floor(layer: nn.Module) -> Party:
    """Make a party of a layer's matrix products alone: every linear map runs once, on all tokens of an input.

    It bounds the layer's time from below: there, maps that see the state run token by token, which costs more.
    """
    maps = [m for m in layer.modules() if isinstance(m, (nn.Linear, BlockLinear))]

    def inputs(rows: int, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        widths = [m.in_features if isinstance(m, nn.Linear) else m.bias.numel() for m in maps]
        return tuple(torch.randn(rows, tokens, width, generator=generator).to(dtype) for width in widths)

    def run(*xs: Tensor) -> list[Tensor]:
        return [f(x) for f, x in zip(maps, xs, strict=True)]

    def begin(prompt: Inputs, tokens: int) -> Run:
        like = prompt[0]
        xs = inputs(like.shape[0], 1, like.dtype, torch.Generator().manual_seed(0))
        xs = tuple(x.to(like.device) for x in xs)
        return lambda *_: run(*xs)

    return Party(run, nn.ModuleList(maps), begin, inputs=inputs)


def copying(module: nn.Module) -> Party:
    """Make a party that copies as many bytes as a module's weights have: the cost of a token if memory is the limit."""
    source = torch.zeros(sum(p.nbytes for p in module.parameters()), dtype=torch.uint8, device=place(module)["device"])
    target = torch.empty_like(source)

    def run(*_: Tensor) -> Tensor:
        return target.copy_(source)

    return Party(run, begin=lambda prompt, tokens: run)
