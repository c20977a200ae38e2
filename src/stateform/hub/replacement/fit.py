"""Fitting the weights of a softmax head by positive features with decays: a System with a finite state.

Softmax attention reads a cache that grows. Here the weights of a head are fitted by n features, each with its own
decay, and a weight for the token itself:

    alpha'_ij = sum_r phi_r(q_i) a_r^{i-1-j} psi_r(k_j) / eta_i  (j < i),     alpha'_ii = delta(q_i, k_i) / eta_i,
    phi = softmax(W q + b),  psi = exp(U k + c),  delta = exp(s q_i^T k_i + w [q_i k_i] + e),  eta_i = their sum

This is a System with n keys, a constant diagonal decay, an exclusive read, a direct term and eta = "sum". Its
parameters are fitted to the head's own weights on a calibration text (mean cross-entropy of a row, as in Hedgehog,
arXiv 2402.04347); the model is not trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import require, require_seed
from ...forms.scores import absorbed
from ...system import System
from ...system.shapes import spread_heads

BLOCK = 32
"""Neighbouring queries that are fitted at a time: over all keys before them, their decays factor."""
BOUND = 10.0
"""|log psi| stays below this, so that features neither vanish nor overflow."""
RATE = 5e-2
"""The largest step of Adam."""


@dataclass(frozen=True)
class Fitted:
    """The features of some heads of a layer."""

    W: Tensor
    """The map of queries, [heads,n,inputs]."""
    b: Tensor
    """[heads,n]"""
    U: Tensor
    """The map of keys, [heads,n,inputs]."""
    c: Tensor
    """[heads,n]"""
    own: Tensor
    """For delta: the factors of q_i^T k_i, of the inputs of q_i and of k_i, and of 1, [heads, 2 inputs + 2]."""
    log_decay: Tensor
    """[heads,n]"""

    @property
    def n(self) -> int:
        """Count the features, which is the size of the state for each value and for the normaliser."""
        return self.W.shape[1]

    def select(self, head: int) -> Fitted:
        """Select one of the heads."""
        at = slice(head, head + 1)
        return Fitted(self.W[at], self.b[at], self.U[at], self.c[at], self.own[at], self.log_decay[at])

    def system(self, system: System) -> System:
        """Make the System that replaces `system`, that of the heads that were fitted."""
        phi, psi, delta = (x.to(system.dtype) for x in self.features(*_inputs(system)))
        assert system.v is not None
        return System(phi, psi, system.v, log_decay=self.log_decay, d=delta, eta="sum", exclusive=True)

    def features(self, q: Tensor, k: Tensor, logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute phi(q) and psi(k) [B,T,heads,n], and delta [B,T,heads]; k may reach back further than q."""
        phi = torch.softmax(torch.einsum("hni,bthi->bthn", self.W, q) + self.b, -1)
        psi = _bounded(torch.einsum("hni,bthi->bthn", self.U, k) + self.c)
        both = torch.cat([logit.unsqueeze(-1), q, k[:, k.shape[1] - q.shape[1] :]], -1)
        delta = _bounded(torch.einsum("hi,bthi->bth", self.own[:, :-1], both) + self.own[:, -1])
        return phi, psi, delta


def _bounded(x: Tensor) -> Tensor:
    return torch.exp(BOUND * torch.tanh(x / BOUND))


def _inputs(system: System) -> tuple[Tensor, Tensor, Tensor]:
    """Give the inputs of the features, from queries and keys [B,T,H,.], and q_i^T k_i [B,T,H].

    The inputs are queries and keys with their rotation by position, joined with those without it.
    """
    H, seen, turned = system.H, [], []
    cache = absorbed(system, "fit")
    assert system.q is not None
    for x, own in ((cache.q, system.q), (cache.keys, system.k)):
        turned.append(spread_heads(x.float(), H).expand(-1, -1, H, -1))
        parts = [x, *([own.real, own.imag] if own.is_complex() else [])]
        seen.append(spread_heads(torch.cat([p.float() for p in parts], -1), H).expand(-1, -1, H, -1))
    return seen[0], seen[1], (turned[0] * turned[1]).sum(-1)


