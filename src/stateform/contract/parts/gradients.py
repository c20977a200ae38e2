"""Gradients of a layer's systems."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ...forms import backend, exists, run
from ...system import System
from ...system.precision import GRADIENT, UNIT, tolerance
from ...system.state import State
from ..draws import normal, some_state
from ..layer import LayerRunner

_UNASKED = ("w_in", "sign")
"""Constants of a system that no gradient is promised to."""


def gradients(b: LayerRunner) -> None:
    """Compare gradients of outputs and final state to every input and the initial state: each form with the recurrence
    in torch, and the recurrence with finite differences.
    """
    if not b.ours:
        return
    T = 200 if b.exhaustive else 70
    layer = b.drawn()
    with torch.no_grad():
        own = layer.system(layer.input(2, T)).to(torch.float64).detach()
    for system in own.systems:
        _of_system(b, system)
    _through(b, layer)


def _of_system(b: LayerRunner, system: System) -> None:
    loss, T = _Loss(system, some_state(system), b.generator), system.T
    with backend("torch"):
        want = loss.gradients("recurrent")
    for name, g in want.items():
        lost = name == "initial state" and _forgets(system)
        b.report.expect(b.part, lost or bool(g.abs().max() > 0), f"the gradient of {name} is zero")
    for form in exists(system):
        got = loss.gradients(form)
        for name, g in want.items():
            where, allowed = f"form {form}, gradient of {name}", GRADIENT * tolerance(torch.float64, T)
            b.report.compare(b.part, where, got[name], g, allowed, floor=floor_of(want.values()))
    for name, x in system.tensors().items():
        if name not in _UNASKED and not (name in ("log_decay", "forget") and bool(torch.isinf(x).any())):
            _along_a_direction(b, loss, name, want[name])


def _forgets(system: System) -> bool:
    """True if the first step erases all that was before it."""
    g = system.parts.get("log_decay")
    return g is not None and not system.is_constant("log_decay") and bool(torch.isneginf(g[:, 0]).all())


def _through(b: LayerRunner, layer: LayerRunner) -> None:
    """Compare the gradient of a layer's outputs to its inputs, through all of its systems, with finite differences."""
    x, start = layer.input(2, 9), layer.oracle(layer.input(2, 5))[1].detach()
    weight, direction = normal(x.shape, b.generator).to(x), normal(x.shape, b.generator).to(x)

    def value(x: Tensor) -> Tensor:
        return (layer.call(x, "recurrent", initial_state=start)[0] * weight).sum()

    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf), leaf)
    _along(b, "the inputs", value, x, found, direction)


def floor_of(found: Iterable[Tensor]) -> float:
    """Find the least scale on which gradients are compared. One that cancels to nothing (the bias of softmax's keys,
    say) still carries the rounding of what cancelled, which is of the size of the other gradients.
    """
    return 1e-3 * max(float(g.abs().max()) for g in found if g.numel())


class _Loss:
    """A random number of every output and of the final state of a system."""

    def __init__(self, system: System, start: State | None, generator: torch.Generator) -> None:
        self.system, self.start, self.generator = system, start, generator
        self.weights: dict[str, Tensor] = {}

    def __call__(self, system: System, state: State | None, form: str) -> Tensor:
        y, end = run(system, form, initial_state=state, return_state=True)
        total = torch.zeros((), dtype=torch.float64, device=y.device)
        last = {k: x for k, x in end.tensors.items() if k in ("S", "keys", "moved_keys", "values")}
        if "log_scale" in end:  # the coordinates of the state may change, the state itself may not
            last["S"] = end["S"] * end["log_scale"].exp()[..., None, None]
        for key, x in (("y", y), *last.items()):
            x = torch.view_as_real(x) if x.is_complex() else x
            if key not in self.weights:
                self.weights[key] = normal(x.shape, self.generator).to(x.device)
            total = total + (x * self.weights[key]).sum()
        return total

    def gradients(self, form: str) -> dict[str, Tensor]:
        """Compute the gradients, by the name of what is derived by; zeros where nothing depends on it."""
        leaf = self.system.map(lambda _, x: x.detach().clone().requires_grad_())
        inputs, state = dict(leaf.tensors()), self.start
        if state is not None and "S" in state:
            tensors = {k: x.detach().clone().requires_grad_(k == "S") for k, x in state.tensors.items()}
            state = State(tensors, state.fingerprint)
            inputs["initial state"] = state["S"]
        value = self(leaf, state, form)
        out = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
        found = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(inputs.items(), out, strict=True)}
        return {k: g for k, g in found.items() if k not in _UNASKED}


def _along_a_direction(b: LayerRunner, loss: _Loss, name: str, gradient: Tensor) -> None:
    """Derive the recurrence in a direction by central differences: error about h^2 plus rounding over h. Where a kink
    (of a floored normaliser, say) is nearer than h, a smaller h tells.
    """
    x = loss.system.tensors()[name]
    direction = normal(x.shape, b.generator).to(x)

    def value(x: Tensor) -> Tensor:
        return loss(loss.system.map(lambda k, old: x if k == name else old), loss.start, "recurrent")

    _along(b, name, value, x, gradient, direction)


def _along(
    b: LayerRunner, name: str, value: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, direction: Tensor
) -> None:
    g, along = (torch.view_as_real(z) if x.is_complex() else z for z in (gradient, direction))
    expected = float((g * along).sum())
    size = max(float(gradient.abs().max() * direction.abs().sum().sqrt()), abs(expected))
    for h in (1e-5, 1e-6, 1e-7):
        with torch.no_grad():
            up, down = (value(x + direction * by) for by in (h, -h))
        slope = float(up - down) / (2 * h)
        allowed = max(
            1e-5 * size, UNIT[torch.float64] * abs(float(up)) / h
        )  # where nothing depends on it: 0 to rounding
        if abs(slope - expected) <= allowed:
            break
    text = f"along a direction the gradient of {name} says {expected:.8g}, differences {slope:.8g}"
    b.report.expect(b.part, abs(slope - expected) <= allowed, text)
