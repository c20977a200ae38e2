"""Softmax attention with finitely many features of its exponential: linear systems, and how far off they are.

exp(q^T k) = phi(q)^T phi(k) with infinitely many features (arXiv 2405.15731, Lemma 1): `taylor` keeps those up to a
degree (Based, arXiv 2402.18668), `random_features` draws some (Performer, arXiv 2009.14794). Rotary phases become
rotations of q and k at absolute positions; a scalar decay of the weights stays one, outside the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..architectures.attention.performer import positive_features, random_directions
from ..architectures.attention.taylor import taylor_features
from ..errors import StateformError, require, require_seed
from ..forms.scores import absorbed
from ..system import System
from ..system.precision import upcast
from ..system.readout import LINEAR
from ..system.shapes import spread_heads
from .certificate import Conversion, certify, check_system, per_head, reference


def taylor(system: System, degree: int, *, rtol: float = 0.01, limit: float = 1e9) -> Conversion:
    """Replace exp by its Taylor polynomial: C(n + P, P) features, phi(q)^T phi(k) = sum_{p<=P} (q^T k)^p / p!.

    Args:
        system: with readout "exp", causal, without a window.
        degree: P. An odd one can make the normaliser vanish; `degree_needed` finds the least even one for an error.
        rtol: the relative error that `ok` allows.
        limit: bytes allowed for the features of q and k.

    Raises:
        StateformError: another kind of system, or too many features.
    """
    check_system(system, "taylor")
    require(isinstance(degree, int) and degree >= 0, f"degree is {degree!r}; expected a whole number, 0 or more")
    q, k = _absorbed(system)
    count = math.comb(q.shape[-1] + degree, degree)
    text = f"softmax by its Taylor polynomial of degree {degree}: {count} features"
    return _with_features(system, q, k, lambda x: taylor_features(x, degree), count, text, rtol, limit)


def random_features(
    system: System, n_features: int, *, seed: int = 0, generator: torch.Generator | None = None, rtol: float = 0.1,
    limit: float = 1e9,
) -> Conversion:  # fmt: skip
    """Replace exp by an average over random directions w: phi(x) = exp(w_r^T x - |x|^2 / 2) / sqrt(m), all positive.

    The error falls as 1 / sqrt(m), and grows with the size of q and k.

    Args:
        system: with readout "exp", causal, without a window.
        n_features: m.
        seed: of the draw.
        generator: to draw with instead (on the CPU).
        rtol: the relative error that `ok` allows.
        limit: bytes allowed for the features of q and k.

    Raises:
        StateformError: another kind of system, or too many features.
    """
    check_system(system, "random_features")
    require_seed(seed)
    require(isinstance(n_features, int) and n_features >= 1, f"n_features is {n_features!r}; expected 1 or more")
    q, k = _absorbed(system)
    generator = generator if generator is not None else torch.Generator().manual_seed(seed)
    w = random_directions(n_features, q.shape[-1], generator)
    text = f"softmax by {n_features} random features"
    return _with_features(system, q, k, lambda x: positive_features(x, w), n_features, text, rtol, limit)


@torch.no_grad()
def degree_needed(system: System, rtol: float, *, most: int = 64, limit: float = 1e9) -> int:
    """Find the least even degree at which `taylor` is within a relative error of `rtol` in every head, on this input.

    Found from the logits x_ij = q_i^T k_j alone, without features: alpha_ij ~ sum_{p<=P} x_ij^p / p!.

    Args:
        system: as for `taylor`.
        rtol: the largest relative error of a head.
        most: the largest degree tried.
        limit: bytes allowed for the logits [B,H,T,T].

    Raises:
        StateformError: if no degree up to `most` is enough.
    """
    check_system(system, "degree_needed")
    require(0 < rtol < math.inf, f"rtol is {rtol}; expected a number above 0")
    system = system.to(torch.float64)
    q, k = _absorbed(system)
    B, T, H = system.B, system.T, system.H
    _check_size(8 * B * H * T * T, limit, f"the logits [{B},{H},{T},{T}]", "a shorter stretch, system[start:stop]")
    q, k = (spread_heads(x, H).expand(-1, -1, H, -1) for x in (q, k))
    x = torch.einsum("bihn,bjhn->bhij", q, k)
    one = torch.ones(B, T, 1, 1, dtype=torch.float64, device=system.device)
    assert system.v is not None
    kept = System(one, one, one, log_decay=system.parts.get("forget")).coefficients(
        limit=limit
    )  # the decay from j to i
    kept = spread_heads(kept, H, axis=1)
    own = torch.diag_embed((system.gate("d").expand(B, T, H)).movedim(1, 2))
    v, want = upcast(spread_heads(system.v, H)).expand(-1, -1, H, -1), reference(system)
    term, polynomial, error = torch.ones_like(x), torch.ones_like(x), math.inf
    for p in range(1, most + 1):
        term = term * x / p
        polynomial = polynomial + term
        if p % 2:
            continue
        weights = kept * polynomial + own
        eta = weights.sum(-1) if system.eta == "sum" else system.gate("eta", 1.0).movedim(1, 2)
        if system.eta_floor is not None:
            eta = torch.maximum(eta.abs(), system.gate("eta_floor").movedim(1, 2))
        error = max(per_head(torch.einsum("bhij,bjhp->bihp", weights / eta.unsqueeze(-1), v), want))
        if error <= rtol:
            return p
    raise StateformError(
        f"degree {most} still has the error {error:.2g} > {rtol:.2g}: the largest logit is {float(x.abs().max()):.3g}, "
        "and about so many terms are needed; scale q or k down, or take a larger `most`"
    )


def _absorbed(system: System) -> tuple[Tensor, Tensor]:
    """Give real q and k [B,T,heads,n'] of an exp readout: phases as rotations, b inside k."""
    require(system.readout.cached, f'the readout is "{system.readout}" already; expected "exp" (softmax)')
    require(system.causal, "a system with causal=False has no recurrence; expected a causal one")
    require(system.window is None,
            f"a window of {system.window} tokens is no linear recurrence; expected window=None")  # fmt: skip
    cache = absorbed(system, "a feature expansion")
    return cache.q, cache.keys


def _with_features(
    system: System, q: Tensor, k: Tensor, features: Callable[[Tensor], Tensor], count: int, text: str, rtol: float,
    limit: float,
) -> Conversion:  # fmt: skip
    numbers = (q[..., 0].numel() + k[..., 0].numel()) * count
    _check_size(numbers * upcast(q).element_size(), limit, f"{count} features of each query and key",
                "fewer features, a shorter stretch system[start:stop]")  # fmt: skip
    new = replace(
        system,
        q=features(q),
        k=features(k),
        readout=LINEAR,
        log_decay=system.parts.get("forget"),
        phase=None,
        b=None,
        log_b=None,
    )  # the decay of the weights becomes that of the state; d and eta stay
    return certify(new, system, text, rtol=rtol)


def _check_size(size: float, limit: float, what: str, instead: str) -> None:
    given = f"{what} would take {size / 1e9:.2g} GB; the limit is {limit / 1e9:.2g} GB"
    require(size <= limit, f"{given}: choose {instead}, or limit=")