def fit(
    system: System, n: int, *, steps: int = 400, seed: int = 0, alpha: Tensor | None = None
) -> Fitted:  # fmt: skip
    """Fit n features for each head of a causal system with readout "exp" to its weights on the input it holds.

    Args:
        system: of the heads wanted (`select_heads`), on the calibration text [B,T].
        n: features.
        steps: of Adam, each on 32 neighbouring queries of one row of the batch.
        seed: of the first features and of which queries are taken.
        alpha: `system.coefficients()`, if it is known.

    Raises:
        StateformError: another kind of system, or numbers that cannot be used.
    """
    require(system.readout.cached and system.causal, 'fit takes a causal system with readout "exp" (softmax)')
    require_seed(seed)
    for name, value in (("n", n), ("steps", steps)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name} is {value!r}; expected a whole number, 1 or more")
    with torch.no_grad():
        alpha = (system.coefficients() if alpha is None else alpha).float().detach()
        q, k, logit = (x.detach() for x in _inputs(system))
    (B, T), width = q.shape[:2], min(BLOCK, q.shape[1])
    generator = torch.Generator().manual_seed(seed)
    weights = _start(k, n, generator)
    optimiser = torch.optim.Adam(weights, lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 0.5 * (1 + math.cos(math.pi * i / steps)))
    with torch.enable_grad():
        for _ in range(steps):
            b = int(torch.randint(B, (), generator=generator))
            at = int(torch.randint(T - width + 1, (), generator=generator))
            end = at + width
            made = _fitted(weights)
            weight = _weights(made, q[b : b + 1, at:end], k[b : b + 1, :end], logit[b : b + 1, at:end])
            log = (weight + 1e-20).log() - weight.sum(-1, keepdim=True).log()
            loss = -(alpha[b, :, at:end, :end] * log).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return _fitted([x.detach() for x in weights])


def _start(k: Tensor, n: int, generator: torch.Generator) -> list[Tensor]:
    """Draw the first weights for keys k [B,T,H,inputs].

    Queries and keys begin with the same features. Memories reach from one token to the whole text, evenly in log.
    """
    T, H, size = k.shape[1:]
    first = float(size**-0.5 / k.std().clamp_min(1e-3)) * torch.randn(H, n, size, generator=generator)
    reach = torch.logspace(0, math.log10(4 * T), 2 * n + 1)[1::2].expand(H, n)
    own = torch.zeros(H, 2 * size + 2)
    own[:, 0] = 1
    start = (first.clone(), torch.zeros(H, n), first.clone(), torch.zeros(H, n), own, -reach.log())
    return [x.to(k.device).requires_grad_() for x in start]


def _fitted(weights: list[Tensor]) -> Fitted:
    W, b, U, c, own, fade = weights
    return Fitted(W, b, U, c, own, -fade.exp())


def _weights(made: Fitted, q: Tensor, k: Tensor, logit: Tensor) -> Tensor:
    """Compute the weights [H,i,j], before they are divided by their sum, of a block of queries q [1,i,H,.].

    The keys k [1,j,H,.] end with those of the block.
    """
    (phi, psi, delta), g = (x[0] for x in made.features(q, k, logit)), made.log_decay
    width, at = len(phi), len(psi) - len(phi)
    ahead = torch.arange(width, device=q.device)
    inside = (ahead[:, None] - ahead - 1).clamp_min(0)[..., None, None]  # [i,j,1,1]
    later = (ahead[:, None] <= ahead)[..., None, None]
    # a^{i-1-j} = a^{i-at} a^{at-1-j} before the block, both factors at most 1
    before = psi[:at] * torch.exp(g * (at - 1 - torch.arange(at, device=q.device))[:, None, None])
    past = torch.einsum("ihn,jhn->hij", phi * torch.exp(g * ahead[:, None, None]), before)
    decay = torch.exp(g * inside).masked_fill(later, 0.0)  # [i,j,H,n]
    near = torch.einsum("ihn,ijhn,jhn->hij", phi, decay, psi[at:]) + torch.diag_embed(delta.T)
    return torch.cat([past, near], -1)
