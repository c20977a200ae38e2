"""State-space duality with rotary positions: Mamba-2 whose B and C turn with time.  arXiv 2407.16958

    S_t = exp(Delta_t A) R S_{t-1} + Delta_t B_t x_t^T     y_t = Re(C_t^T S_t) + D x_t

R turns pairs of keys, as rotary attention does. Without it, it is Mamba-2: hence the base class.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ...layer import Past
from ...layer.parts import pair_up, rope_angles
from ...system import System
from ..registry import register
from .mamba2 import Mamba2


@register("rope_ssd")
class RopeSSD(Mamba2):
    """Mamba-2's block with rotations.

    Args:
        d_model: width.
        d_state: keys, an even number.
        d_conv: taps of the short convolution.
        expand: inner width over d_model.
        d_head: values per head (default 64, or the inner width if that is smaller).
        n_groups: groups of heads that share B and C.
        rope_base: the largest wavelength is 2 pi times about this.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, d_conv: int = 4, expand: int = 2, d_head: int | None = None,
        n_groups: int = 1, rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__(d_model, d_state=d_state, d_conv=d_conv, expand=expand, d_head=d_head, n_groups=n_groups)
        self.rope_base = rope_base
        rope_angles(d_state, rope_base)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        s = super().system(u, past)
        assert s.q is not None
        phase = rope_angles(self.d_state, self.rope_base, u.device)  # [1,n/2]
        return replace(s, q=pair_up(s.q), k=pair_up(s.k, conjugate=True), phase=phase)
