"""The definition of a System, computed to the letter: a plain loop over its steps in float64.

    S_t = A_t S_{t-1} + b_t k_t v_t^T,    A_t = decay_t + f_t w_t^T
    y_t = ( readout(S_t, q_t) + d_t v_t ) / eta_t

It reads the fields of a System as its docstring states them and shares no code with what computes systems, so that
everything that happens to a System on its way (changes of coordinates, folding, packing, slicing) is measured against
the equations themselves. It is slow, and needs exponents that float64 can hold.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import require
from ..system import RidgeRead, SoftmaxRead, System
from ..system.state import State

Array = np.ndarray[Any, Any]
Parts = dict[str, Array]
_PER_TOKEN = (
    "q", "d", "eta", "eta_floor", "forget", "bias", "distance", "blocks", "sink", "sink_value", "ridge", "mix",
)  # fmt: skip
"""The parts with one entry a token; the others have `micro`."""
_VECTORS = ("q", "k", "v", "f", "w", "transition", "sink_value", "blocks")
_EXACT = ("phase", "sign", "log_decay", "rate", "forget", "bias", "distance", "blocks", "sink", "log_b")
"""What no form rounds before it is used: angles and exponents."""


def defined(
    system: System, *, initial_state: State | Tensor | None = None, cu_seqlens: Tensor | None = None,
    noise: float = 0.0, seed: int = 0, summed: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute a system by its definition.

    Args:
        system: what to compute.
        initial_state: S before the first token, as for `run`; not for readout "exp".
        cu_seqlens: ends of packed sequences, as for `run`.
        noise: relative size of the random errors put on every part, every term of the state and every read: how much a
            result changes by it, over its size, is what the system makes of roundings however it is computed.
        seed: of the noise.
        summed: the noise is that of forms which sum over all earlier writes, also those that feedback has erased since:
            relative to the sum of their magnitudes, not to the state that is left.

    Returns:
        y as `run` gives it, and S after the last token [N,H,n,columns] (every head's own, its scale multiplied in; None
        for readout "exp"), in float64 or complex128.
    """
    loop = _Loop(system, _Noise(noise, np.random.default_rng(seed), summed))
    y, S = loop.packed(_unscaled(system, initial_state), [0, system.T] if cu_seqlens is None else cu_seqlens.tolist())
    if system.v is None:
        y = y[..., 0]
    elif system.q is not None and system.q.ndim in (2, 4):
        y = y[..., 0, :]
    if system.w_out is not None:
        y = np.einsum("bthn,ohn->bto", y, _array(system.w_out).repeat(system.H // system.w_out.shape[1], 1))
        y = y.real[:, :, None]
    return torch.from_numpy(y), None if S is None else torch.from_numpy(S)


def defined_coefficients(system: System, *, noise: float = 0.0, seed: int = 0, summed: bool = False) -> Tensor:
    """Compute what each write's value weighs in each output [B,H,o,T,T*micro] (o = 1 for scalar weights), from zero.

    The values are replaced by the columns of the identity, one a write: what is read then are the weights themselves.
    """
    loop, steps = _Loop(system, _Noise(noise, np.random.default_rng(seed), summed)), system.T * system.micro
    loop.parts["v"] = np.broadcast_to(np.eye(steps)[None, :, None], (system.B, steps, system.H, steps))
    loop.parts.pop("sink_value", None)  # of no write
    y, _ = loop.packed(None, [0, system.T])
    return torch.from_numpy(np.moveaxis(y, (2, 3), (1, 2)))


@dataclass(frozen=True)
class _Noise:
    """Random errors of a relative size; none where that is 0."""

    size: float
    random: np.random.Generator
    summed: bool = False

    def __call__(self, x: Array, scale: Array | float | None = None) -> Array:
        """Add an error to every entry of x, relative to itself or to a scale."""
        if not self.size:
            return x
        error: Any = self.random.standard_normal(x.shape)
        if np.iscomplexobj(x):  # of the angle too
            error = error + 1j * self.random.standard_normal(x.shape)
        return np.asarray(x + self.size * error * (np.where(np.isfinite(x), x, 0.0) if scale is None else scale))


def _array(x: Tensor) -> Array:
    wide = torch.complex128 if x.is_complex() else torch.float64
    out: Array = x.detach().cpu().resolve_conj().resolve_neg().to(wide).numpy()
    return out


def _written_out(system: System, noise: _Noise) -> Parts:
    """Write out every part for every row, step and head, [B,steps,H,...], and `decay`, the factor of a diagonal decay
    [B,steps,H,n|1]. What is constant is rounded alike at every step, so its noise is the same.
    """
    B, T, H, r = system.B, system.T, system.H, system.micro
    out: Parts = {}
    for name, x in system.tensors().items():
        if name in ("w_in", "w_out"):
            continue
        inner = (2 if x.ndim in (3, 5) else 1) if name in _VECTORS else (0 if x.ndim in (1, 3) else 1)
        array = _array(x)
        array = array[None, None] if x.ndim == 1 + inner else array
        array = array.repeat(H // array.shape[2], 2)
        out[name] = array if name in _EXACT else noise(array)
    decay = _decay(out, noise)
    if decay is not None:
        out["decay"] = decay
    for name, array in out.items():
        out[name] = np.broadcast_to(array, (B, T if name in _PER_TOKEN else T * r, *array.shape[2:]))
    if isinstance(system.eta_floor, int | float):
        out["eta_floor"] = np.full((B, T, H), float(system.eta_floor))
    return out


def _decay(parts: Parts, noise: _Noise) -> Array | None:
    """Compute exp(log_decay) exp(i phase) sign, each where it is given, for parts as they vary."""
    wide = {name: x if x.ndim == 4 else x[..., None] for name, x in parts.items() if name in _EXACT}
    factors = []
    if "log_decay" in wide:
        factors.append(noise(np.exp(noise(wide["log_decay"] * wide.get("rate", 1.0)))))
    if "phase" in wide:
        factors.append(noise(np.exp(1j * wide["phase"])))
    if "sign" in wide:
        factors.append(wide["sign"])
    return functools.reduce(np.multiply, factors) if factors else None


def _unscaled(system: System, state: State | Tensor | None) -> Array | None:
    """Undo the scale of an initial state: S, [N,H,n,columns]."""
    if state is None:
        return None
    require(not system.readout.cached, "the definition of an exp readout starts from an empty cache")
    S = _array(state if isinstance(state, Tensor) else state["S"])
    if isinstance(state, State) and "log_scale" in state:
        S = S * np.exp(_array(state["log_scale"]))[..., None, None]
    return S.repeat(system.H // S.shape[1], 1)


class _Loop:
    """A system's parts, and the equations."""

    def __init__(self, system: System, noise: _Noise) -> None:
        self.system, self.noise = system, noise
        self.parts = _written_out(system, noise)
        if "log_b" in self.parts:
            self.parts["b"] = noise(np.exp(noise(self.parts["log_b"])))
        if "v" not in self.parts:
            self.parts["v"] = np.ones((system.B, system.T * system.micro, system.H, 1))

    def packed(self, S: Array | None, ends: list[int]) -> tuple[Array, Array | None]:
        """Compute y [B,T,H,o,p] of sequences that lie one after the other, and S after each."""
        outputs, states = [], []
        for row, (low, high) in enumerate(itertools.pairwise(ends)):
            start = S if S is None or len(ends) == 2 else S[row : row + 1]
            y, end = self.softmax(low, high) if self.system.readout.cached else self.linear(low, high, start)
            outputs.append(y)
            states.append(end)
        y = np.concatenate(outputs, 1)
        return y, None if self.system.readout.cached else np.concatenate([x for x in states if x is not None])

    # -- a finite state ----------------------------------------------------------------------------------------------

    def linear(self, low: int, high: int, S: Array | None) -> tuple[Array, Array]:
        """Compute y of the tokens low..high as a sequence of their own, and S after them."""
        parts, noise, r = self.parts, self.noise, self.system.micro
        k, v = parts["k"], parts["v"]
        columns = [v]
        if self.system.eta == "sum":
            columns.append(np.ones_like(v[..., :1].real))
        if self.system.readout.gram:
            columns.append(k)
        written = np.concatenate(columns, -1)
        written = written * parts["b"][..., None] if "b" in parts else written
        if S is None:
            S = np.zeros((k.shape[0], *k.shape[2:], written.shape[-1]))
        reads, sums = [], abs(S)  # magnitudes of the writes that the decay has left, for `summed`
        for t in range(low, high):
            before = S, sums
            for s in range(t * r, (t + 1) * r):
                write = noise(k[:, s, :, :, None] * written[:, s, :, None])
                if "f" in parts:
                    w = parts["w"][:, s, :, :, None]
                    z = noise(w * S, abs(w) * sums if noise.summed else None).sum(-2, keepdims=True)
                    fed = noise(parts["f"][:, s, :, :, None] * z)
                    sums = abs(self.decayed(s, sums)) + abs(write) + abs(fed)
                    write = write + fed
                S = noise(self.decayed(s, S)) + write
            reads.append(self.read(t, *(before if self.system.exclusive else (S, sums))))
        return np.stack(reads, 1) if reads else np.zeros((k.shape[0], 0, self.system.H, *self.read_shape())), S

    def read_shape(self) -> tuple[int, int]:
        """Count the outputs and the values of a read."""
        q = self.parts.get("q")
        return self.system.n if q is None else q.shape[-2] if q.ndim == 5 else 1, self.parts["v"].shape[-1]

    def decayed(self, s: int, S: Array) -> Array:
        """Apply the open-loop decay of step s to S."""
        if "transition" in self.parts:
            return np.asarray(self.parts["transition"][:, s] @ S)
        return self.parts["decay"][:, s, ..., None] * S if "decay" in self.parts else S

    def gate(self, name: str, s: int) -> Array:
        """Read a part of step s that may have one number a head or one a key, [B,H,1|n]."""
        x = self.parts[name][:, s]
        return x if x.ndim == 3 else x[..., None]

    def read(self, t: int, S: Array, sums: Array) -> Array:
        """Compute y of token t, [B,H,o,p]."""
        parts, noise, p = self.parts, self.noise, self.parts["v"].shape[-1]
        if "q" not in parts:
            y = S
        else:
            q = parts["q"][:, t]
            q = q if q.ndim == 4 else q[:, :, None]
            if self.system.readout.gram:
                q = self.regressed(t, q, S[..., p:])
            scale = abs(q[..., None]) * sums[:, :, None] if noise.summed and "f" in parts else None
            y = noise(q[..., None] * S[:, :, None], scale).sum(-2).real
        y, eta = y[..., :p], y[..., p:]
        if "d" in parts:
            r, d = self.system.micro, parts["d"][:, t, :, None, None]
            own = noise(d * parts["v"][:, t * r if self.system.exclusive else (t + 1) * r - 1, :, None])
            y, eta = y + (own if "q" not in parts else own.real), eta + d
        if self.system.eta is None:
            return y
        eta = eta if self.system.eta == "sum" else parts["eta"][:, t, :, None, None]
        if "eta_floor" in parts:
            eta = np.maximum(abs(eta), parts["eta_floor"][:, t, :, None, None])
        with np.errstate(invalid="ignore", divide="ignore"):  # where nothing was written yet: 0 / 0
            return np.asarray(y / eta)

    def regressed(self, t: int, q: Array, G: Array) -> Array:
        """Compute the query of a ridge readout, q + mix ((G + R)^{-1} q - q)."""
        norm, ridge = np.sqrt((G**2).sum((-2, -1))), self.gate("ridge", t)
        read = self.system.readout
        assert isinstance(read, RidgeRead)
        if read.relative:  # of an empty G nothing is read, whatever the query
            ridge = np.where(norm[..., None] > 0, ridge * norm[..., None], 1.0)
        M = G + ridge[..., None] * np.eye(G.shape[-1])
        M = self.noise(M, (norm + ridge.max(-1))[..., None, None])
        solved = np.linalg.solve(M, q.swapaxes(-1, -2)).swapaxes(-1, -2)
        return np.asarray(solved if "mix" not in self.parts else q + self.gate("mix", t)[..., None] * (solved - q))

    # -- the growing cache -------------------------------------------------------------------------------------------

    def softmax(self, low: int, high: int) -> tuple[Array, None]:
        """Compute y of the tokens low..high as a sequence of their own: the transition moves every earlier key on its
        way, the log decay adds up in the exponent of its weight.
        """
        cut = {name: x[:, low:high] for name, x in self.parts.items()}
        q, k, v, read = cut["q"], cut["k"], cut["v"], self.system.readout
        assert isinstance(read, SoftmaxRead)
        B, T, H = k.shape[:3]
        k = k * cut["b"][..., None] if "b" in cut else k
        g = self.noise(cut["forget"]) if "forget" in cut else np.zeros((B, T, H))
        carried = self.turned(cut, k) if {"log_decay", "sign", "f"}.isdisjoint(cut) else self.moved(cut, k)
        forgotten = np.zeros((B, T, H))
        y = np.zeros((B, T, H, 1, v.shape[-1]))
        for i, keys in enumerate(carried):
            forgotten[:, :i] += g[:, i : i + 1]
            first = 0 if self.system.window is None else max(0, i + 1 - self.system.window)
            last = T if self.system.window is None else min(T, i + self.system.window)
            seen = np.arange(first, i + 1 if self.system.causal else last)
            x = self.noise(q[:, i : i + 1] * keys[:, seen]).real.sum(-1)
            x = x if read.cap is None else read.cap * np.tanh(x / read.cap)
            x = x + forgotten[:, seen] + (cut["bias"][:, seen] if "bias" in cut else 0.0)
            if "distance" in cut:
                far = np.clip(i - seen, 0, cut["distance"].shape[-1] - 1)
                x = x + np.moveaxis(cut["distance"][:, 0][..., far], -1, 1)
            if "blocks" in cut:
                assert read.block is not None
                x = x + np.moveaxis(cut["blocks"][:, i][..., seen // read.block], -1, 1)
            y[:, i, :, 0] = self.weighed(cut, i, x, v[:, seen])
        return y, None

    def turned(self, cut: Parts, k: Array) -> Iterator[Array]:
        """Turn all keys [B,T,H,n], at each token, by the angles between it and them."""
        B, T, H = k.shape[:3]
        phase = cut.get("phase", np.zeros((B, T, H)))
        phase = phase if phase.ndim == 4 else phase[..., None]
        angle = np.zeros_like(phase)
        for t in range(T):
            angle[:, t] = np.remainder((angle[:, t - 1] if t else 0.0) + phase[:, t], 2 * np.pi)
        for i in range(T):
            yield k * np.exp(1j * (angle[:, i : i + 1] - angle))

    def moved(self, cut: Parts, k: Array) -> Iterator[Array]:
        """Move all keys [B,T,H,n], at each token, as the transitions since have; later keys are not used."""
        keys, sums = k.astype(np.result_type(k, *(cut[x] for x in ("decay", "f", "w") if x in cut))), abs(k)
        for t in range(k.shape[1]):
            old, more = keys[:, :t], sums[:, :t]
            fed = np.zeros(1)
            if "f" in cut:
                w, f = cut["w"][:, t : t + 1], cut["f"][:, t : t + 1]
                z = self.noise(w * old, abs(w) * more if self.noise.summed else None).sum(-1, keepdims=True)
                fed = self.noise(f * z)
            decay: Array = cut["decay"][:, t : t + 1] if "decay" in cut else np.ones(1)
            keys[:, :t], sums[:, :t] = self.noise(decay * old) + fed, abs(decay) * more + abs(fed)
            yield keys

    def weighed(self, cut: Parts, i: int, logits: Array, v: Array) -> Array:
        """Compute (sum_j exp(logits_j) v_j + d v_i) / eta [B,H,p], for logits [B,j,H]; of a quotient of sums a common
        factor is taken out before the exponential.
        """
        noise = self.noise
        d, floor = (cut[name][:, i] if name in cut else np.zeros(logits.shape[::2]) for name in ("d", "eta_floor"))
        with np.errstate(divide="ignore"):
            top = np.maximum.reduce([logits.max(1), np.log(abs(d)), np.log(floor)])
        sink = cut["sink"][:, i] if "sink" in cut else np.full_like(top, -np.inf)
        top = np.maximum(top, sink)
        top = np.where(top > -np.inf, top, 0.0) if self.system.eta == "sum" else np.zeros_like(top)
        weights, d = noise(np.exp(logits - top[:, None])), d * np.exp(-top)
        y = noise(weights[..., None] * v).sum(1) + noise(d[..., None] * cut["v"][:, i])
        if "sink_value" in cut:
            y = y + noise(np.exp(sink - top)[..., None] * cut["sink_value"][:, i])
        if self.system.eta is None:
            return np.asarray(y)
        eta = noise(weights).sum(1) + d + np.exp(sink - top) if self.system.eta == "sum" else cut["eta"][:, i]
        if "eta_floor" in cut:
            eta = np.maximum(abs(eta), floor * np.exp(-top))
        hiding = not {"bias", "distance", "blocks"}.isdisjoint(cut)
        blind = hiding and eta == 0  # nothing is seen: the read is 0
        return np.asarray(y / np.where(blind, 1.0, eta)[..., None])
