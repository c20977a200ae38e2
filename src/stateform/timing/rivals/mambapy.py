"""Rivals of the package mambapy: Mamba's scan in plain PyTorch, logarithmic in depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .party import Inputs, Party, Run, place


def mamba_block(layer: Any) -> Party:
    """Make a party of mambapy's MambaBlock, with our layer's weights."""
    from mambapy.mamba import MambaBlock, MambaConfig

    config = MambaConfig(
        layer.d_model, n_layers=1, dt_rank=layer.dt_rank, d_state=layer.d_state, d_conv=layer.conv.width,
        expand_factor=layer.d_inner // layer.d_model,
    )  # fmt: skip
    block = MambaBlock(config).to(**place(layer)).eval()
    weights = {k.replace("conv.", "conv1d."): p for k, p in layer.state_dict().items() if k != "gate_proj.weight"}
    block.load_state_dict({**weights, "in_proj.weight": torch.cat([layer.in_proj.weight, layer.gate_proj.weight])})

    def begin(prompt: Inputs, tokens: int) -> Run:
        (x,) = prompt
        # Zeros instead of their h = None, which means the same, spare the first step's special case.
        cache = (
            x.new_zeros(x.shape[0], layer.d_inner, layer.d_state),
            x.new_zeros(x.shape[0], layer.d_inner, layer.conv.width - 1),
        )

        def step(x: Tensor) -> Tensor:
            nonlocal cache
            y, cache = block.step(x[:, 0], cache)
            return y.unsqueeze(1)

        for x_t in x.split(1, 1):
            step(x_t)
        return step

    return Party(block, block, begin)
