"""One token at a time: the loops of a single step, and what a step may and may not do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.forms import _compiled
from stateform.kernels.ops import (
    call,
    channel,
    channel_reference,
    matrix,
    matrix_reference,
    short_conv,
    short_conv_reference,
)
from stateform.tolerances import tolerance

from .systems import CASES
from .test_compiled import error, needed


def rows(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 2, 3, 5, 7), (1, 1, 4, 16, 64), (1, 2, 1, 33, 150), (3, 1, 1, 1, 1)], ids=str)
def test_a_step_of_matrix_states(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    B, G, R, n, p = sizes
    torch.manual_seed(0)
    for decay in (None, 1, n):
        for feedback in (False, True):
            for exclusive in (False, True):
                q, k = rows(dtype, B, 1, G, 1, n), rows(dtype, B, 1, 1, R, n)
                v, S = rows(dtype, B, 1, G, R, p), rows(dtype, B, G, R, n, p)
                log = None if decay is None else -rows(dtype, B, 1, G, R, decay).abs()
                f, w = (rows(dtype, B, 1, G, R, n), rows(dtype, 1, 1, G, R, n)) if feedback else (None, None)
                before = S.clone()
                got = call(matrix, q, k, v, log, f, w, S, 1, exclusive, False)
                want = matrix_reference(q, k, v, log, f, w, S, 1, exclusive)
                assert torch.equal(S, before)
                assert max(error(a, b) for a, b in zip(got, want, strict=False)) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(2, 37, 5), (1, 256, 16), (2, 20, 1), (1, 300, 20), (1, 1, 1)], ids=str)
def test_a_step_of_channels(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    B, L, n = sizes
    torch.manual_seed(0)
    for decay in ("none", "varying", "product", "constant"):
        for exclusive in (False, True):
            q, k = (rows(dtype, B, 1, n), rows(dtype, 1, 1, n)) if n > 1 else (None, None)
            v, S, step = rows(dtype, B, 1, L), rows(dtype, B, L, n), rows(dtype, B, 1, L).abs()
            log = {"varying": -step, "product": step}.get(decay)
            rate = -rows(dtype, n, L).abs() if decay in ("product", "constant") else None
            want = channel_reference(q, k, v, log, rate, S, exclusive)
            for laid in (rate, None if rate is None else rate.mT.contiguous().mT):
                got = call(channel, q, k, v, log, laid, S, exclusive, False)
                assert max(error(a, b) for a, b in zip(got, want, strict=False)) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("taps", [2, 4, 7])
def test_a_step_of_short_convolutions(taps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, window, weight, bias = (rows(dtype, *s) for s in ((2, 1, 37), (2, taps - 1, 37), (37, taps), (37,)))
    for b, activate in ((bias, True), (None, False)):
        want = short_conv_reference(x, window, weight.mT, b, activate)
        for laid in (weight.mT, weight.mT.contiguous()):
            assert error(call(short_conv, x, window, laid, b, activate), want) < tolerance(dtype, 1)


@needed
@pytest.mark.parametrize("name", CASES)
def test_a_token_of_every_system_is_the_same_compiled_or_not(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    if system.readout == "exp" or _compiled.refused(system) is not None:
        return
    _, state = sf.run(system[:-1], "recurrent", return_state=True)  # type: ignore[misc]
    last = system[system.T - 1 :]
    with sf.backend("torch"):
        want, end = sf.run(last, "recurrent", initial_state=state, return_state=True)  # type: ignore[misc]
    with sf.backend("compiled"):
        got, new = sf.run(last, "recurrent", initial_state=state, return_state=True)  # type: ignore[misc]
    assert error(got, want) < tolerance(torch.float64, system.T)
    assert error(new.S, end.S) < tolerance(torch.float64, system.T)
