"""Linear recurrences of later papers, each against its equations as a plain loop over tokens, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from .helpers import assert_same_function, drawn, inputs
from .test_second_list import rms

B, T, D = 2, 23, 12


@torch.no_grad()
@pytest.mark.parametrize("least", [0.0, 0.7])
def test_hgrn_takes_in_what_it_lets_go(least: float) -> None:
    layer, u = drawn("hgrn", d_model=D, expand=2, lower_bound=least), inputs(B, T, D)
    f, i = least + (1 - least) * torch.sigmoid(layer.f_proj(u)), F.silu(layer.i_proj(u))
    h, y = torch.zeros(B, 2 * D, dtype=torch.float64), []
    for t in range(T):
        h = f[:, t] * h + (1 - f[:, t]) * i[:, t]
        y.append(h)
    y = rms(torch.stack(y, 1)) * layer.norm.weight * F.silu(layer.gate_proj(u))
    assert_same_function(layer, u, layer.out_proj(y))
