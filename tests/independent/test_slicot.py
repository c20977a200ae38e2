"""The SLICOT model-reduction benchmarks: Hankel values and frequency responses as recorded, and reduction.

The systems are continuous; the bilinear map makes them discrete and keeps their Hankel singular values. The recorded
files hold the Hankel values and the magnitudes of the frequency response that other software found. Source: Chahlaoui
and Van Dooren, A collection of benchmark examples for model reduction of linear time invariant dynamical systems, 2002.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

import stateform as sf
from stateform.analysis import StateSpace, balred, freqresp, gram, hsvd, statespace
from stateform.convert import reduce

from .helpers import recorded

NAMES = ("building", "pde", "cdplayer", "heat", "iss", "beam")


@cache
def read(name: str) -> dict[str, np.ndarray]:
    """A, B, C and the recorded answers of a system, dense."""
    found = scipy.io.loadmat(recorded("slicot-lti") / f"{name}.mat")
    dense = {k: x.toarray() if hasattr(x, "toarray") else x for k, x in found.items() if not k.startswith("__")}
    return {k: np.asarray(x, dtype=float) for k, x in dense.items()}


@cache
def step(name: str) -> float:
    """The step for which the slowest and the fastest mode are as far from the unit circle's ends: 2 / dt is between."""
    modes = np.abs(np.linalg.eigvals(read(name)["A"]))
    return float(2 / np.sqrt(modes.min() * modes.max()))


@cache
def system(name: str) -> StateSpace:
    data = read(name)
    return statespace(data["A"], data["B"], data["C"], dt=step(name))


@pytest.mark.parametrize("name", NAMES)
def test_hankel_values(name: str) -> None:
    """The ten largest, each relative to itself."""
    want = np.sort(read(name)["hsv"].ravel())[::-1][:10]
    got = hsvd(system(name)).values[0, :10].numpy()
    assert np.abs(got / want - 1).max() <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_gramians_solve_the_continuous_lyapunov_equations(name: str) -> None:
    """A P + P A^T + B B^T = 0 and A^T Q + Q A + C^T C = 0: the bilinear map scales P by 1 / dt and Q by dt."""
    data, dt = read(name), step(name)
    for A, B, M in (
        (data["A"], data["B"], gram(system(name), "c")[0].numpy() / dt),
        (data["A"].T, data["C"].T, gram(system(name), "o")[0].numpy() * dt),
    ):
        left = A @ M + M @ A.T + B @ B.T
        assert np.linalg.norm(left) <= 1e-11 * np.linalg.norm(A, 2) * np.linalg.norm(M)


@pytest.mark.parametrize("name", NAMES)
def test_frequency_responses(name: str) -> None:
    """Magnitudes at the recorded frequencies, each channel relative to its largest; omega = (2/dt) tan(theta / 2)."""
    data = read(name)
    theta = 2 * np.arctan(data["w"].ravel() * step(name) / 2)
    G = freqresp(system(name), torch.as_tensor(theta)).G[0].abs().numpy()
    got = G.transpose(0, 2, 1).reshape(len(theta), -1)  # recorded output by output, one input after the other
    want = data["mag"].reshape(len(theta), -1)
    assert got.shape == want.shape
    assert (np.abs(got - want).max(0) <= 1e-8 * np.abs(want).max(0)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.drawn(0.4)
def test_balanced_truncation_is_within_its_bound(name: str) -> None:
    """Measured at the recorded frequencies and those of the poles, on impulses and on noise."""
    s = system(name)
    found = balred(s, tol=0.02)
    assert found.order < s.N
    theta = torch.as_tensor(2 * np.arctan(read(name)["w"].ravel() * step(name) / 2))
    assert float(found.error(theta)) <= float(found.bound)
    assert float(hsvd(s).values[0, found.order]) * 0.99 <= float(found.error()) <= float(found.bound)
    impulses, steps = torch.eye(s.B.shape[-1], dtype=torch.float64)[:, None, None], 200
    noise = torch.randn(2, steps, 1, s.B.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for u in (torch.nn.functional.pad(impulses, (0, 0, 0, 0, 0, steps - 1)), noise):
        y, z = (outputs(x, u) for x in (s, found.reduced))
        energy = (y - z).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
        assert float(energy.max()) <= float(found.bound)


def outputs(s: StateSpace, u: torch.Tensor) -> Any:
    return sf.run(s.system(u))


@pytest.mark.parametrize("name", ["building", "pde", "cdplayer"])
def test_a_system_is_reduced_with_a_certificate(name: str) -> None:
    s = system(name)
    u = torch.randn(1, 100, 1, s.B.shape[-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = reduce(s.system(u), 0.02)
    assert found.ok and found.order < s.N
    assert max(found.gain) <= max(found.bound)
