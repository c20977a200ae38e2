"""Rivals from torch itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .party import Inputs, Party, Run, place, repeat_along


def recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Any:
    """Make a rival's `make` from torch.nn.LSTM or torch.nn.GRU, followed by our output map."""

    def make(layer: Any) -> Party:
        rnn = kind(layer.d_model, layer.h_proj.in_features, batch_first=True).to(**place(layer))
        rnn.load_state_dict({
            "weight_ih_l0": layer.x_proj.weight, "weight_hh_l0": layer.h_proj.weight,
            "bias_ih_l0": layer.x_proj.bias, "bias_hh_l0": layer.h_proj.bias,
        })  # fmt: skip
        out = nn.Linear(layer.h_proj.in_features, layer.d_model, bias=False).to(**place(layer))
        out.load_state_dict(layer.out_proj.state_dict())
        module = nn.ModuleList([rnn, out])

        def begin(prompt: Inputs, tokens: int) -> Run:
            _, state = rnn(*prompt)

            def step(x: Tensor) -> Tensor:
                nonlocal state
                y, state = rnn(x, state)
                return out(y)

            return step

        return Party(lambda x: out(rnn(x)[0]), module, begin)

    return make


def fused_attention(layer: Any) -> Party:
    """Make a party of torch's scaled_dot_product_attention between our projections, without positions."""
    H, G = layer.n_heads, layer.n_kv_heads
    maps: Any = copy.deepcopy(nn.ModuleList([layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj]))

    def projected(x: Tensor) -> list[Tensor]:
        return [f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f, heads in zip(maps, (H, G, G))]

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=G != H)
        return maps[3](y.transpose(1, 2).flatten(2))

    def begin(prompt: Inputs, tokens: int) -> Run:
        cache = [repeat_along(z, 2, tokens) for z in projected(*prompt)[1:]]

        def step(x: Tensor) -> Tensor:
            q, *new = projected(x)
            cache[:] = [torch.cat(z, 2) for z in zip(cache, new, strict=True)]
            return attend(q, cache[0], cache[1], False)

        return step

    def run(x: Tensor) -> Tensor:
        q, k, v = projected(x)
        return attend(q, k, v, True)

    return Party(run, maps, begin)
