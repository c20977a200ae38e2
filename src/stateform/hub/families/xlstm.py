"""xLSTM: the matrix memory of xLSTM 7B, xLSTMLayer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...architectures import build
from ...errors import require
from ...forms import run
from ...forms.stabilise import stabilise
from ...layer import Layer, Past
from ...layer.parts import heads, precise
from ...system import System
from ...system.state import State, unchecked
from ..lifted import Call, Lifted, adapts, named
from ..parts import part
from ..twin import Twin, heads_of, renamed

MOST = 60.0
"""The largest cap of the gates with an eps: the state is kept as it is, not scaled down by e^m."""


@dataclass
class Memory:
    """The cache: C, n and m, which the module takes and returns."""

    tensors: tuple[Tensor, Tensor, Tensor] | None


@adapts(xlstm="xLSTMLayer")
class LiftedXLSTM(Lifted):
    """As `stateform.architectures.MLSTM`, with the module's eps.

    The module adds it to the normaliser in the coordinates of the stabilised state:

        y_t = q_t^T S_t / (max(|q_t^T n_t|, 1) + eps e^{m_t}),  m_t = max(log f_t + m_{t-1}, log i_t),  m_0 = 0

    So with an eps the normaliser is no sum over the past alone. It is computed here, and n and m are kept in the State.
    """

    contractive = True
    windows = ()

    def check(self, module: Any) -> None:
        c = module.config
        self.n_heads, self.eps, self.cap = c.num_heads, float(c.eps), c.gate_soft_cap
        require(
            not self.eps or (self.cap is not None and self.cap <= MOST),
            f"this xLSTM adds eps = {self.eps:g} in the coordinates of a state that gates up to {self.cap} "
            f"(gate_soft_cap) may take beyond float32; expected {MOST:g} or less, or eps = 0, the paper's normaliser",
        )

    @staticmethod
    def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = named(module, args, kwargs)
        return Call(given.pop("x"), Memory(given.pop("state", None)), rest=given)

    def returns(self, y: Tensor, call: Call) -> Any:
        return y, call.cache.tensors

    def _maps(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute q, k, v and the gates i and f before their activations."""
        m: Any = self.module
        if m.config.weight_mode == "fused":
            sizes = [m.qk_dim, m.qk_dim, m.v_dim]
            q, k, v = part(m.qkv_opreact, u, 0, sum(sizes)).split(sizes, -1)
            i, f = m.ifgate_preact(u).chunk(2, -1)  # [B,T,H]
        else:
            q, k, v, i, f = m.q(u), m.k(u), m.v(u), m.igate_preact(u), m.fgate_preact(u)
        i, f = (x if self.cap is None else self.cap * torch.tanh(x / self.cap) for x in (precise(i), precise(f)))
        return *(heads(x, self.n_heads) for x in (q, k, v)), i, f  # type: ignore[return-value]

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v, log_b, f = self._maps(u)
        q, g = q * q.shape[-1] ** -0.5, F.logsigmoid(f)  # [B,T,H,n], [B,T,H]
        if not self.eps:
            return System(q, k, v, log_decay=g, log_b=log_b, eta="sum", eta_floor=1.0)
        ones = System(q, k, v.new_ones(*v.shape[:3], 1), log_decay=g, log_b=log_b)
        state = None if past is None else past.state
        start = log_b.new_zeros(u.shape[0], self.n_heads) if state is None else state["m"]
        _, m = stabilise(replace(ones, eta="sum"), start)
        if torch.is_grad_enabled():  # the value of m, with the gradient of its formula
            total = g.cumsum(1)
            again = total + torch.maximum(start.unsqueeze(1), (log_b - total).cummax(1).values)
            m = again + (m - again).detach()
        before = None if state is None else State({"S": state["n"].unsqueeze(-1), "position": state["position"]})
        read, after = run(ones, initial_state=before, return_state=True)
        if past is not None:
            past.kept |= {"n": after["S"].squeeze(-1), "m": m[:, -1]}
        eta = precise(read.squeeze(-1)).abs().clamp_min(1.0) + self.eps * m.exp()
        return System(q, k, v, log_decay=g, log_b=log_b, eta=eta)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        m: Any = self.module
        gate = part(m.qkv_opreact, u, -m.v_dim, None) if m.config.weight_mode == "fused" else m.ogate_preact(u)
        return m.out_proj(torch.sigmoid(gate) * m.multihead_norm(y.to(u.dtype)))

    def read(self, cache: Any) -> State | None:
        if cache.tensors is None:
            return None
        C, n, m = (precise(x) for x in cache.tensors)
        m = m.squeeze(-1)
        position = torch.zeros(len(C), dtype=torch.long, device=C.device)
        if not self.eps:
            S = torch.cat([C, n.unsqueeze(-1)], -1)
            return unchecked({"S": S, "log_scale": m, "position": position}, self.fingerprint)
        size = m.exp()[..., None]
        return unchecked({"S": C * size[..., None], "n": n * size, "m": m, "position": position}, self.fingerprint)

    def write(self, cache: Any, state: State) -> None:
        S = state["S"]
        if self.eps:
            m = state["m"]
            size = (-m).exp()[..., None]
            C, n = S * size[..., None], state["n"] * size
        else:
            m = state["log_scale"]
            C, n = S[..., :-1], S[..., -1]
        cache.tensors = C, n, m.unsqueeze(-1)


class XLSTMTwin(Twin, pair="mlstm", model="xlstm"):
    """The layer of the matrix memory, in chunks of 64; eps = 0, as theirs is added beyond the paper's floor."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("mlstm", d_model=d_model, n_heads=heads_of(d_model, 192))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "num_heads": layer.n_heads, "v_dim_factor": 1.0,
            "qk_dim_factor": layer.q_proj.out_features / layer.d_model, "gate_soft_cap": layer.gate_cap,
            "norm_eps": 1e-6, "eps": 0.0, "mode": "inference",
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        names = {
            "q_proj": "q", "k_proj": "k", "v_proj": "v", "i_proj": "igate_preact", "f_proj": "fgate_preact",
            "gate_proj": "ogate_preact", "norm_weight": "multihead_norm.weight",
        }  # fmt: skip
        return renamed(layer, names)

    def begin(self, x: Tensor) -> Any:
        return Memory(None)

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        if cache is None:
            return self.module(x)[0]
        y, cache.tensors = self.module(x, cache.tensors)
        return y
