"""The linear maps of gated cells: as torch.nn's recurrent layers begin, and as its loops take them."""

from __future__ import annotations

from torch import Tensor, nn

from ...layer.parts import plain


def weights(x_proj: nn.Linear, h_proj: nn.Linear) -> list[Tensor] | None:
    """List those of the two maps of a gated cell, in the order of torch's own loops; None where they are not all."""
    if not (plain(x_proj, nn.Linear) and plain(h_proj, nn.Linear)):
        return None
    return [x_proj.weight, h_proj.weight, x_proj.bias, h_proj.bias]


def uniform(bound: float, *maps: nn.Linear) -> None:
    """Draw all weights and biases from [-bound, bound], as torch.nn's recurrent layers do."""
    for p in (p for m in maps for p in m.parameters()):
        nn.init.uniform_(p, -bound, bound)
