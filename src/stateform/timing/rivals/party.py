"""Who takes part: something that computes y from inputs at once, and token by token from a state."""

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
"""From a prompt [B,T,...] and the number of tokens that the state is to stand for (T or more) to a function of one
token [B,1,...], each call of which goes on from the state that the call before left.
"""


@dataclass(frozen=True)
class Party:
    """One way to compute a function.

    Args:
        run: the whole sequence.
        module: what holds the weights; moving or casting it moves or casts what `run` and `begin` use.
        begin: the start of decoding; None if it cannot go on from a state.
        growth: of our own: bytes by which the state grows with each token.
        inputs: from rows, tokens, dtype and a generator to what `run` takes; None: what the pair's other parties take.
    """

    run: Run
    module: nn.Module = field(default_factory=nn.Module)
    begin: Begin | None = None
    growth: int = 0
    inputs: Callable[[int, int, torch.dtype, torch.Generator], Inputs] | None = None

    @property
    def weights(self) -> list[Tensor]:
        """What training takes gradients of, besides the inputs."""
        return list(self.module.parameters())


def place(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's weights, for the making of tensors beside them."""
    weight = next(module.parameters())
    return {"device": weight.device, "dtype": weight.dtype}


# -- ours -----------------------------------------------------------------------------------------------------------


def ours(layer: Layer) -> Party:
    """A layer of ours as a party."""

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
    """The state as after `tokens` tokens: its position says so, and caches are filled by repeating what they hold."""
    behind = tokens - int(state["position"].amax())
    if behind <= 0:
        return state
    tensors = {name: along(x, 1, tokens) if grows(name) else x for name, x in state.tensors.items()}
    return State({**tensors, "position": state["position"] + behind}, state.fingerprint)


def along(x: Tensor, axis: int, length: int) -> Tensor:
    """x repeated along an axis up to a length."""
    at = torch.arange(length, device=x.device) % x.shape[axis]
    return x.index_select(axis, at)


# -- what bounds every implementation from below --------------------------------------------------------------------


def floor(layer: nn.Module) -> Party:
    """The matrix products of a layer and nothing else: every linear map once, on all tokens of an input of its shape.

    Maps that see the state take one token after the other in the layer itself, so that theirs cost more there.
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
    """The copying of as many bytes as the weights of a module have: what a token costs where memory is the limit."""
    source = torch.zeros(sum(p.nbytes for p in module.parameters()), dtype=torch.uint8, device=place(module)["device"])
    target = torch.empty_like(source)

    def run(*_: Tensor) -> Tensor:
        return target.copy_(source)

    return Party(run, begin=lambda prompt, tokens: run)
