"""Softmax heads replaced by systems with a finite state that were fitted to them: an experiment, and what it costs.

softmax attention reads a cache that grows. Here the weights of a head are fitted by n positive features, each with a
decay of its own, and a weight for the token itself,

    alpha'_ij = sum_r phi_r(q_i) a_r^{i-1-j} psi_r(k_j) / eta_i  (j < i),     alpha'_ii = delta(q_i, k_i) / eta_i,
    phi = softmax(W q + b),  psi = exp(U k + c),  delta = exp(s q_i^T k_i + w [q_i k_i] + e),  eta_i = their sum

which is a System with n keys, a constant diagonal decay, an exclusive read, a direct term and eta = "sum". Only these
are fitted, to the head's own weights on a calibration text (mean cross-entropy of a row, as in Hedgehog, arXiv
2402.04347); the model is not trained. A window of the last n tokens, the mean weight of each lag as a recurrence
(`convert.realise`) and random features (`convert.random_features`) stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import random_features, realise
from ..convert.certificate import outputs
from ..errors import StateformError, nearest, require, require_seed
from ..forms.softmax import absorb
from ..result import Progress, Result, Steps
from ..system import System
from ..system.shapes import spread_heads
from .runs import Runs, TextScore

METHODS = ("fitted", "window", "lag", "random")
BLOCK = 32
"""Queries that are fitted at a time: neighbours, before which the decays factor."""
BOUND = 10.0
"""|log psi| stays below this: features neither vanish nor overflow."""
RATE = 5e-2
"""The largest step of Adam."""


@dataclass(frozen=True)
class Fitted:
    """The features of some heads of a layer."""

    W: Tensor
    """Of queries, [heads,n,inputs]."""
    b: Tensor
    """[heads,n]"""
    U: Tensor
    """Of keys, [heads,n,inputs]."""
    c: Tensor
    """[heads,n]"""
    own: Tensor
    """For delta: the factors of q_i^T k_i, of the inputs of q_i and of k_i, and of 1, [heads, 2 inputs + 2]."""
    log_decay: Tensor
    """[heads,n]"""

    @property
    def n(self) -> int:
        """Features: the size of the state, for each value and for the normaliser."""
        return self.W.shape[1]

    def select(self, head: int) -> Fitted:
        """One of the heads."""
        at = slice(head, head + 1)
        return Fitted(self.W[at], self.b[at], self.U[at], self.c[at], self.own[at], self.log_decay[at])

    def system(self, system: System) -> System:
        """The System of these heads in place of theirs: `system` is that of the heads the fit was made for."""
        phi, psi, delta = (x.to(system.dtype) for x in self.features(*_inputs(system)))
        assert system.v is not None
        return System(phi, psi, system.v, log_decay=self.log_decay, d=delta, eta="sum", exclusive=True)

    def features(self, q: Tensor, k: Tensor, logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q) and psi(k) [B,T,heads,n], and delta [B,T,heads]; k may reach back further than q."""
        phi = torch.softmax(torch.einsum("hni,bthi->bthn", self.W, q) + self.b, -1)
        psi = _bounded(torch.einsum("hni,bthi->bthn", self.U, k) + self.c)
        both = torch.cat([logit.unsqueeze(-1), q, k[:, k.shape[1] - q.shape[1] :]], -1)
        delta = _bounded(torch.einsum("hi,bthi->bth", self.own[:, :-1], both) + self.own[:, -1])
        return phi, psi, delta


def _bounded(x: Tensor) -> Tensor:
    return torch.exp(BOUND * torch.tanh(x / BOUND))


def _inputs(system: System) -> tuple[Tensor, Tensor, Tensor]:
    """What features see of queries and keys [B,T,H,.], rotated as they are compared and without the rotation too; and
    q_i^T k_i [B,T,H].
    """
    H, seen, turned = system.H, [], []
    cache = absorb(system, None)
    assert system.q is not None
    for x, own in ((cache.q, system.q), (cache.keys, system.k)):
        turned.append(spread_heads(x.float(), H).expand(-1, -1, H, -1))
        parts = [x, *([own.real, own.imag] if own.is_complex() else [])]
        seen.append(spread_heads(torch.cat([p.float() for p in parts], -1), H).expand(-1, -1, H, -1))
    return seen[0], seen[1], (turned[0] * turned[1]).sum(-1)


