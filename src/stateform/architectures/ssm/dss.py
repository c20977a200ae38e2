"""DSS (exponential form): a constant complex diagonal system read with free complex weights.  arXiv 2203.14343

    h_t = exp(dt Lambda) h_{t-1} + u_t     y_t = Re(W (exp(dt Lambda) - 1)/Lambda h_t) + D u_t     (proposition 1)

It is S4D with the spectrum of HiPPO-LegS at the start, a special case: hence the base class.
"""

from __future__ import annotations

from ..registry import register
from .s4d import S4D


@register("dss")
class DSS(S4D):
    """S4D that begins with the spectrum of HiPPO-LegS.

    Args:
        d_model: width (channels, which are the heads).
        d_state: states per channel; d_state / 2 modes are kept.
        dt_min: least initial step.
        dt_max: largest initial step.
    """

    def __init__(self, d_model: int, *, d_state: int = 64, dt_min: float = 1e-3, dt_max: float = 1e-1) -> None:
        super().__init__(d_model, d_state=d_state, init="legs", dt_min=dt_min, dt_max=dt_max)
