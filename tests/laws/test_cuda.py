"""On a GPU: every layer keeps the contract there, and gives what it gives on the CPU. Skipped where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.architectures import REGISTRY, accepted
from stateform.contract.draws import sensitivity
from stateform.contract.outcome import Report
from stateform.system.precision import GRADIENT, HALF, PROJECTED, UNIT, relative_error, tolerance, wide

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

B, T, D = 2, 70, 16
ALL = pytest.mark.parametrize("name", sf.names())


def layer(name: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    small = {"d_state": 8} if "d_state" in accepted(REGISTRY[name].cls) else {}
    return sf.build(name, d_model=D, **small).to(dtype).eval()


def x(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def rounding(m: Any, u: Tensor) -> float:
    """What two computations in the dtype of u may differ by."""
    allowed = tolerance(u.dtype, T, rounded=PROJECTED)
    system = copy.deepcopy(m).double().system(u.double())
    if system.readout.gram:  # solving its equations costs the digits of their condition number
        lost = 4 * sensitivity(system, None, torch.Generator().manual_seed(2))
        allowed += lost * UNIT[torch.float32 if u.dtype in HALF else u.dtype]
    return allowed


@ALL
def test_layer_keeps_the_contract(name: str) -> None:
    """Every form in three precisions, gradients, splits, steps, padding and packing, all on the GPU."""
    torch.manual_seed(0)
    report = sf.check(sf.build(name, d_model=D).to(DEVICE))
    assert report.ok, str(report)


@ALL
def test_outputs_and_gradients_as_on_the_cpu(name: str) -> None:
    here, u = layer(name), x()
    there, report = copy.deepcopy(here).to(DEVICE), Report(name)
    weights = torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def results(m: Any, u: Tensor, form: str) -> dict[str, Tensor]:
        u = u.clone().requires_grad_()
        y, state = m(u, form=form, return_state=True)
        leaves = {"x": u, **dict(m.named_parameters())}
        found = torch.autograd.grad((y * weights.to(u)).sum(), list(leaves.values()), allow_unused=True)
        named = {f"gradient of {k}": g for k, g in zip(leaves, found, strict=True) if g is not None}
        return {"y": y} | {f"state {k}": s for k, s in state.tensors.items()} | named

    for form in here.forms(u):
        want, got = results(here, u, form), results(there, u.to(DEVICE), form)
        assert set(want) == set(got)
        floor = 1e-3 * max(float(g.abs().max()) for k, g in want.items() if k.startswith("gradient"))
        for k, w in want.items():
            of_gradient = k.startswith("gradient")
            allowed = tolerance(u.dtype, T) * (GRADIENT if of_gradient else 1)
            report.compare("cpu", f"form {form}, {k}", got[k].cpu(), w, allowed, floor=floor if of_gradient else 0.0)
    assert report.ok, str(report)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_reduced_precision_as_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    here, u = layer(name, dtype), x(dtype)
    there, report = copy.deepcopy(here).to(DEVICE), Report(name)
    want, allowed = here(u, form="recurrent"), rounding(here, u)
    for form in here.forms(u):
        y = there(u.to(DEVICE), form=form)
        assert y.dtype == dtype and y.device.type == DEVICE
        report.compare("cpu", f"form {form}", y.cpu(), want, allowed)
    assert report.ok, str(report)


@ALL
@torch.no_grad()
def test_autocast(name: str) -> None:
    m, u = layer(name, torch.float32).to(DEVICE), x(torch.float32).to(DEVICE)
    want, kept = m(u, return_state=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y, state = m(u, return_state=True)
        step, _ = m.step(u[:, 0], state)
    assert y.dtype in (torch.bfloat16, torch.float32) and step.dtype in (y.dtype, torch.bfloat16)
    assert all(state[k].dtype == kept[k].dtype for k in kept if k in ("S", "log_scale", "angle"))
    assert float(relative_error(wide(y), wide(want)).max()) < 0.2


@pytest.mark.filterwarnings("default")  # what the compiler warns of is not ours
@pytest.mark.parametrize("name", ["mamba2", "gated_deltanet"])
def test_compiled(name: str) -> None:
    """By the default compiler, in one graph: outputs and gradients."""
    torch._dynamo.reset()
    m, u = layer(name, torch.float32).to(DEVICE), x(torch.float32).to(DEVICE)
    want, y = m(u), torch.compile(m, fullgraph=True)(u)
    report, allowed = Report(name), tolerance(torch.float32, T)
    report.compare("compiled", "y", y, want, allowed)
    got, expected = (torch.autograd.grad(z.square().sum(), list(m.parameters())) for z in (y, want))
    floor = 1e-3 * max(float(g.abs().max()) for g in expected)
    for (k, _), g, w in zip(m.named_parameters(), got, expected, strict=True):
        report.compare("compiled", f"gradient of {k}", g, w, GRADIENT * allowed, floor=floor)
    assert report.ok, str(report)


WAITING = {"lssl", "taylor", "urn"}
"""A linear solve, indices from Python, and matrix exponentials look at what the device holds."""


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("name", [name for name in sf.names() if name not in WAITING])
def test_a_call_does_not_wait_for_the_device(name: str) -> None:
    """So that Python runs ahead of it, and a call can be captured in a CUDA graph."""
    m, u = layer(name, torch.float32).to(DEVICE), x(torch.float32).to(DEVICE).requires_grad_()
    m(u).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        m(u).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