def fit(
    system: System, n: int, *, steps: int = 400, seed: int = 0, alpha: Tensor | None = None
) -> Fitted:  # fmt: skip
    """n features for each head of a causal system with readout "exp", fitted to its weights on the input it holds.

    Args:
        system: of the heads wanted (`select_heads`), on the calibration text [B,T].
        n: features.
        steps: of Adam, each on 32 neighbouring queries of one row of the batch.
        seed: of the first features and of which queries are taken.
        alpha: `system.coefficients()`, if it is known.

    Raises:
        StateformError: another kind of system, or numbers that cannot be used.
    """
    require(system.readout == "exp" and system.causal, 'fit takes a causal system with readout "exp" (softmax)')
    require_seed(seed)
    for name, value in (("n", n), ("steps", steps)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name} is {value!r}; expected a whole number, 1 or more")
    with torch.no_grad():
        alpha = (system.coefficients() if alpha is None else alpha).float().detach()
        q, k, logit = (x.detach() for x in _inputs(system))
    B, T, H, size = q.shape
    width = min(BLOCK, T)
    generator = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> Tensor:
        return scale * torch.randn(H, n, size, generator=generator)

    # the first features are alike for queries and keys; memories reach from a token to the whole text, evenly in log
    first = drawn(float(size**-0.5 / k.std().clamp_min(1e-3)))
    reach = torch.logspace(0, math.log10(4 * T), 2 * n + 1)[1::2].expand(H, n)
    own = torch.zeros(H, 2 * size + 2)
    own[:, 0] = 1
    start = (first.clone(), torch.zeros(H, n), first.clone(), torch.zeros(H, n), own, -reach.log())
    weights = [x.to(q.device).requires_grad_() for x in start]
    optimiser = torch.optim.Adam(weights, lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))
    ahead = torch.arange(width, device=q.device)
    inside = (ahead[:, None] - ahead - 1).clamp_min(0)[..., None, None]  # [i,j,1,1]
    later = (ahead[:, None] <= ahead)[..., None, None]
    with torch.enable_grad():
        for _ in range(steps):
            b = int(torch.randint(B, (), generator=generator))
            at = int(torch.randint(T - width + 1, (), generator=generator))
            made, block = _fitted(weights), slice(at, at + width)
            found = made.features(q[b : b + 1, block], k[b : b + 1, : at + width], logit[b : b + 1, block])
            (phi, psi, delta), g = (x[0] for x in found), made.log_decay
            # a^{i-1-j} = a^{i-at} a^{at-1-j} before the block, both factors at most 1
            before = psi[:at] * torch.exp(g * (at - 1 - torch.arange(at, device=q.device))[:, None, None])
            past = torch.einsum("ihn,jhn->hij", phi * torch.exp(g * ahead[:, None, None]), before)
            decay = torch.exp(g * inside).masked_fill(later, 0.0)  # [i,j,H,n]
            near = torch.einsum("ihn,ijhn,jhn->hij", phi, decay, psi[at:]) + torch.diag_embed(delta.T)
            weight = torch.cat([past, near], -1)
            want = alpha[b, :, at : at + width, : at + width]
            log = (weight + 1e-20).log() - weight.sum(-1, keepdim=True).log()
            loss = -(want * log).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return _fitted([x.detach() for x in weights])


def _fitted(weights: list[Tensor]) -> Fitted:
    W, b, U, c, own, fade = weights
    return Fitted(W, b, U, c, own, -fade.exp())


# -- the experiment -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way to replace the heads."""

    method: str
    n: int
    numbers: int
    """Kept for each head: n (p + 1) of a state, n (d + p) of a window."""
    nats: float
    """On the text that was held out."""


