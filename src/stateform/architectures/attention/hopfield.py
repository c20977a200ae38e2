"""Modern Hopfield network: a query falls towards the stored keys before it reads their values.  arXiv 2008.02217

    xi <- sum_{j<=t} softmax_j(beta xi^T k_j) k_j, from xi = W_Q u_t, updates - 1 times     (eq. 3)
    y_t = sum_{j<=t} softmax_j(beta xi^T k_j) v_j, the last update, read in the values      (eq. 10)

One update is softmax attention without positions. The System is the last read; its state, the cache of keys, serves
all of them.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...errors import require
from ...forms import compute
from ...layer import Layer, Past
from ...layer.parts import above_zero, heads, split_size
from ...system import System
from ...system.state import State
from ..registry import register


@register("hopfield")
class Hopfield(Layer):
    """Heads of softmax attention whose reads are repeated.

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head (default d_model / n_heads).
        beta: inverse temperature (default 1 / sqrt(n)): a large one retrieves single patterns, a small one averages.
        updates: reads a token, the last one included.
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, beta: float | None = None,
        updates: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(d_model)
        require(updates >= 1, f"updates is {updates}; expected 1 or more reads a token")
        self.n_heads, self.d_state, self.updates = n_heads, d_state or split_size(d_model, n_heads), updates
        self.beta = self.d_state**-0.5 if beta is None else above_zero("beta", beta)
        split_size(d_model, n_heads)
        self.q_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * self.d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def retrieve(self, xi: Tensor, k: Tensor, state: State | None) -> Tensor:
        """Update the queries xi [B,T,H,n] once, over the keys of the past and k [B,T,H,n] up to each token."""
        if state is not None:
            state = State({"keys": state["keys"], "values": state["keys"], "position": state["position"]})
        xi, _ = compute(System(self.beta * xi, k, k, readout="exp", eta="sum"), "auto", state)
        return xi

    def system(self, u: Tensor, past: Past | None = None) -> System:
        xi, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))  # [B,T,H,n or p]
        for _ in range(self.updates - 1):
            xi = self.retrieve(xi, k, (past or Past()).state)
        return System(self.beta * xi, k, v, readout="exp", eta="sum")
