"""The recurrence of a layer's systems against the three equations, and every form against the recurrence."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ...forms import backend, exists, run
from ...system import System
from ...system.precision import HALF, UNIT, relative_error, tolerance, wide
from ...system.state import PRECISE, State
from ..definition import defined, defined_coefficients
from ..draws import REGIMES, in_regime, sensitivity, short, some_state
from ..layer import LayerRunner

# -- the equations ---------------------------------------------------------------------------------------------------


def equations(b: LayerRunner) -> None:
    """Compare the recurrence of the layer's own systems, and their coefficients, with the definition: a plain loop over
    the three equations. Inputs ten times as large, in float32 too, give finite numbers and keep to it as well.
    """
    if not b.ours:
        return
    for T in b.lengths((1, 33), (1, 2, 63, 130)):
        layer = b.drawn()
        with torch.no_grad():
            for regime in REGIMES:
                own = layer.system(layer.input(2, T)).to(torch.float64)
                for one in own.systems:
                    exact = in_regime(one, regime, b.generator)
                    if exact is not None:
                        _is_defined(b, exact, f"{regime} decays, T = {T}")
            for dtype in (torch.float64, torch.float32):
                other = layer.in_precision(dtype, T)
                x = 10 * other.input(2, T)
                known = _in_range(layer.system(wide(x)), dtype)
                for large in other.system(x).systems:
                    _is_defined(b, large if known == T else large[:known], f"inputs times 10, {short(dtype)}, T = {T}")


def _in_range(own: System, dtype: torch.dtype) -> int:
    """Count the tokens before the first one for which a layer, in float64, has a number too large for a precision.

    What learns by descent may diverge, as descent does. NaN and infinity are no large numbers: they are faults.
    """
    known = own.T
    for system in own.systems:
        for name, x in system.parts.items():
            if not system.is_constant(name):
                size = x.abs().transpose(0, 1).flatten(1)  # [steps,...]
                large = (size.isfinite() & (size > torch.finfo(dtype).max ** 0.5)).any(1).nonzero()
                known = min([known, *(int(step) * system.T // len(size) for step in large[:1])])
    return known


def _is_defined(b: LayerRunner, system: System, where: str) -> None:
    """Compare the recurrence in torch of one system, from some state, with its definition."""
    start = None if system.readout.cached else some_state(system)
    with backend("torch"):
        y, end = run(system, "recurrent", initial_state=start, return_state=True)
    want, S = defined(system, initial_state=start)
    noise, double = 2.0**-30, system.k.dtype in (torch.float64, torch.complex128)
    near, near_S = defined(system, initial_state=start, noise=noise)
    dtype = torch.float64 if double else torch.float32

    def compare(what: str, *results: Tensor) -> None:
        got, want, near = (x.to(system.k.device) for x in results)
        lost = 4 * float(relative_error(near, want, heads=True).max()) / noise
        b.report.compare(b.part, what, got, want, tolerance(dtype, system.T) + lost * UNIT[dtype], heads=True)

    compare(f"y, {where}", y, want, near)
    if S is not None and near_S is not None:
        got = end["S"] * end["log_scale"].exp()[..., None, None] if "log_scale" in end else end["S"]
        got = got.repeat_interleave(system.H // got.shape[1], 1)
        compare(f"the state, {where}", *(x.transpose(1, 2) for x in (got, S, near_S)))  # heads on axis 2
    if double and system.v is not None and system.q is not None and system.q.ndim in (2, 4):
        alpha, near_alpha = (defined_coefficients(system, noise=x).squeeze(2) for x in (0.0, noise))
        found = (system.coefficients().real, alpha, near_alpha)
        compare(f"the coefficients, {where}", *(x.transpose(1, 2) for x in found))


# -- the forms -------------------------------------------------------------------------------------------------------


def forms(b: LayerRunner) -> None:
    """Compare all forms of the layer's systems, in all regimes and precisions, with the float64 recurrence in torch."""
    if not b.ours:
        return
    for T in b.lengths((1, 97), (1, 2, 63, 64, 65, 200, 1000)):
        layer = b.drawn()
        with torch.no_grad():
            own: System = layer.system(layer.input(2, T)).to(torch.float64)
            for one, regime in itertools.product(own.systems, REGIMES):
                exact = in_regime(one, regime, b.generator)
                if exact is None:
                    continue
                lost = 4 * sensitivity(exact, some_state(exact), b.generator)
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    _agree(b, _cast(exact, dtype), dtype, lost, regime)


def _agree(b: LayerRunner, given: System, dtype: torch.dtype, lost: float, regime: str) -> None:
    """Compare every form of one system in a precision with the recurrence over the same numbers in float64."""
    T, unit = given.T, UNIT[torch.float32 if dtype in HALF else dtype]
    oracle = _cast(given, torch.float64)
    start = some_state(oracle)
    with backend("torch"):
        want, end = run(oracle, "recurrent", initial_state=start, return_state=True)
    low = None if start is None else _cast_state(start, dtype)
    for form in exists(given):
        got, state = run(given, form, initial_state=low, return_state=True)
        where = f"form {form}, {regime} decays, {short(dtype)}, T = {T}"
        rounded = 4 if given.readout.cached else 1  # fused attention rounds q, k, the weights and y
        allowed = tolerance(dtype, T, rounded=rounded) + lost * unit
        b.report.compare(b.part, where, got, want, allowed, heads=True)
        kept = torch.float32 if dtype in HALF and "S" in end else dtype
        b.compare_states(where, state, end, tolerance(kept, T))


def _cast(system: System, dtype: torch.dtype) -> System:
    """Cast to a precision; decays and complex parts of a half precision system stay at float32."""
    if dtype not in HALF:
        return system.to(dtype)
    gates = ("log_decay", "forget", "rate", "phase", "log_b", "eta", "eta_floor")
    return system.map(
        lambda name, x: x.to(torch.complex64) if x.is_complex() else x.to(torch.float32 if name in gates else dtype)
    )


def _cast_state(state: State, dtype: torch.dtype) -> State:
    real = torch.float32 if dtype in HALF else dtype

    def one(name: str, x: Tensor) -> Tensor:
        if name in ("position", "angle"):
            return x
        target = real if name in PRECISE else dtype
        return x.to(target.to_complex()) if x.is_complex() else x.to(target)

    return State({k: one(k, x) for k, x in state.tensors.items()}, state.fingerprint)
