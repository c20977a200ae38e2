"""A System in words: its transition, what is read, and whether a step can amplify."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..system import System
from ..system.core import fold
from .linear.spectrum import Spectrum, spectrum

DECAY = ("log_decay", "rate", "phase", "sign", "transition")
TRANSITION = (*DECAY, "f", "w")
"""The parts of which A_t is made."""


def constant_transition(system: System) -> bool:
    """True if A_t is the same for every token and input."""
    return all(system.is_constant(name) for name in TRANSITION if name in system.tensors())


def describe(system: System) -> str:
    """Say the transition in words; of a chain, that of each System."""
    return _then(_describe_cache(x) if x.readout.cached else _describe_transition(x) for x in system.systems)


def _then(words: Iterable[str]) -> str:
    return ", then ".join(words)


OUTSIDE = {
    "forget": "weights fade with distance", "bias": "a bias for each key", "distance": "a bias for each distance",
    "blocks": "blocks of keys are shown or hidden", "sink": "a sink takes its share",
    "sink_value": "which has a value", "cap": "logits are bounded",
}  # fmt: skip
"""What a softmax readout may do besides, in words."""


def _describe_cache(system: System) -> str:
    readout, parts = system.readout, system.parts
    near = (
        f"the last {readout.window} tokens are kept"
        if readout.causal
        else f"those less than {readout.window} away are seen"
    )
    words = f"none: {'every token is kept' if readout.window is None else near}"
    moved = [name for name in TRANSITION if name in parts]
    if moved == ["phase"]:
        words += " (keys rotated by position)"
    elif moved:
        words += f" (keys moved: {_describe_transition(system)})"
    return ", ".join([words, *(said for name, said in OUTSIDE.items() if getattr(readout, name, None) is not None)])


def _describe_transition(system: System) -> str:
    parts = system.tensors()
    feedback = system.f is not None
    where = "constant" if constant_transition(system) else "from the input"
    if not any(x in parts for x in DECAY):
        words = f"identity, with rank-1 feedback {where}" if feedback else "no decay (A = I)"
    else:
        owner = "channel" if system.n == 1 and system.p == 1 else "key" if system.decay_kind == "diagonal" else "head"
        kind = f"{'complex ' if system.is_complex else ''}{system.decay_kind}"
        shared = kind == "dense" and parts["transition"].shape[-3] == 1
        words = (
            (kind if shared else f"{kind} per {owner}") + f", {where}" + (", with rank-1 feedback" if feedback else "")
        )
        if system.transition is not None and not feedback and bool((system.transition.triu() == 0).all()):
            words += ", nilpotent"
    return words + (f", {system.micro} steps a token" if system.micro > 1 else "")


def describe_read(system: System) -> str:
    """Say the readout in words; of a chain, that of each System."""
    return _then(map(_describe_read, system.systems))


def _describe_read(system: System) -> str:
    if system.readout.cached:
        return "softmax" if system.eta == "sum" else "exponential"
    if not system.readout.linear:
        return "ridge regression" if system.readout.gram else str(system.readout)
    if system.q is None:
        words = "whole state" if system.w_out is None else "dense map of the state"
    else:
        words = "the state" if system.n == 1 and system.is_constant("q") else "linear"
    if system.exclusive:
        words += ", before the write"
    if isinstance(system.eta, Tensor):
        words += ", over " + ("a constant" if system.is_constant("eta") else "a function of the token")
    elif system.eta == "sum":
        words += ", over the sum of weights" + (" or a floor" if system.eta_floor is not None else "")
    return words


def contraction(
    system: System, *, promised: bool = False, found: Spectrum | None = None, where: str = "on this text"
) -> tuple[str, str]:
    """Tell whether a step can amplify the state: "by construction", "no", or `where` it was seen not to; and why.

    Args:
        system: any system.
        promised: the layer says that no decay exceeds 1, for any input.
        found: the spectrum of the system, if it is known already.
        where: what the system is that of.
    """
    if system.readout.cached:
        if system.eta != "sum":
            return "no", "unnormalised weights can grow without bound"
        return "by construction", "weights are positive and sum to one: outputs stay within the values"
    if system.decay_kind == "identity" and system.f is None:
        return "by construction", "A = I: nothing is lost and nothing grows in a step (not strictly contractive)"
    norm = (spectrum(system) if found is None else found).norm
    if norm > 1 + 1e-9:
        return "no", f"{where} a step stretches some state by {norm:.3g}"
    if promised:
        return "by construction", f"no decay exceeds 1 for any input; largest norm {where} {norm:.6f}"
    return where, f"largest norm of a transition seen: {norm:.6f}"


def token_steps(system: System) -> Tensor:
    """Write out A_t of single micro-steps: [B|1, steps|1, H|1, n, n]."""
    return fold(system).transition().dense(system.n).flatten(2, 3)


def token_transitions(system: System) -> Tensor:
    """Write out A_t of whole tokens, the product of their micro-steps: [B|1, T|1, H|1, n, n]."""
    steps = token_steps(system)
    if system.micro == 1 or constant_transition(system):
        return torch.linalg.matrix_power(steps, system.micro)
    A, *later = steps.unflatten(1, (-1, system.micro)).unbind(2)
    for step in later:
        A = step @ A
    return A
