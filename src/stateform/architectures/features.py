"""Softmax attention with finitely many features of the exponential, as linear attention: Taylor and random features."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import require
from ..layer import Layer, Past
from ..layer.parts import heads, precise, split_size
from ..system import System
from .attention import Softmax
from .registry import register


def taylor_features(x: Tensor, degree: int) -> Tensor:
    """phi(x) [..., C(n+P,P)] with phi(q)^T phi(k) = sum_{p<=P} (q^T k)^p / p! (arXiv 2405.15731, appendix C).

    The monomial x^{n_1..n_m} of degree p has the factor sqrt(1 / (n_1! ... n_m!)): each is built from the one before it
    by a variable of no smaller index, so that every monomial occurs once.
    """
    n = x.shape[-1]
    blocks = [torch.ones_like(x[..., :1])]
    exponents: list[tuple[int, ...]] = [()]
    for _ in range(degree):
        grown = [(*e, i) for e in exponents for i in range(e[-1] if e else 0, n)]
        parent = torch.tensor([exponents.index(e[:-1]) for e in grown], device=x.device)
        last = torch.tensor([e[-1] for e in grown], device=x.device)
        # sqrt(1/m!) of a power m, one factor at a time
        repeats = torch.tensor([e.count(e[-1]) for e in grown], dtype=x.dtype, device=x.device)
        blocks.append(blocks[-1][..., parent] * x[..., last] * repeats.rsqrt())
        exponents = grown
    return torch.cat(blocks, -1)


class _Features(Layer):
    """Multi-head attention whose queries and keys go through a feature map."""

    def __init__(self, d_model: int, n_heads: int, d_state: int) -> None:
        super().__init__(d_model)
        split_size(d_model, n_heads)
        self.n_heads, self.d_key = n_heads, d_state
        self.q_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * d_state, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def system(self, u: Tensor, past: Past | None = None) -> System:
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        scale = self.d_key**-0.25
        return System(self.features(q * scale), self.features(k * scale), v, eta="sum")


@register("taylor", paper="arXiv 2402.18668")
class Taylor(_Features):
    """Softmax attention by the Taylor polynomial of its exponential: n' = C(n + P, P) features (Based; DSF Lemma 1).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head before the features; keep it small.
        degree: P; even, as an odd polynomial can make the denominator vanish.
    """

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int = 4, degree: int = 2) -> None:
        super().__init__(d_model, n_heads, d_state)
        require(degree >= 2 and degree % 2 == 0, f"degree is {degree}; expected an even number, 2 or more")
        self.degree = degree

    def features(self, x: Tensor) -> Tensor:
        return taylor_features(x, self.degree)


def random_directions(m: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """m directions [m,n] for `positive_features`: normal, and orthogonal in blocks of n, which lessens the variance."""
    blocks = [_rotation(n, generator) for _ in range(-(-m // n))]
    return torch.cat(blocks)[:m] * _normal(m, n, generator).norm(dim=-1, keepdim=True)


def _rotation(n: int, generator: torch.Generator | None) -> Tensor:
    """A random orthogonal matrix, every one equally likely (a QR decomposition alone prefers some signs)."""
    Q, R = torch.linalg.qr(_normal(n, n, generator))
    return Q * R.diagonal().sign()


def _normal(m: int, n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(m, n, generator=generator, device=None if generator is None else generator.device)


def positive_features(x: Tensor, directions: Tensor) -> Tensor:
    """phi(x) = exp(w_r^T x - |x|^2 / 2) / sqrt(m), r = 1 .. m: phi(q)^T phi(k) is exp(q^T k) on average over the w."""
    return torch.exp(_exponents(x, directions)) / math.sqrt(len(directions))


def _exponents(x: Tensor, directions: Tensor) -> Tensor:
    return x @ directions.to(x).T - x.square().sum(-1, keepdim=True) / 2


@register("performer", paper="arXiv 2009.14794")
class Performer(_Features):
    """Softmax attention by positive random features, phi(x) = exp(w_r^T x - |x|^2 / 2) / sqrt(m) (lemma 1).

    Args:
        d_model: width.
        n_heads: heads.
        d_state: keys per head before the features (default d_model / n_heads).
        n_features: m random directions, orthogonal in blocks; they are a buffer, drawn once.
    """

    directions: Tensor

    def __init__(self, d_model: int, n_heads: int = 4, *, d_state: int | None = None, n_features: int = 32) -> None:
        super().__init__(d_model, n_heads, d_state or split_size(d_model, n_heads))
        require(n_features >= 1, f"n_features is {n_features}; expected 1 or more")
        self.register_buffer("directions", random_directions(n_features, self.d_key))

    def features(self, x: Tensor) -> Tensor:
        return positive_features(x, self.directions)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """The exponents reach far below what a number can hold: the largest of each key goes into log_b, and that of
        each query cancels in y.
        """
        q, k, v = (heads(f(u), self.n_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (_exponents(precise(x) * self.d_key**-0.25, self.directions) for x in (q, k))
        most_q, most_k = (x.detach().amax(-1, keepdim=True) for x in (q, k))
        q, k = torch.exp(q - most_q), torch.exp(k - most_k)
        return System(q.to(v.dtype), k.to(v.dtype), v, log_b=most_k.squeeze(-1), eta="sum")


@register("gated_softmax", paper="arXiv 2505.06708")
class GatedSoftmax(Softmax):
    """Softmax attention whose output is gated by a sigmoid of the token, per head or per value (section 2.2).

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        gate: "head" (one number a head) or "value".
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        gate: Literal["head", "value"] = "head", positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        require(gate in ("head", "value"), f"gate is {gate!r}; expected 'head' or 'value'")
        self.gate_proj = nn.Linear(d_model, n_heads if gate == "head" else d_model, bias=False)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        gate = torch.sigmoid(self.gate_proj(u)).unflatten(-1, (self.n_heads, -1))
        return self.out_proj((y * gate).flatten(2))


@register("sliding_window", paper="arXiv 2402.19427")
class SlidingWindow(Softmax):
    """Softmax attention to the last `window` tokens: the state is a ring of so many keys and values.

    Args:
        d_model: width.
        n_heads: query heads.
        n_kv_heads: heads of keys and values, a divisor of n_heads (default n_heads).
        d_state: keys per head (default d_model / n_heads).
        window: tokens seen, the token itself included.
        positions: "rope" or "none".
    """

    def __init__(
        self, d_model: int, n_heads: int = 4, *, n_kv_heads: int | None = None, d_state: int | None = None,
        window: int = 32, positions: Literal["rope", "none"] = "rope",
    ) -> None:  # fmt: skip
        super().__init__(d_model, n_heads, n_kv_heads=n_kv_heads, d_state=d_state, positions=positions)
        require(window >= 1, f"window is {window}; expected 1 or more tokens")
        self.window = window

    def system(self, u: Tensor, past: Past | None = None) -> System:
        return replace(super().system(u, past), window=self.window)
