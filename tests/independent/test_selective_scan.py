"""The selective scan of Mamba against answers recorded from its CUDA kernels: outputs, states and gradients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import RECORDED, assert_close, existing_forms, recorded

FOLDER = "oracle-mamba-cuda"
# Whether the step is softplus(delta), and how precise the recorded outputs and gradients of the inputs are.
KERNEL_CASES = {
    "minimal": (False, RECORDED),
    "minimal_fp16": (False, 1e-3),  # rounded to float16
    "minimal_bf16": (False, 4e-3),  # rounded to bfloat16
    "time_varying_3d": (True, RECORDED),
    "complex_A_packed_BC": (False, RECORDED),
    "full": (True, RECORDED),
}


def tensor(entry: dict[str, Any]) -> Tensor:
    """A recorded array in float64 or complex128."""
    names = ["data"] if "data" in entry else ["data_real", "data_imag"]
    parts = [torch.tensor(entry[name], dtype=torch.float64).reshape(entry["shape"]) for name in names]
    return parts[0] if len(parts) == 1 else torch.complex(*parts)


def selective_system(given: dict[str, Tensor], softplus: bool) -> sf.System:
    """The scan's arguments (channels before time) as a system with one head a channel; y without the gate z."""
    step = given["delta"]
    if "delta_bias" in given:
        step = step + given["delta_bias"].unsqueeze(-1)
    step = (F.softplus(step) if softplus else step).mT
    A, B, C = given["A"], given["B"], given["C"]
    phase = None
    if A.is_complex():  # real and imaginary parts alternate along time; of each conjugate pair one is kept
        B, C = (torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) for x in (B, 2 * C))
        phase, A = step.unsqueeze(-1) * A.imag, A.real
    # [D,N] constant, [B,N,T] shared by the channels, [B,D,N] constant in time, [B,D,N,T]
    B, C = (x.mT.unsqueeze(2) if x.ndim == 3 else x.movedim(-1, 1) if x.ndim == 4 else x for x in (B, C))
    v = given["u"].mT.unsqueeze(-1)
    return sf.System(C, B, v, log_decay=(step, A), phase=phase, b=step, d=given.get("D"))


def gated(y: Tensor, given: dict[str, Tensor]) -> Tensor:
    y = y.squeeze(-1).mT
    return y * F.silu(given["z"]) if "z" in given else y


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_scan_and_its_gradients_are_those_of_the_cuda_kernel(name: str) -> None:
    case = json.loads((recorded(FOLDER) / "mamba_reference_cases.json").read_text())["selective_scan"][name]
    softplus, tolerance = KERNEL_CASES[name]
    given = {k: tensor(x).requires_grad_() for k, x in case["inputs"].items()}
    system = selective_system(given, softplus)
    assert len(existing_forms(system)) >= 3
    for form in existing_forms(system):
        y, state = sf.run(system, form, return_state=True)
        y = gated(y, given)
        expected_y = tensor(case["outputs"]["y"])
        for channel in range(y.shape[1]):  # their sizes differ by 10^4
            assert_close(y[:, channel], expected_y[:, channel], f"output, {form}, channel {channel}", tolerance)
        if "last_state" in case["outputs"]:
            # With a constant B the kernel keeps the state without it, and puts B into the read.
            last = tensor(case["outputs"]["last_state"]) * given["B"].detach()
            assert_close(state["S"].squeeze(-1), last, f"final state, {form}", tolerance)
        gradients = torch.autograd.grad(y.sum(), list(given.values()), retain_graph=True)
        checked = []
        for part, gradient in zip(given, gradients, strict=True):
            expected = tensor(case["gradients"][part])
            if torch.isnan(expected).any():
                continue  # with A > 0 the kernel's own gradients overflow
            half = case["gradients"][part]["dtype"] in ("float16", "bfloat16")
            assert_close(gradient, expected, f"gradient of {part}, {form}", tolerance if half else RECORDED)
            checked.append(part)
        assert checked == (["D", "z"] if name == "full" else list(given))


def test_one_step_is_that_of_the_update_kernel() -> None:
    case = json.loads((recorded(FOLDER) / "mamba_reference_cases.json").read_text())["selective_state_update"]
    given = {k: tensor(x) for k, x in case["baseline_full"]["inputs"].items()}
    step = F.softplus(given["dt"] + given["dt_bias"])[:, None]
    system = sf.System(
        given["C"][:, None, None], given["B"][:, None, None], given["x"][:, None, :, None],
        log_decay=(step, given["A"]), b=step, d=given["D"],
    )  # fmt: skip
    expected = {k: tensor(x) for k, x in case["baseline_full"]["outputs"].items()}
    for form in existing_forms(system):
        y, state = sf.run(system, form, initial_state=given["state"].unsqueeze(-1), return_state=True)
        assert_close(y[:, 0, :, 0] * F.silu(given["z"]), expected["y"], f"output, {form}", RECORDED)
        assert_close(state["S"].squeeze(-1), expected["updated_state"], f"state, {form}", RECORDED)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_scan_is_the_recorded_reference(index: int) -> None:
    """B and C constant, one per row, and one per row and step, each channel with its own; gate, softplus and bias."""

    def flat(entry: dict[str, Any]) -> Tensor:
        return torch.tensor(entry["data"], dtype=torch.float64).reshape(entry["shape"])

    case = json.loads((recorded(FOLDER) / "selective_scan_reference.json").read_text())[index]
    given = {{"dt_bias": "delta_bias"}.get(k, k): flat(x) for k, x in case["inputs"].items()}
    if given["B"].ndim == 3:
        T = given["u"].shape[-1]
        given |= {k: given[k].unsqueeze(-1).expand(-1, -1, -1, T) for k in "BC"}
    system = selective_system(given, softplus=True)
    for form in existing_forms(system):
        y, state = sf.run(system, form, return_state=True)
        assert_close(gated(y, given), flat(case["outputs"]["y"]), f"output, {form}", RECORDED)
        assert_close(state["S"].squeeze(-1), flat(case["outputs"]["state"]), f"final state, {form}", RECORDED)


def test_a_long_scan_is_that_of_the_cuda_kernel() -> None:
    """512 steps with steps of both signs: decays below and above 1."""
    with np.load(recorded(FOLDER) / "nvidia_cccl_mamba_selective_scan_fwd_ref.npz", allow_pickle=False) as file:
        given = {k: torch.from_numpy(np.atleast_1d(file[k])).double() for k in file.files}
    expected = given["out"]
    given |= {k: given[k][None, None] for k in ("u", "delta")} | {k: given[k][None] for k in "ABC"}
    system = selective_system(given, softplus=False)
    for form in existing_forms(system):
        assert_close(gated(sf.run(system, form), given)[0, 0], expected, f"output, {form}", RECORDED)
