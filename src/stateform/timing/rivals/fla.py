"""Operations of flash-linear-attention, which need a GPU, beside `sf.run` on the same tensors.

Mamba-2's is the one with a decay per head: q, k, v are its C, B and Delta x.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...system import System
from ..pair import Operation, Rival
from .party import Inputs, Party, Run, repeat_along

TENSOR_CORES = 5e-3
"""The relative difference of products in TF32, in which its kernels multiply float32."""


def operation(chunk: str, fused: str, tensors: tuple[str, ...], **constant: Any) -> Callable[[Any], Party]:
    """Make a rival's `make` from two operations of fla.ops: `chunk` for sequences, `fused` for a token from a state.

    Args:
        tensors: the names of the arguments, in the order of our tensors.
    """

    def make(_: Any) -> Party:
        ops = importlib.import_module("fla.ops")
        whole, single = getattr(ops, chunk), getattr(ops, fused)

        def run(*xs: Tensor) -> Tensor:
            return whole(**dict(zip(tensors, xs, strict=True)), scale=1.0, **constant)[0]

        # `fused_recurrent_gla` calls the decay gk, its chunked kernel g.
        names = tuple("gk" if fused == "fused_recurrent_gla" and name == "g" else name for name in tensors)

        def begin(prompt: Inputs, tokens: int) -> Run:
            given = dict(zip(tensors, prompt, strict=True))
            _, state = whole(**given, scale=1.0, output_final_state=True, **constant)

            def step(*token: Tensor) -> Tensor:
                nonlocal state
                given = dict(zip(names, token, strict=True))
                y, state = single(**given, scale=1.0, initial_state=state, output_final_state=True, **constant)
                return y

            return step

        return Party(run, begin=begin)

    return make


def rival(chunk: str, fused: str, *tensors: str) -> tuple[Rival, ...]:
    """Make the one rival of an operation, its arguments by name."""
    why = "its kernels multiply in TF32"
    return (Rival(chunk, "fla", operation(chunk, fused, tensors), TENSOR_CORES, why),)


def fused_attention(_: Any) -> Party:
    """Make a party of torch's scaled_dot_product_attention."""

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0).transpose(1, 2)

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache = [repeat_along(x, 1, tokens) for x in prompt[1:]]

        def step(q: Tensor, *new: Tensor) -> Tensor:
            cache[:] = [torch.cat(x, 1) for x in zip(cache, new, strict=True)]
            return attend(q, cache[0], cache[1], False)

        return step

    return Party(lambda q, k, v: attend(q, k, v, True), begin=begin)


def _delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> System:
    return System(q, k, v, b=beta, f=-beta.unsqueeze(-1) * k, w=k)


def _gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> System:
    f = -(g.exp() * beta.to(g.dtype)).to(k.dtype).unsqueeze(-1) * k
    return System(q, k, v, log_decay=g, b=beta, f=f, w=k)


def _kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> System:
    w = (g.exp() * k.to(g.dtype)).to(k.dtype)
    return System(q, k, v, log_decay=g, b=beta, f=-beta.unsqueeze(-1) * k, w=w)


def _decaying(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> System:
    return System(q, k, v, log_decay=g)


def _retention(q: Tensor, k: Tensor, v: Tensor) -> System:
    h = torch.arange(q.shape[2], device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
    return System(q, k, v, log_decay=torch.log1p(-(2.0 ** (-5 - h))))


OPERATIONS = (
    Operation("deltanet/op", ("q", "k", "v", "beta"), _delta,
              rival("chunk_delta_rule", "fused_recurrent_delta_rule", "q", "k", "v", "beta"), 128),
    Operation("gated_deltanet/op", ("q", "k", "v", "g", "beta"), _gated_delta,
              rival("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule", "q", "k", "v", "g", "beta"), 128),
    Operation("kda/op", ("q", "k", "v", "gk", "beta"), _kda,
              rival("chunk_kda", "fused_recurrent_kda", "q", "k", "v", "g", "beta"), 128),
    Operation("gla/op", ("q", "k", "v", "gk"), _decaying,
              rival("chunk_gla", "fused_recurrent_gla", "q", "k", "v", "g")),
    Operation("mamba2/op", ("q", "k", "v", "g"), _decaying,
              rival("chunk_simple_gla", "fused_recurrent_simple_gla", "q", "k", "v", "g")),
    Operation("retention/op", ("q", "k", "v"), _retention,
              rival("chunk_retention", "fused_recurrent_retention", "q", "k", "v")),
    Operation("softmax/op", ("q", "k", "v"), lambda q, k, v: System(q, k, v, readout="exp", eta="sum"),
              (Rival("scaled_dot_product_attention", "torch", fused_attention),)),
)  # fmt: skip
