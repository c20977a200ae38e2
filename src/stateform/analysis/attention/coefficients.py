"""The effective attention of any system, as one number per query and key: all of it, a band, or through a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import require
from ...forms import run
from ...forms.ridge import as_linear
from ...forms.stabilise import stabilise
from ...system import System

TILE = 2**22
"""Numbers that the coefficients written out side by side may take, one row of the batch and one head."""


def has_weights(system: System) -> bool:
    """True if the coefficients are scalar weights of values (else they are norms of vector contributions)."""
    return system.v is not None and system.q is not None and system.q.ndim in (2, 4)


def influence(system: System, *, heads: Sequence[int] | None = None, queries: Sequence[int] | None = None) -> Tensor:
    """Compute how much token j counts in the output at i, [B,H,queries,T].

    The weights alpha_ij themselves (signed) where values are weighted by scalars; for vector states the norm of the
    contribution. Micro-steps of one token are added up.

    Args:
        system: any system, from a zero state.
        heads: the heads wanted (default all; with an output map all heads count together).
        queries: the tokens i wanted (default all).

    Raises:
        StateformError: if the result would be too large (see System.coefficients).
    """
    if has_weights(system):
        alpha = system.coefficients(heads=heads, queries=queries)
    else:
        alpha = system.contributions(heads=heads, queries=queries).norm(dim=-1)
    return alpha if system.micro == 1 else alpha.unflatten(-1, (system.T, system.micro)).sum(-1)


@torch.no_grad()
def influence_band(
    system: System, width: int, *, heads: Sequence[int] | None = None, limit: float = 1e9
) -> Tensor:  # fmt: skip
    """Compute `influence` of the last `width` tokens alone, without T x T: [B,H,T,width], entry d of token i - d.

    But for its normaliser, alpha_ij = phi(q_i^T A_i ... A_{j+1} b_j k_j) / eta_i is made of the steps j..i alone: a
    tile of queries needs the tokens up to width - 1 before it, and eta is a read of the system itself. Memory is
    linear in T; so is the work, but for a softmax without a window, whose normaliser looks at every pair.

    Args:
        system: any causal system, from a zero state.
        width: tokens back, the query's own included. Entries before the first token are 0.
        heads: the heads wanted (default all; with an output map all heads count together).
        limit: bytes allowed for the result; a larger one is refused before any work.

    Raises:
        StateformError: no width, a system that is not causal, or a result that would be too large.
    """
    require(isinstance(width, int) and width >= 1, f"width is {width!r}; expected a number of tokens, 1 or more")
    require(system.causal, "a band of the past needs a causal system; use influence(system)")
    T, width = system.T, min(width, max(1, system.T))
    system = system if heads is None else system.select_heads(heads)
    H = 1 if system.w_out is not None else system.H
    size = system.B * H * T * width * system.k.element_size()
    require(
        size <= limit,
        f"a band [{system.B},{H},{T},{width}] would take {size / 1e9:.2g} GB; the limit is {limit / 1e9:.2g} GB: "
        "choose a smaller width, heads=, a shorter system[start:stop], or limit=",
    )
    whole_past = system.readout.cached and system.window is None and system.eta == "sum"
    rows, eta = (system, None) if system.readout.cached else without_normaliser(system)
    step = max(1, TILE // T) if whole_past else max(64, min(width, TILE // (2 * width)))
    back = width - 1 if system.window is None or not system.readout.cached else max(width, system.window) - 1
    parts = []
    for start in range(0, T, step):
        stop, first = min(start + step, T), 0 if whole_past else max(0, start - back)
        at = range(start - first, stop - first) if whole_past else None
        alpha = influence(rows[first:stop], queries=at)[..., start - stop :, :]
        i = torch.arange(start, stop, device=alpha.device)[:, None] - first
        j = i - torch.arange(width, device=alpha.device)
        band = alpha.gather(-1, j.clamp_min(0).expand(*alpha.shape[:-1], width))
        parts.append(torch.where(j >= 0, band, torch.zeros((), dtype=band.dtype, device=band.device)))
    out = torch.cat(parts, -2) if parts else torch.zeros(system.B, H, 0, width, dtype=system.dtype)
    return out if eta is None else out / eta.transpose(1, 2).unsqueeze(-1)


def without_normaliser(system: System) -> tuple[System, Tensor | None]:
    """Take the division by the sum of weights off a system; give it and that sum (or its floor) [B,T,H]."""
    if system.readout.gram:
        system = as_linear(system)
    if not isinstance(system.eta, str):
        return system, None
    if system.log_b is not None:
        system = stabilise(system)[0]
    rows = replace(system, eta=None, eta_floor=None)
    return rows, normaliser(system)


def normaliser(system: System) -> Tensor:
    """Compute eta_i, the sum of the unnormalised weights with its floor, [B,T,H]: the read if all values are 1.

    Args:
        system: with eta = "sum" and a linear readout; without log_b (see `stabilise`).
    """
    require(system.eta == "sum" and system.readout.linear and system.log_b is None and system.v is not None,
            'normaliser needs eta = "sum", a linear readout, values and a plain b (see stabilise)')  # fmt: skip
    assert system.v is not None
    ones = torch.ones_like(system.v[..., :1])
    eta = run(replace(system, v=ones, eta=None, eta_floor=None))
    eta = eta.squeeze(-1)
    return eta if system.eta_floor is None else torch.maximum(eta.abs(), system.gate("eta_floor").to(eta.dtype))


# -- a stack of layers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollout:
    """The input-output map of stacked layers, everything but the residual stream held fixed."""

    map: Tensor
    """[B,T,T], token j's share in the stream at i after the last layer; with value maps [B,T,o,T,i]."""
    layers: int
    skip: float
    normalised: bool
    held: str
    """What is held fixed."""

    def weights(self) -> Tensor:
        """Give the map itself, [B,T,T], or the Frobenius norms of its blocks."""
        return self.map if self.map.ndim == 3 else self.map.norm(dim=(2, 4))

    @property
    def causal(self) -> bool:
        """True if no output depends on a later token."""
        return not bool(self.weights().triu(1).any())

    def receptive_field(self, share: float = 0.95) -> Tensor:
        """Count the tokens back that hold `share` of the weight of each output, [B,T].

        Raises:
            StateformError: a map that is not causal.
        """
        require(self.causal, "tokens back need a causal stack: here outputs depend on later tokens; see weights()")
        weights = self.weights()
        return tokens_back(weights.abs(), range(weights.shape[-1]), share)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers."""
        return {"layers": self.layers, "skip": self.skip, "normalised": self.normalised, "held": self.held,
                "weights": self.weights().tolist()}  # fmt: skip

    def __str__(self) -> str:
        rows = "rows that sum to 1" if self.normalised else "signed weights"
        reach = "outputs depend on later tokens too"
        if self.causal:
            field = self.receptive_field().double()
            middle, most = float(field.quantile(0.5)), float(field.max())
            reach = f"95% of an output comes from the last {middle:.0f} tokens (median; largest {most:.0f})"
        return (
            f"rollout through {self.layers} layers over {self.map.shape[1]} tokens ({rows}, skip {self.skip:g})\n"
            f"{reach}\nheld fixed: {self.held}"
        )


@torch.no_grad()
def rollout(
    systems: Sequence[System], *, maps: Sequence[Tensor] | None = None, skip: float = 1.0, normalise: bool = False,
    limit: float = 1e9,
) -> Rollout:  # fmt: skip
    """Compute the input-output map of a stack of layers on a residual stream, x <- skip x + mixer(x):

        Phi = (skip I + Phi_L) ... (skip I + Phi_1),     Phi_l = sum_h alpha^h (x) M_h

    with alpha^h the coefficients of head h and M_h its value and output map, W_O^h W_V^h. Exact for layers that are
    linear in their values, with all else held fixed: it is then the Jacobian of the stream. Without the maps M_h the
    heads count alike, Phi_l = mean_h alpha^h, a map from tokens to tokens; with `normalise` (every row of
    |skip I + Phi_l| made to sum to 1) and skip = 1 that is, for softmax, attention rollout
    (Abnar and Zuidema, arXiv 2005.00928: A_l <- (A_l + I) / 2).

    Args:
        systems: of the layers, first to last; from a model by `systems_of(model, tokens)`. Vector states have no
            scalar weights: the norms of their contributions are taken.
        maps: of each layer, M [H,o,i] with o = i the width of the stream; of complex values complex, read by Re.
        skip: weight of the stream itself (a model's lambda).
        normalise: rows as shares.
        limit: bytes allowed.

    Raises:
        StateformError: no systems, lengths that differ, maps that do not fit, or a result that would be too large.
    """
    require(len(systems) > 0, "rollout needs at least one system; systems_of(model, tokens) gives those of a model")
    sizes = {(s.B, s.T) for s in systems}
    require(len(sizes) == 1, f"the systems have batch and length {sorted(sizes)}; expected the same for all layers")
    require(
        maps is None or (len(maps) == len(systems) and not normalise),
        "give one value map M [H,o,i] a layer, and no normalise with them (rows of matrices have no one sum)",
    )
    B, T = sizes.pop()
    d = 1 if maps is None else maps[0].shape[-1]
    bytes_needed = 4 * B * (T * d) ** 2 * systems[0].k.element_size()
    require(
        bytes_needed <= limit,
        f"a rollout over {T} tokens of width {d} would take {bytes_needed / 1e9:.2g} GB; the limit is "
        f"{limit / 1e9:.2g} GB: take fewer tokens, leave out maps=, or set limit=",
    )
    total: Tensor | None = None
    for at, system in enumerate(systems):
        alpha = influence(system)
        if maps is None:
            step = alpha.mean(1)
        else:
            M = maps[at]
            require(
                M.shape == (alpha.shape[1], d, d) and has_weights(system),
                f"M of layer {at} is {list(M.shape)}; expected [{alpha.shape[1]},{d},{d}], with scalar weights",
            )
            M, alpha = (x.to(torch.promote_types(M.dtype, alpha.dtype)) for x in (M, alpha))
            step = torch.einsum("bhij,hoe->bioje", alpha, M).flatten(3).flatten(1, 2)
        step = step.real if step.is_complex() else step  # the layer gives the real part
        step = step + skip * torch.eye(T * d, dtype=step.dtype, device=step.device)
        if normalise:
            step = step.abs() / step.abs().sum(-1, keepdim=True)
        total = step if total is None else step @ total.to(step.dtype)
    assert total is not None
    held = "q, k, decays, gates, normalisers and (where there are any) norms" + (
        "; the heads count alike and their value maps as the identity" if maps is None else ""
    )
    return Rollout(total if maps is None else total.unflatten(1, (T, d)).unflatten(3, (T, d)), len(systems), skip,
                   normalise, held)  # fmt: skip


@torch.no_grad()
def systems_of(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, System]:
    """Record the System of every layer inside a model on an input, by the layer's name, in the order they are made.

    The model is run once, as it is, with what its layers hand on to each other. A nonlinear cell gives its
    linearisation along its trajectory.

    Args:
        model: any module with layers that have `system` in it; a layer itself gives {"": system}.
        inputs: what the model is called with, whole sequences without padding.
        options: likewise.

    Raises:
        StateformError: no layer of the model made a System.
    """
    found: dict[str, System] = {}
    with _recorded(model, found):
        model(*inputs, **options)
    require(len(found) > 0, f"no layer of this {type(model).__name__} made a System: it has none with system(u)")
    return found


@contextmanager
def _recorded(model: nn.Module, found: dict[str, System]) -> Iterator[None]:
    """Record in `found`, while inside, every System that a layer of the model makes."""
    layers = {name: m for name, m in model.named_modules() if callable(getattr(m, "system", None))}

    def recording(name: str, make: Callable[..., System]) -> Callable[..., System]:
        def system(*args: Any, **options: Any) -> System:
            made = make(*args, **options)
            if name not in found or made.T > found[name].T:  # a blank state is asked for with a single token
                found[name] = made
            return made

        return system

    def computed(name: str) -> Callable[..., None]:
        def after(layer: Any, args: tuple[Any, ...], output: Any) -> None:
            if name not in found:  # a cell takes its steps without its system
                layer.system(args[0])

        return after

    hooks = []
    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_hook(computed(name)))
            layer.__dict__["system"] = recording(name, layer.system)
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("system", None)
        for hook in hooks:
            hook.remove()


def tokens_back(mass: Tensor, queries: Sequence[int], share: float) -> Tensor:
    """Find the least d such that the last d tokens of query i, i itself included, hold `share` of its mass.

    Args:
        mass: [...,queries,T], not negative.
        queries: the tokens i of the rows.
        share: of the sum of a row up to i.

    Returns:
        d [...,queries], 1 where a row is all zero.
    """
    at = torch.tensor(list(queries), device=mass.device)
    j = torch.arange(mass.shape[-1], device=mass.device)
    mass = mass.masked_fill(at[:, None] < j, 0.0)
    back = mass.flip(-1).cumsum(-1).flip(-1)  # back[j]: mass of j and everything after it
    enough = back >= share * back[..., :1] * (1 - 1e-12)
    return at - torch.where(enough, j, 0).amax(-1).minimum(at) + 1