@dataclass(frozen=True)
class Replacement(Result):
    """What the loss of a model became with softmax heads replaced; `print` it."""

    heads: tuple[str, ...]
    """Which heads: "layer:head"."""
    tokens: tuple[int, int]
    """Of the calibration text, and of the text that was held out."""
    nats: float
    """A token of the held-out text, of the model as it is."""
    without: float
    """The same with these heads giving 0: what there is to lose."""
    cache: int
    """Numbers that each head's cache holds at the end of a row of the held-out text."""
    rows: tuple[Row, ...]
    alone: dict[str, float]
    """Nats a token with one head alone replaced by its fit with the most features, by head."""
    most: int
    """How many features these had."""
    fits: dict[str, dict[int, Fitted]]
    """By layer and by n: the fits of the heads replaced there."""
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts (without the weights of the fits)."""
        return {
            "heads": list(self.heads), "tokens": list(self.tokens), "nats": self.nats, "without": self.without,
            "cache": self.cache, "rows": [vars(row) for row in self.rows], "alone": dict(self.alone),
            "most": self.most, "complete": self.complete,
        }  # fmt: skip

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        base = _perplexity(self.nats)
        yield Text(
            f"{len(self.heads)} softmax heads as systems with a finite state: fitted on {self.tokens[0]} tokens, "
            f"measured on {self.tokens[1]} others. Perplexity {base:.4g} as it is (a cache of {self.cache} numbers a "
            f"head), {_perplexity(self.without):.4g} with these heads giving 0."
        )
        if not self.complete:
            yield Text("Interrupted: what follows was finished.", style="bold yellow")
        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in ("replaced by", "n", "numbers kept", "perplexity", "nats lost"):
            table.add_column(name, justify="left" if name == "replaced by" else "right")
        for row in self.rows:
            table.add_row(_WORDS[row.method], str(row.n), str(row.numbers), f"{_perplexity(row.nats):.4g}",
                          f"{row.nats - self.nats:+.3f}")  # fmt: skip
        yield table
        if self.alone:
            ranked = sorted(self.alone.items(), key=lambda x: -x[1])
            worst = ", ".join(f"{head} {x - self.nats:+.3f}" for head, x in ranked[:5])
            small = sum(x - self.nats < 0.01 for _, x in ranked)
            yield Text(f"One head alone, {self.most} features: {small} of {len(ranked)} cost less than 0.01 nats; "
                       f"the most: {worst}.")  # fmt: skip


_WORDS = {
    "fitted": "features with decays, fitted", "window": "the last n tokens", "lag": "its mean weight at each lag",
    "random": "random features",
}  # fmt: skip


def _perplexity(nats: float) -> float:
    return TextScore(torch.empty(0), nats).perplexity or math.nan


def softmax_to_state(
    model: nn.Module, calibration: Tensor, held_out: Tensor, *, heads: Sequence[str] | None = None,
    sizes: Sequence[int] = (4, 8, 16, 32), methods: Sequence[str] = ("fitted", "window", "lag"), steps: int = 400,
    each: bool = False, seed: int = 0, on_progress: Progress | None = None,
) -> Replacement:  # fmt: skip
    """Replace softmax heads by systems with a finite state, and measure what the model loses by it.

    Each head is fitted to its own weights in the model as it is, layer by layer; then all are replaced at once.

    Args:
        model: a LanguageModel, or a causal model of transformers of a supported type. It is not changed.
        calibration: token ids [B,T] that the fits are made on.
        held_out: other ids [B,T], on which the loss is measured.
        heads: "layer:head" each, the layer by its name or its number among the mixers; default: all softmax heads.
        sizes: values of n: features, states, or tokens of a window.
        methods: of "fitted", "window" (the softmax over the last n tokens), "lag" (the mean weight of each lag, as a
            recurrence of order n), "random" (random features of the exponential).
        steps: of each fit.
        each: also replace one head at a time, by the fit with the most features.
        seed: of the fits.
        on_progress: called as the work goes on.

    Returns:
        A Replacement. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: a model without softmax heads or without a loss, unknown heads or methods, bad sizes or tokens.
    """
    for name in methods:
        require(name in METHODS, f"unknown method {name!r}: {nearest(name, METHODS)}")
    require_seed(seed)
    good = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    require(len(sizes) > 0 and good, f"sizes are {list(sizes)}; expected whole numbers, 1 or more")
    runs, later = Runs(model, calibration), Runs(model, held_out)
    base = later()
    if base.nats is None:
        raise StateformError(f"{type(model).__name__} is no causal language model: there is no loss to measure")
    systems = _softmax(runs)
    require(systems, "the model has no causal softmax heads")
    chosen = _chosen(list(runs.modules), systems, heads)
    step = Steps(on_progress, len(chosen) * (len(sizes) * ("fitted" in methods) + 1) + len(sizes) * len(methods))
    rows = []
    fits: dict[str, dict[int, Fitted]] = {name: {} for name in chosen}
    alone: dict[str, float] = {}

    one = systems[next(iter(chosen))]
    assert one.v is not None and later.inputs is not None
    width, values = one.k.shape[-1] * (2 if one.k.is_complex() else 1), one.v.shape[-1]
    without = later({name: _silent(index) for name, index in chosen.items()}).nats
    assert without is not None
    complete = False
    try:
        lags: dict[str, Tensor] = {}
        for name, index in chosen.items():
            step(f"{name}: the weights on the calibration text")
            system = systems[name].select_heads(index)
            alpha = system.coefficients()
            lags[name] = _by_lag(alpha)
            for n in sizes if "fitted" in methods else ():
                step(f"{name}: {n} features")
                fits[name][n] = fit(system, n, steps=steps, seed=seed, alpha=alpha)
        for method in methods:
            for n in sizes:
                step(f"{method}, n = {n}")
                changes = {}
                for name, index in chosen.items():
                    system_of = partial(_other, method, n, seed, fits[name].get(n), lags[name])
                    changes[name] = _with(index, system_of)
                nats = later(changes).nats
                assert nats is not None
                kept = n * (width + values) if method == "window" else n * (values + 1)
                rows.append(Row(method, n, kept, nats))
        for name, index in chosen.items() if each and "fitted" in methods else ():
            best = fits[name][max(sizes)]
            for i, head in enumerate(index):
                nats = later({name: _with([head], best.select(i).system)}).nats
                assert nats is not None
                alone[f"{name}:{head}"] = nats
        complete = True
    except KeyboardInterrupt:
        pass
    step.end()
    return Replacement(
        tuple(f"{name}:{h}" for name, index in chosen.items() for h in index),
        (runs.inputs.numel(), later.inputs.numel()), base.nats, without,  # type: ignore[union-attr]
        later.inputs.shape[1] * (width + values), tuple(rows), alone, max(sizes), fits, complete,
    )  # fmt: skip


def _other(method: str, n: int, seed: int, fitted: Fitted | None, lags: Tensor, system: System) -> System:
    """What stands in the place of the softmax heads of `system`."""
    if method == "fitted":
        assert fitted is not None
        return fitted.system(system)
    if method == "window":
        return replace(system, window=min(n, system.window or n))
    if method == "lag":
        return _lagged(system, lags, n)
    return random_features(system, n, seed=seed).system


def _softmax(runs: Runs) -> dict[str, System]:
    """The Systems of the causal softmax mixers on the text."""
    found: dict[str, System] = {}

    def keep(name: str) -> Callable[[System], Tensor]:
        def change(system: System) -> Tensor:
            if system.readout == "exp" and system.causal:
                found[name] = system.detach()
            return outputs(system) if system.causal else _whole(system)

        return change

    known = {name for name, error in runs.same().items() if error <= 1}  # of the others there is no System, or another
    runs({name: keep(name) for name in known})
    return {name: found[name] for name in runs.modules if name in found}


def _whole(system: System) -> Tensor:
    from ..forms import run

    y = run(system, "matrix")
    assert isinstance(y, Tensor)
    return y


def _chosen(names: list[str], systems: dict[str, System], heads: Sequence[str] | None) -> dict[str, list[int]]:
    """Which heads of which layers."""
    if heads is None:
        return {name: list(range(system.H)) for name, system in systems.items()}
    require(len(heads) > 0, 'no heads are named; expected "layer:head" each, or None for all')
    found: dict[str, list[int]] = {}
    for given in heads:
        layer, colon, head = given.rpartition(":") if isinstance(given, str) else ("", "", "")
        require(colon and head.isdigit(), f'the head is {given!r}; expected "layer:head", e.g. "0:3"')
        name = names[int(layer)] if layer.isdigit() and int(layer) < len(names) else layer
        require(name in systems, f"{layer!r} is no layer with softmax heads; there are {', '.join(systems)}")
        H = systems[name].H
        require(int(head) < H, f"{name} has heads 0..{H - 1}; got {head}")
        if int(head) not in found.setdefault(name, []):
            found[name].append(int(head))
    return {name: sorted(found[name]) for name in systems if name in found}


def _with(index: list[int], change: Callable[[System], System]) -> Callable[[System], Tensor]:
    """The reads of a System, those of some heads from another System."""

    def reads(system: System) -> Tensor:
        y = outputs(system).clone()
        y[:, :, index] = outputs(change(system.select_heads(index))).to(y.dtype)
        return y

    return reads


def _silent(index: list[int]) -> Callable[[System], Tensor]:
    def reads(system: System) -> Tensor:
        y = outputs(system).clone()
        y[:, :, index] = 0
        return y

    return reads


def _by_lag(alpha: Tensor) -> Tensor:
    """The mean weight of each lag, [H,T]."""
    T = alpha.shape[-1]
    return torch.stack([alpha.diagonal(-lag, -2, -1).mean((0, -1)) for lag in range(T)], -1)


def _lagged(system: System, K: Tensor, n: int) -> System:
    """Constant weights K of each lag, as a recurrence of order n (at most what K can show), with eta = "sum"."""
    assert system.v is not None
    order = min(n, K.shape[1] // 2)
    probe = system.v.new_zeros(1, 1, len(K), 1)
    made = realise(K, probe, order=order, rtol=math.inf).system
    return replace(made, v=system.v, eta="sum")
