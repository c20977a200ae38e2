"""Elementwise linear systems: one head per channel, the state one number."""

from __future__ import annotations

import torch
from torch import Tensor

from ...system import System


def elementwise(x: Tensor, *, log_decay: Tensor, b: Tensor) -> System:
    """Write h_t = exp(log_decay_t) h_{t-1} + b_t x_t per channel, y_t = h_t, as a System; all [B,T,channels]."""
    one = torch.ones(1, 1, dtype=x.dtype, device=x.device)
    return System(one, one, x.unsqueeze(-1), log_decay=log_decay, b=b)
